/* fork with 64 MiB resident: private memory, and shared memory that the child must copy for itself. ./forked */
#define _GNU_SOURCE
#include "bench.h"
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define RESIDENT (64UL << 20)
#define ROUNDS 7

/* The time until the child could run on. In ms. */
static double fork_ms(char *from, int copy)
{
	double *end = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), t[ROUNDS];
	for (int i = 0; i < ROUNDS; i++) {
		double start = now_ns();
		pid_t pid = fork();
		if (!pid) {
			if (copy) {
				int fd = memfd_create("child", 0);
				if (ftruncate(fd, RESIDENT) || pwrite(fd, from, RESIDENT, 0) != RESIDENT)
					_exit(1);
				if (mmap(from, RESIDENT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != from)
					_exit(1);
			}
			*end = now_ns();
			_exit(0);
		}
		waitpid(pid, NULL, 0);
		t[i] = (*end - start) / 1e6;
	}
	return median(t, ROUNDS);
}

int main(void)
{
	pin_to(0);
	char *private = mmap(NULL, RESIDENT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(private, 1, RESIDENT);
	printf("fork with 64 MiB resident: private (copied by the kernel when written) %.1f ms", fork_ms(private, 0));
	munmap(private, RESIDENT);
	int fd = memfd_create("parent", 0);
	if (ftruncate(fd, RESIDENT))
		DIE("ftruncate");
	char *shared = mmap(NULL, RESIDENT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	memset(shared, 1, RESIDENT);
	printf("; shared, left shared (wrong) %.1f ms; shared, copied by the child before it runs on %.1f ms\n", fork_ms(shared, 0), fork_ms(shared, 1));
}
