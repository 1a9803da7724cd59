/*
 * The mapping calls, in three ways: through libc's named functions, through its function `syscall`, and
 * by a trap of the program's own. vswap hooks the first two and sees them coming; of a trap it sees a
 * userfaultfd event, or nothing. So programs that change mappings do it in several ways.
 */
#ifndef MAPPING_CALLS_H
#define MAPPING_CALLS_H

#include "vswap_test.h"

enum way { LIBC, FUNCTION, TRAP, WAYS };

static __thread enum way way;

/* The ways that a program was asked to use, in turn or at random. */
static enum way ways[WAYS] = { LIBC, FUNCTION };
static unsigned way_count = 2;

/* Whether a comma-separated list of flags has this one. */
static inline bool has_flag(const char *flags, const char *flag)
{
	size_t length = strlen(flag);
	for (const char *at = flags; (at = strstr(at, flag)) != NULL; at += length)
		if ((at == flags || at[-1] == ',') && (at[length] == 0 || at[length] == ','))
			return true;
	return false;
}

/* Takes the ways from the flags `libc`, `function` and `trap`; without any, the first two. */
static inline void choose_ways(const char *flags)
{
	static const char *const names[WAYS] = { "libc", "function", "trap" };
	unsigned count = 0;
	for (unsigned i = 0; i < WAYS; i++)
		if (has_flag(flags, names[i]))
			ways[count++] = (enum way)i;
	if (count > 0)
		way_count = count;
	way = ways[0];
}

static inline long trap(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

/* By `syscall` or by a trap, as the calling thread does it now. */
static inline long raw(long number, long a, long b, long c, long d, long e, long f)
{
	if (way == TRAP)
		return trap(number, a, b, c, d, e, f);
	return syscall(number, a, b, c, d, e, f);
}

static inline void *do_mmap(void *at, uint64_t pages, int prot, int flags, int fd, off_t offset)
{
	if (way == LIBC)
		return mmap(at, pages * PAGE, prot, flags, fd, offset);
	return (void *)raw(SYS_mmap, (long)at, (long)(pages * PAGE), prot, flags, fd, offset);
}

static inline int do_munmap(void *at, uint64_t pages)
{
	if (way == LIBC)
		return munmap(at, pages * PAGE);
	return (int)raw(SYS_munmap, (long)at, (long)(pages * PAGE), 0, 0, 0, 0);
}

static inline void *do_mremap(void *at, uint64_t old_pages, uint64_t new_pages, int flags, void *to)
{
	if (way == LIBC)
		return mremap(at, old_pages * PAGE, new_pages * PAGE, flags, to);
	/* What was mapped by a trap just while it was taken over is two mappings to the kernel until the
	 * pager's next look (ARCHITECTURE.md, section 12). */
	for (int look = 0;; look++) {
		void *moved = (void *)raw(SYS_mremap, (long)at, (long)(old_pages * PAGE),
					  (long)(new_pages * PAGE), flags, (long)to, 0);
		if (moved != MAP_FAILED || errno != EFAULT || way != TRAP || look == 20)
			return moved;
		usleep(20000);
	}
}

static inline int do_mprotect(void *at, uint64_t pages, int prot)
{
	if (way == LIBC)
		return mprotect(at, pages * PAGE, prot);
	return (int)raw(SYS_mprotect, (long)at, (long)(pages * PAGE), prot, 0, 0, 0);
}

static inline int do_madvise(void *at, uint64_t pages, int advice)
{
	if (way == LIBC)
		return madvise(at, pages * PAGE, advice);
	return (int)raw(SYS_madvise, (long)at, (long)(pages * PAGE), advice, 0, 0, 0);
}

/* Moves the end of the heap; gives the kernel's answer, the end as it is now. */
static inline char *do_brk(char *end)
{
	if (way == LIBC) {
		if (end != NULL)
			(void)!brk(end);
		return sbrk(0);
	}
	return (char *)raw(SYS_brk, (long)end, 0, 0, 0, 0, 0);
}

#endif
