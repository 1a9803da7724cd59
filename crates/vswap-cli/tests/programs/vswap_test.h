/*
 * Shared by the test programs: seeded page contents that can be checked word by word, eviction
 * that is verified, and output that touches no paged memory inside a system call (so that it works
 * under the inline engine too: the text is built on the stack, which is never paged).
 *
 * A page's content is a function of a 64-bit key. Key 0 is a page of zeros. Of the others, 1 in 64
 * does not compress, 6 in 64 repeat one word, and the rest repeat a block of 256 bytes: 13:1
 * with lz4, so that a quarter of the data's size is enough to hold all of it.
 */
#ifndef VSWAP_TEST_H
#define VSWAP_TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define MIB (1ul << 20)
#define WORDS (PAGE / sizeof(uint64_t))

static inline void write_all(int fd, const char *text, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, text, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			_exit(3);
		text += n;
		len -= (size_t)n;
	}
}

__attribute__((format(printf, 1, 2))) static inline void say(const char *format, ...)
{
	char text[512];
	va_list args;
	va_start(args, format);
	int len = vsnprintf(text, sizeof text - 1, format, args);
	va_end(args);
	if (len > (int)sizeof text - 2)
		len = (int)sizeof text - 2;
	text[len++] = '\n';
	write_all(STDOUT_FILENO, text, (size_t)len);
}

__attribute__((noreturn, format(printf, 1, 2))) static inline void fail(const char *format, ...)
{
	int error = errno;
	char text[512];
	va_list args;
	va_start(args, format);
	int len = vsnprintf(text, 400, format, args);
	va_end(args);
	if (len > 399)
		len = 399;
	len += snprintf(text + len, sizeof text - (size_t)len, " (errno %d, pid %d)\n", error,
			(int)getpid());
	write_all(STDERR_FILENO, "FAIL: ", 6);
	write_all(STDERR_FILENO, text, (size_t)len);
	_exit(1);
}

#define REQUIRE(condition)                                                                         \
	do {                                                                                       \
		if (!(condition))                                                                  \
			fail("%s:%d: %s", __FILE__, __LINE__, #condition);                         \
	} while (0)

/* The finaliser of splitmix64: a bijection, so different keys give different words. */
static inline uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

struct rng {
	uint64_t state;
};

static inline uint64_t draw(struct rng *rng)
{
	rng->state += 0x9e3779b97f4a7c15ull;
	return mix(rng->state);
}

static inline uint64_t below(struct rng *rng, uint64_t bound)
{
	return draw(rng) % bound;
}

/* How far the words of a page go before they repeat. */
static inline uint64_t period(uint64_t key)
{
	uint64_t kind = mix(key ^ 0x5eed) % 64;
	return kind == 0 ? WORDS : kind < 7 ? 1 : 32;
}

static inline uint64_t word_of(uint64_t key, uint64_t repeat, uint64_t i)
{
	return key == 0 ? 0 : mix(key * 0x9e3779b97f4a7c15ull + i % repeat);
}

static inline void fill_page(void *page, uint64_t key)
{
	uint64_t *words = page;
	uint64_t repeat = period(key);
	for (uint64_t i = 0; i < WORDS; i++)
		words[i] = i < repeat ? word_of(key, repeat, i) : words[i - repeat];
	if (key == 0)
		memset(page, 0, PAGE);
}

/* Index of the first wrong word, or WORDS. */
static inline uint64_t first_difference(const void *page, uint64_t key)
{
	const volatile uint64_t *words = page;
	uint64_t repeat = period(key);
	for (uint64_t i = 0; i < WORDS; i++) {
		uint64_t want = i < repeat ? word_of(key, repeat, i) : words[i - repeat];
		if (words[i] != want)
			return i;
	}
	return WORDS;
}

/* Dies unless the page holds what its key says; the sum of results is the program's checksum. */
static inline uint64_t check_page(const void *page, uint64_t key, const char *when)
{
	uint64_t at = first_difference(page, key);
	if (at != WORDS)
		fail("%s: page %p word %lu holds %016lx, not %016lx (key %lx)", when, page, at,
		     ((const volatile uint64_t *)page)[at], word_of(key, period(key), at), key);
	return mix(((const volatile uint64_t *)page)[WORDS - 1]);
}

/* Page i of a range that was filled with `seed`. */
static inline uint64_t key_of(uint64_t seed, uint64_t i)
{
	return mix(seed + i * 0x9e3779b97f4a7c15ull) | 1;
}

static inline void fill_range(void *start, uint64_t pages, uint64_t seed)
{
	for (uint64_t i = 0; i < pages; i++)
		fill_page((char *)start + i * PAGE, key_of(seed, i));
}

/* Checks `pages` pages from `start`, which were page `first` and on of the range. */
static inline uint64_t check_range(const void *start, uint64_t first, uint64_t pages, uint64_t seed,
				   const char *when)
{
	uint64_t sum = 0;
	for (uint64_t i = 0; i < pages; i++)
		sum += check_page((const char *)start + i * PAGE, key_of(seed, first + i), when);
	return sum;
}

static inline void check_zero(const void *start, uint64_t pages, const char *when)
{
	for (uint64_t i = 0; i < pages; i++)
		check_page((const char *)start + i * PAGE, 0, when);
}

/* A private anonymous mapping. */
static inline void *map(uint64_t pages)
{
	void *start = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			   -1, 0);
	REQUIRE(start != MAP_FAILED);
	return start;
}

static inline bool under_vswap(void)
{
	return getenv("VSWAP_RUN") != NULL;
}

static inline uint64_t resident_pages(const void *start, uint64_t pages)
{
	uint64_t resident = 0;
	unsigned char seen[256];
	for (uint64_t i = 0; i < pages; i += sizeof seen) {
		uint64_t n = pages - i < sizeof seen ? pages - i : sizeof seen;
		REQUIRE(mincore((char *)start + i * PAGE, n * PAGE, seen) == 0);
		for (uint64_t j = 0; j < n; j++)
			resident += seen[j] & 1;
	}
	return resident;
}

/*
 * Evicts a range now. Under vswap this proves that it happened: what follows is about pages that
 * are not there. A plain run has no swap to evict to and goes on with resident pages.
 */
static inline void evict(void *start, uint64_t pages)
{
	struct timespec pause = { 0, 1000000 };
	uint64_t left = pages;
	for (int attempt = 0; attempt < 5000; attempt++) {
		REQUIRE(madvise(start, pages * PAGE, MADV_PAGEOUT) == 0);
		if (!under_vswap())
			return;
		left = resident_pages(start, pages);
		if (left == 0)
			return;
		nanosleep(&pause, NULL);
	}
	fail("%lu of %lu pages at %p are still resident after MADV_PAGEOUT", left, pages, start);
}

/* Advises out whatever /proc/self/maps shows as private and writable: it is the pager's business to
 * know the stacks and thread control blocks among it. */
static inline void evict_everything(void)
{
	static char text[1 << 16];
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	size_t length = 0;
	ssize_t n;
	REQUIRE(fd >= 0);
	while (length < sizeof text - 1 && (n = read(fd, text + length, sizeof text - 1 - length)) > 0)
		length += (size_t)n;
	close(fd);
	text[length] = 0;
	/* Copied to the stack line by line, since advising out the text's own page is part of it. */
	for (char *line = text; *line != 0;) {
		unsigned long start, end;
		char protection[5];
		int matched = sscanf(line, "%lx-%lx %4s", &start, &end, protection);
		char *next = strchr(line, '\n');
		if (matched == 3 && strcmp(protection, "rw-p") == 0)
			madvise((void *)start, end - start, MADV_PAGEOUT);
		line = next == NULL ? line + strlen(line) : next + 1;
	}
}

/* A number from the command line, or the default. */
static inline uint64_t argument(int argc, char **argv, int index, uint64_t otherwise)
{
	return index < argc ? strtoull(argv[index], NULL, 0) : otherwise;
}

#endif
