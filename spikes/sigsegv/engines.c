#define _GNU_SOURCE
#include "engines.h"
#include "bench.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Debian 12 has the headers of 6.1. */
#ifndef UFFDIO_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
struct uffdio_move {
	__u64 dst, src, len, mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif
#define MADV_GUARD_INSTALL 102 /* 6.13; on shared mappings 6.15 */
#define MADV_GUARD_REMOVE 103
#define PIDFD_SELF_THREAD_GROUP (-10001)

char *mem, *ready, *sink;
int uffd = -1;
static char *alias, *scratch, *staging;
static int memfd = -1, procmem = -1, staging_uffd = -1;

static void must(int failed, const char *what)
{
	if (failed)
		DIE(what);
}

static char *map(size_t len, int prot, int flags, int fd)
{
	/* A guard page on each side, or the areas merge and the VMA costs are not the engine's own. */
	char *p = mmap(NULL, len + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	must(p == MAP_FAILED, "mmap");
	p = mmap(p + PAGE, len, prot, flags | MAP_FIXED | MAP_NORESERVE, fd, 0);
	must(p == MAP_FAILED, "mmap");
	return p;
}

static off_t at_offset(char *at) { return at - mem; }
static void protect(char *at, size_t len, int prot) { must(mprotect(at, len, prot), "mprotect"); }
static void advise(char *at, size_t len, int advice) { must(madvise(at, len, advice), "madvise"); }
static void punch(char *at, size_t len)
{
	must(fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at_offset(at), len), "punch hole");
}

/* --- private memory, filled in place: not atomic, the floor for comparison --- */

static void setup_private(void) { mem = map(SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1); }
static void fill_in_place(char *at, size_t len)
{
	protect(at, len, PROT_READ | PROT_WRITE);
	memcpy(at, ready, len);
}
static void evict_in_place(char *at, size_t len)
{
	protect(at, len, PROT_READ);
	memcpy(sink, at, len);
	protect(at, len, PROT_NONE);
	advise(at, len, MADV_DONTNEED);
}

/* --- private memory, reached through /proc/self/mem while PROT_NONE (FOLL_FORCE) --- */

static void setup_procmem(void)
{
	setup_private();
	must((procmem = open("/proc/self/mem", O_RDWR | O_CLOEXEC)) < 0, "/proc/self/mem");
}
static void fill_procmem(char *at, size_t len)
{
	must(pwrite(procmem, ready, len, (off_t)at) != (ssize_t)len, "pwrite /proc/self/mem");
	protect(at, len, PROT_READ | PROT_WRITE);
}
static void evict_procmem(char *at, size_t len)
{
	protect(at, len, PROT_NONE);
	must(pread(procmem, sink, len, (off_t)at) != (ssize_t)len, "pread /proc/self/mem");
	advise(at, len, MADV_DONTNEED);
}

/* --- private memory, a filled page moved in by mremap --- */

static void setup_mremap(void)
{
	setup_private();
	scratch = map(MAX_RUN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}
static void fill_mremap(char *at, size_t len)
{
	memcpy(scratch, ready, len);
	must(mremap(scratch, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, at) != at, "mremap");
}
static void evict_mremap(char *at, size_t len)
{
	evict_in_place(at, len);
	/* A fresh mapping: what was moved in never merges with its neighbours again. */
	must(mmap(at, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != at, "mmap");
}

/* --- a memfd mapped twice --- */

static void setup_memfd(int prot)
{
	must((memfd = memfd_create("spike", MFD_CLOEXEC)) < 0, "memfd_create");
	must(ftruncate(memfd, SIZE), "ftruncate");
	mem = map(SIZE, prot, MAP_SHARED, memfd);
	alias = map(SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd);
}
static void setup_alias(void) { setup_memfd(PROT_NONE); }
static void fill_alias(char *at, size_t len)
{
	memcpy(alias + at_offset(at), ready, len);
	protect(at, len, PROT_READ | PROT_WRITE);
}
static void fill_pwrite(char *at, size_t len)
{
	must(pwrite(memfd, ready, len, at_offset(at)) != (ssize_t)len, "pwrite");
	protect(at, len, PROT_READ | PROT_WRITE);
}
static void evict_alias_punch(char *at, size_t len)
{
	protect(at, len, PROT_NONE);
	memcpy(sink, alias + at_offset(at), len);
	punch(at, len);
}
static void evict_alias_remove(char *at, size_t len)
{
	protect(at, len, PROT_NONE);
	memcpy(sink, alias + at_offset(at), len);
	advise(alias + at_offset(at), len, MADV_REMOVE);
}
static void evict_pread_punch(char *at, size_t len)
{
	protect(at, len, PROT_NONE);
	must(pread(memfd, sink, len, at_offset(at)) != (ssize_t)len, "pread");
	punch(at, len);
}

/* --- guard markers instead of protections: no VMA is ever split --- */

static void setup_guard_shared(void)
{
	setup_memfd(PROT_READ | PROT_WRITE);
	advise(mem, SIZE, MADV_GUARD_INSTALL);
}
static void fill_guard_shared(char *at, size_t len)
{
	must(pwrite(memfd, ready, len, at_offset(at)) != (ssize_t)len, "pwrite");
	advise(at, len, MADV_GUARD_REMOVE);
	advise(at, len, MADV_POPULATE_WRITE);
}
static void evict_guard_shared(char *at, size_t len)
{
	advise(at, len, MADV_GUARD_INSTALL);
	must(pread(memfd, sink, len, at_offset(at)) != (ssize_t)len, "pread");
	punch(at, len);
}
static void evict_guard_shared_scattered(char **at, int n, size_t len)
{
	struct iovec v[64];
	for (int i = 0; i < n; i++)
		v[i] = (struct iovec){ at[i], len };
	long done = syscall(SYS_process_madvise, PIDFD_SELF_THREAD_GROUP, v, n, MADV_GUARD_INSTALL, 0);
	must(done != (long)(n * len), "process_madvise");
	for (int i = 0; i < n; i++) {
		must(pread(memfd, sink, len, at_offset(at[i])) != (ssize_t)len, "pread");
		punch(at[i], len);
	}
}

static void setup_guard_private(void)
{
	mem = map(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	advise(mem, SIZE, MADV_GUARD_INSTALL);
	must((procmem = open("/proc/self/mem", O_RDWR | O_CLOEXEC)) < 0, "/proc/self/mem");
}
static void fill_guard_private(char *at, size_t len)
{
	protect(at, len, PROT_NONE);
	advise(at, len, MADV_GUARD_REMOVE);
	must(pwrite(procmem, ready, len, (off_t)at) != (ssize_t)len, "pwrite /proc/self/mem");
	protect(at, len, PROT_READ | PROT_WRITE);
}
static void evict_guard_private(char *at, size_t len)
{
	/* NONE, not READ: between its zap and its marker GUARD_INSTALL lets a reader map zeros. */
	protect(at, len, PROT_NONE);
	must(pread(procmem, sink, len, (off_t)at) != (ssize_t)len, "pread /proc/self/mem");
	advise(at, len, MADV_GUARD_INSTALL);
	protect(at, len, PROT_READ | PROT_WRITE);
}

/* --- userfaultfd, for comparison in the same run --- */

static int open_uffd(uint64_t features)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	must(fd < 0, "userfaultfd");
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	must(ioctl(fd, UFFDIO_API, &api), "UFFDIO_API");
	return fd;
}
static void watch(int fd, char *at, size_t len)
{
	struct uffdio_register r = { .range = { (uint64_t)at, len }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	must(ioctl(fd, UFFDIO_REGISTER, &r), "UFFDIO_REGISTER");
}
static void setup_uffd(uint64_t features)
{
	mem = map(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	staging = map(MAX_RUN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uffd = open_uffd(features);
	watch(uffd, mem, SIZE);
	staging_uffd = open_uffd(UFFD_FEATURE_MOVE);
	watch(staging_uffd, staging, MAX_RUN);
}
static void setup_uffd_sigbus(void) { setup_uffd(UFFD_FEATURE_SIGBUS); }
static void setup_uffd_handoff(void) { setup_uffd(0); }
static void copy_in(char *at, size_t len, uint64_t mode)
{
	struct uffdio_copy c = { .dst = (uint64_t)at, .src = (uint64_t)ready, .len = len, .mode = mode };
	must(ioctl(uffd, UFFDIO_COPY, &c), "UFFDIO_COPY");
}
static void fill_uffd_sigbus(char *at, size_t len) { copy_in(at, len, UFFDIO_COPY_MODE_DONTWAKE); }
static void fill_uffd_handoff(char *at, size_t len) { copy_in(at, len, 0); }
static void evict_uffd(char *at, size_t len)
{
	struct uffdio_move m = { .dst = (uint64_t)staging, .src = (uint64_t)at, .len = len };
	must(ioctl(staging_uffd, UFFDIO_MOVE, &m), "UFFDIO_MOVE");
	memcpy(sink, staging, len);
	advise(staging, len, MADV_DONTNEED);
}

const struct engine engines[] = {
	{ "uffd-sigbus", "SIGBUS, COPY; out: MOVE, read, DONTNEED", setup_uffd_sigbus, fill_uffd_sigbus, evict_uffd, 0, 0, 0 },
	{ "uffd-handoff", "blocked handler on the faulting CPU", setup_uffd_handoff, fill_uffd_handoff, evict_uffd, 0, 0, 1 },
	{ "in-place", "mprotect RW + memcpy (torn!); out: RO, read, NONE, DONTNEED", setup_private, fill_in_place, evict_in_place, 0, 0, 0 },
	{ "procmem", "pwrite /proc/self/mem, mprotect RW; out: NONE, pread, DONTNEED", setup_procmem, fill_procmem, evict_procmem, 0, 0, 0 },
	{ "mremap-in", "memcpy to scratch, mremap in; out: as in-place + mmap", setup_mremap, fill_mremap, evict_mremap, 0, 1, 0 },
	{ "alias-punch", "memcpy to alias, mprotect RW; out: NONE, read alias, punch hole", setup_alias, fill_alias, evict_alias_punch, 0, 0, 0 },
	{ "alias-remove", "the same; out: MADV_REMOVE on the alias", setup_alias, fill_alias, evict_alias_remove, 0, 0, 0 },
	{ "alias-pwrite", "pwrite memfd, mprotect RW; out: NONE, pread, punch hole", setup_alias, fill_pwrite, evict_pread_punch, 0, 0, 0 },
	{ "guard-shared", "pwrite memfd, GUARD_REMOVE, POPULATE; out: GUARD_INSTALL, pread, punch", setup_guard_shared, fill_guard_shared, evict_guard_shared, evict_guard_shared_scattered, 0, 0 },
	{ "guard-private", "NONE, GUARD_REMOVE, pwrite /proc/self/mem, RW; out: NONE, pread, GUARD_INSTALL, RW", setup_guard_private, fill_guard_private, evict_guard_private, 0, 0, 0 },
};
const int engine_count = sizeof engines / sizeof *engines;
