/* What alternating present and absent units do to the list of mappings: ./vma */
#define _GNU_SOURCE
#include "bench.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#define SPAN (1UL << 30)

static char *reserve(int prot)
{
	char *p = mmap(NULL, SPAN, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		DIE("mmap");
	return p;
}

static int mappings(void)
{
	static char buf[1 << 16];
	int fd = open("/proc/self/maps", O_RDONLY), lines = 0;
	ssize_t n;
	while ((n = read(fd, buf, sizeof buf)) > 0)
		for (ssize_t i = 0; i < n; i++)
			lines += buf[i] == '\n';
	close(fd);
	return lines;
}

/* fork + _exit + wait, the median of 9, in µs. */
static double fork_us(void)
{
	double t[9];
	for (int i = 0; i < 9; i++) {
		double start = now_ns();
		pid_t pid = fork();
		if (!pid)
			_exit(0);
		waitpid(pid, NULL, 0);
		t[i] = (now_ns() - start) / 1e3;
	}
	return median(t, 9);
}

static long slab(const char *name)
{
	char line[256];
	long active = 0, size = 0;
	FILE *f = fopen("/proc/slabinfo", "r");
	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ' ')
			sscanf(line + strlen(name), "%ld %*d %ld", &active, &size);
	if (f)
		fclose(f);
	return active * size;
}

static void alternate(void)
{
	char *p = reserve(PROT_NONE);
	long before = slab("vm_area_struct") + slab("maple_node"), vmas = mappings();
	long i = 0, since = 0;
	printf("alternating present/absent by mprotect:\n%10s %16s %12s\n", "mappings", "ns per mprotect", "fork µs");
	printf("%10ld %16s %12.0f\n", vmas, "-", fork_us());
	double last = now_ns();
	for (;; i++) {
		if (mprotect(p + 2 * i * PAGE, PAGE, PROT_READ | PROT_WRITE))
			break;
		if (i == 500 || i == 5000 || i == 15000 || i == 31000) {
			double took = (now_ns() - last) / (i + 1 - since);
			printf("%10d %16.0f %12.0f\n", mappings(), took, fork_us());
			last = now_ns(), since = i + 1;
		}
	}
	int err = errno, at = mappings();
	printf("refused with %s at %d mappings, after %ld units = %ld MiB of alternating 4 KiB (%ld MiB of 64 KiB)\n", strerror(err), at, i,
	       2 * i * 4 / 1024, 2 * i * 64 / 1024);
	printf("kernel memory (vm_area_struct + maple_node): %ld bytes per mapping\n",
	       (slab("vm_area_struct") + slab("maple_node") - before) / (at - vmas));
	munmap(p, SPAN);
}

/* Adjacent pages, all present: do they share a mapping? */
static void moved_in(void)
{
	char *p = reserve(PROT_NONE);
	char *scratch = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int before = mappings();
	for (long i = 0; i < 1000; i++) {
		*scratch = 1;
		if (mremap(scratch, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, p + i * PAGE) == MAP_FAILED)
			DIE("mremap");
	}
	printf("1000 adjacent present pages, moved in by mremap: %d mappings more\n", mappings() - before);
	munmap(p, SPAN);
	p = reserve(PROT_NONE);
	before = mappings();
	for (long i = 0; i < 1000; i++) {
		if (mprotect(p + i * PAGE, PAGE, PROT_READ | PROT_WRITE))
			DIE("mprotect");
		p[i * PAGE] = 1;
	}
	printf("1000 adjacent present pages, by mprotect: %d mapping more\n", mappings() - before);
	munmap(p, SPAN);
}

static void guarded(void)
{
	char *p = reserve(PROT_READ | PROT_WRITE);
	int before = mappings();
	double start = now_ns();
	if (madvise(p, SPAN, MADV_GUARD_INSTALL)) {
		printf("MADV_GUARD_INSTALL: %s\n", strerror(errno));
		return;
	}
	double install = (now_ns() - start) / (SPAN / PAGE);
	for (long i = 0; i < (long)(SPAN / PAGE); i += 2) {
		if (madvise(p + i * PAGE, PAGE, MADV_GUARD_REMOVE))
			DIE("GUARD_REMOVE");
	}
	printf("1 GiB of alternating guard markers: %d mappings more; to mark cost %.0f ns a page; fork %.0f µs\n", mappings() - before, install,
	       fork_us());
	long table = 0, value;
	char line[128];
	FILE *f = fopen("/proc/self/status", "r");
	while (fgets(line, sizeof line, f))
		if (sscanf(line, "VmPTE: %ld", &value) == 1)
			table = value;
	fclose(f);
	printf("page tables then: %ld KiB (8 bytes a page, kept while the range is absent)\n", table);
	/* What the program's own calls see of a marker. */
	int zero = open("/dev/zero", O_RDONLY);
	ssize_t got = read(zero, p + PAGE, 1);
	printf("read(2) into an absent page: %s\n", got < 0 ? strerror(errno) : "succeeds");
	madvise(p + PAGE, PAGE, MADV_DONTNEED);
	got = read(zero, p + PAGE, 1);
	printf("the same after the program's MADV_DONTNEED: %s\n", got < 0 ? strerror(errno) : "succeeds");
	pid_t pid = fork();
	if (!pid)
		_exit(read(zero, p + PAGE, 1) < 0);
	int status;
	waitpid(pid, &status, 0);
	printf("the marker in a forked child: %s\n", WEXITSTATUS(status) ? "kept" : "gone");
	munmap(p, SPAN);
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	pin_to(0);
	alternate();
	moved_in();
	guarded();
}
