/*
 * What UFFDIO_MOVE costs per page when every first, second, third or fourth page of 4 MiB is present,
 * alone and while another thread of the process runs on the other CPU. Each run of present pages ends
 * with a TLB flush. Also the drop of the moved pages by one MADV_DONTNEED. Minimum and median of
 * REPEATS, ns per page.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
struct uffdio_move {
	__u64 dst, src, len, mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 5, struct uffdio_move)
#endif
#define ALLOW_SRC_HOLES 2

#define PAGE 4096ul
#define PAGES 1024ul
#define REPEATS 15

static volatile int stop;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000l + t.tv_nsec;
}

static void run_on(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof set, &set))
		fail("sched_setaffinity");
}

static void *sibling(void *arg)
{
	run_on(1);
	while (!stop)
		;
	return arg;
}

static char *map_aligned(void)
{
	size_t size = PAGES * PAGE;
	char *base = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED)
		fail("mmap");
	char *start = (char *)(((uintptr_t)base + size - 1) & -size);
	madvise(start, size, MADV_NOHUGEPAGE);
	return start;
}

static int by_value(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return (x > y) - (x < y);
}

static void measure(int uffd, char *from, char *to, unsigned long stride)
{
	int64_t moves[REPEATS], drops[REPEATS];
	int64_t pages = (PAGES + stride - 1) / stride;
	for (int i = 0; i < REPEATS; i++) {
		for (unsigned long page = 0; page < PAGES; page += stride)
			from[page * PAGE] = 1;
		struct uffdio_move move = { (uintptr_t)to, (uintptr_t)from, PAGES * PAGE,
					    ALLOW_SRC_HOLES, 0 };
		int64_t start = now();
		if (ioctl(uffd, UFFDIO_MOVE, &move))
			fail("UFFDIO_MOVE");
		int64_t moved = now();
		madvise(to, PAGES * PAGE, MADV_DONTNEED);
		moves[i] = (moved - start) / pages;
		drops[i] = (now() - moved) / pages;
	}
	qsort(moves, REPEATS, sizeof *moves, by_value);
	qsort(drops, REPEATS, sizeof *drops, by_value);
	printf("  one page in %lu: move %ld (%ld), drop %ld (%ld)\n", stride, (long)moves[0],
	       (long)moves[REPEATS / 2], (long)drops[0], (long)drops[REPEATS / 2]);
}

int main(void)
{
	run_on(0);
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MOVE };
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		fail("userfaultfd");
	char *from = map_aligned(), *to = map_aligned();
	struct uffdio_register reg = { .range = { (uintptr_t)to, PAGES * PAGE },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		fail("UFFDIO_REGISTER");
	pthread_t thread;
	for (int running = 0; running < 2; running++) {
		printf("%s, minimum (median) ns per page:\n", running ? "sibling runs" : "alone");
		if (running && pthread_create(&thread, NULL, sibling, NULL) == 0)
			usleep(20000);
		for (unsigned long stride = 1; stride <= 4; stride++)
			measure(uffd, from, to, stride);
	}
	stop = 1;
	pthread_join(thread, NULL);
	return 0;
}
