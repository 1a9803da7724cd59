/*
 * The mapping calls, through libc or as raw system calls. vswap sees libc's calls coming and raw
 * ones only as userfaultfd events, so programs that change mappings do it both ways.
 */
#ifndef MAPPING_CALLS_H
#define MAPPING_CALLS_H

#include "vswap_test.h"

static __thread bool raw_calls;

static inline void *do_mmap(void *at, uint64_t pages, int prot, int flags, int fd, off_t offset)
{
	if (raw_calls)
		return (void *)syscall(SYS_mmap, at, pages * PAGE, prot, flags, fd, offset);
	return mmap(at, pages * PAGE, prot, flags, fd, offset);
}

static inline int do_munmap(void *at, uint64_t pages)
{
	if (raw_calls)
		return (int)syscall(SYS_munmap, at, pages * PAGE);
	return munmap(at, pages * PAGE);
}

static inline void *do_mremap(void *at, uint64_t old_pages, uint64_t new_pages, int flags, void *to)
{
	if (raw_calls)
		return (void *)syscall(SYS_mremap, at, old_pages * PAGE, new_pages * PAGE, flags,
				       to);
	return mremap(at, old_pages * PAGE, new_pages * PAGE, flags, to);
}

static inline int do_mprotect(void *at, uint64_t pages, int prot)
{
	if (raw_calls)
		return (int)syscall(SYS_mprotect, at, pages * PAGE, prot);
	return mprotect(at, pages * PAGE, prot);
}

static inline int do_madvise(void *at, uint64_t pages, int advice)
{
	if (raw_calls)
		return (int)syscall(SYS_madvise, at, pages * PAGE, advice);
	return madvise(at, pages * PAGE, advice);
}

#endif
