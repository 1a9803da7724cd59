/*
 * remap BALLAST_MIB [SEED [FLAGS]]: memory holds what Linux promises, after every mapping change.
 *
 * Each case fills a region, brings it into one of four states (as filled, pushed out by touching a
 * ballast larger than the budget, evicted whole, evicted in alternate runs of 16 pages), changes its
 * mapping and verifies all of it, before and after eviction. FLAGS, with commas between: the ways to
 * make the calls (see mapping_calls.h), each of which is gone through; `nosys`: no system call reads,
 * writes or locks paged memory, so that it runs inline too.
 */
#include "mapping_calls.h"
#include <setjmp.h>

#define N 512ul /* pages of a region: 2 MiB */
#define GIB_PAGES (1ul << 18)

enum state { FILLED, PUSHED_OUT, EVICTED, ALTERNATE, STATES };

static char *ballast;
static uint64_t ballast_pages, seed, sum;
static enum state state;

static void *at(char *region, uint64_t page)
{
	return region + page * PAGE;
}

/* Touches the next third of the ballast, which is more than the budget holds. */
static void press(void)
{
	static uint64_t next;
	for (uint64_t n = 0; n < ballast_pages / 3; n++) {
		sum += check_page(ballast + next * PAGE, key_of(7, next), "ballast");
		next = (next + 1) % ballast_pages;
	}
}

static void settle(char *region, uint64_t pages)
{
	if (state == PUSHED_OUT)
		press();
	else if (state == EVICTED)
		evict(region, pages);
	else if (state == ALTERNATE)
		for (uint64_t i = 0; i < pages; i += 32)
			evict(at(region, i), pages - i < 16 ? pages - i : 16);
}

/* Verifies a range, evicts it and verifies it again. */
static void verify(char *start, uint64_t first, uint64_t pages, const char *when)
{
	sum += check_range(start, first, pages, seed, when);
	evict(start, pages);
	sum += check_range(start, first, pages, seed, when);
}

static void verify_zero(char *start, uint64_t pages, const char *when)
{
	check_zero(start, pages, when);
	evict(start, pages);
	check_zero(start, pages, when);
	/* And it is memory: it can be written, evicted and read back. */
	fill_range(start, pages, seed + 99);
	evict(start, pages);
	sum += check_range(start, 0, pages, seed + 99, when);
}

static char *region(uint64_t pages)
{
	char *start = do_mmap(NULL, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			      0);
	REQUIRE(start != MAP_FAILED);
	fill_range(start, pages, seed);
	settle(start, pages);
	return start;
}

/* Address space that nothing else takes: a PROT_NONE mapping to be mapped over. */
static char *reserve(uint64_t pages)
{
	char *start = do_mmap(NULL, pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			      -1, 0);
	REQUIRE(start != MAP_FAILED);
	return start;
}

static void release(char *start, uint64_t pages)
{
	REQUIRE(do_munmap(start, pages) == 0);
}

/* On the stack of whoever tries: siglongjmp hands the signal mask in it to a system call. */
static sigjmp_buf *escape;

static void on_segv(int signal)
{
	(void)signal;
	siglongjmp(*escape, 1);
}

/* Whether a one-byte access to the address dies of SIGSEGV. */
static bool faults(char *address, bool writing)
{
	sigjmp_buf here;
	escape = &here;
	if (sigsetjmp(here, 1))
		return true;
	if (writing)
		*(volatile char *)address = *(volatile char *)address;
	else
		(void)*(volatile char *)address;
	return false;
}

static void shrink_and_grow_in_place(void)
{
	char *r = region(2 * N);
	REQUIRE(do_mremap(r, 2 * N, N, 0, NULL) == r);
	REQUIRE(faults(at(r, N), false));
	sum += check_range(r, 0, N, seed, "shrunk");
	settle(r, N);
	REQUIRE(do_mremap(r, N, 2 * N, 0, NULL) == r);
	verify(r, 0, N, "grown in place");
	verify_zero(at(r, N), N, "tail that grew");
	release(r, 2 * N);
}

static void move(uint64_t old_pages, uint64_t new_pages)
{
	char *r = region(old_pages);
	char *to = reserve(new_pages);
	REQUIRE(do_mremap(r, old_pages, new_pages, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	REQUIRE(faults(r, false));
	uint64_t kept = old_pages < new_pages ? old_pages : new_pages;
	verify(to, 0, kept, "moved");
	if (new_pages > kept)
		verify_zero(at(to, kept), new_pages - kept, "tail of a move that grew");
	release(to, new_pages);
}

static void move_same_size(void)
{
	move(N, N);
}

static void move_and_grow(void)
{
	move(N, 2 * N);
}

static void move_and_shrink(void)
{
	move(2 * N, N);
}

static void move_the_middle(void)
{
	char *r = region(N);
	char *to = reserve(N / 4);
	REQUIRE(do_mremap(at(r, N / 2), N / 4, N / 4, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	verify(to, N / 2, N / 4, "middle that moved");
	verify(r, 0, N / 2, "before the hole");
	verify(at(r, 3 * N / 4), 3 * N / 4, N / 4, "after the hole");
	REQUIRE(faults(at(r, N / 2), false));
	release(to, N / 4);
	release(r, N);
}

static void move_over_a_used_range(void)
{
	char *r = region(N);
	char *to = region(N);
	fill_range(to, N, seed + 5);
	settle(to, N);
	REQUIRE(do_mremap(at(r, 8), 64, 64, MREMAP_MAYMOVE | MREMAP_FIXED, at(to, 32)) ==
		at(to, 32));
	sum += check_range(to, 0, 32, seed + 5, "before what was moved over");
	verify(at(to, 32), 8, 64, "moved over a used range");
	sum += check_range(at(to, 96), 96, N - 96, seed + 5, "after what was moved over");
	release(to, N);
	release(r, N);
}

static void move_there_and_back(void)
{
	char *r = region(N);
	char *to = reserve(N);
	for (int i = 0; i < 3; i++) {
		REQUIRE(do_mremap(r, N, N, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
		sum += check_range(to, 0, N / 2, seed, "there");
		REQUIRE(do_mremap(to, N, N, MREMAP_MAYMOVE | MREMAP_FIXED, r) == r);
		settle(r, N);
	}
	verify(r, 0, N, "there and back");
	release(r, N);
}

static void move_dontunmap(void)
{
	char *r = region(N);
	char *to = reserve(N);
	REQUIRE(do_mremap(r, N, N, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == to);
	verify(to, 0, N, "moved with DONTUNMAP");
	verify_zero(r, N, "left behind by DONTUNMAP");
	sum += check_range(to, 0, N, seed, "moved with DONTUNMAP, after writing the source");
	release(r, N);
	release(to, N);
}

static void unmap_the_middle(void)
{
	char *r = region(N);
	REQUIRE(do_munmap(at(r, 100), 100) == 0);
	REQUIRE(faults(at(r, 100), false) && faults(at(r, 199), false));
	verify(r, 0, 100, "before the unmapped middle");
	verify(at(r, 200), 200, N - 200, "after the unmapped middle");
	REQUIRE(do_mmap(at(r, 100), 100, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at(r, 100));
	verify_zero(at(r, 100), 100, "mapped again in the hole");
	release(r, N);
}

static void map_over_a_used_range(void)
{
	char *r = region(N);
	REQUIRE(do_mmap(at(r, 50), 77, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at(r, 50));
	verify_zero(at(r, 50), 77, "mapped over");
	verify(r, 0, 50, "before what was mapped over");
	verify(at(r, 127), 127, N - 127, "after what was mapped over");
	release(r, N);
}

static void map_a_file_over_a_used_range(void)
{
	char path[] = "/tmp/vswap-remap-XXXXXX";
	int fd = mkstemp(path);
	REQUIRE(fd >= 0 && unlink(path) == 0 && ftruncate(fd, 64 * PAGE) == 0);
	char *file = do_mmap(NULL, 64, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	REQUIRE(file != MAP_FAILED);
	fill_range(file, 64, seed + 3);

	char *r = region(N);
	REQUIRE(do_mmap(at(r, 128), 64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) ==
		at(r, 128));
	sum += check_range(at(r, 128), 0, 64, seed + 3, "file over memory");
	fill_range(at(r, 128), 64, seed + 4);
	press();
	sum += check_range(at(r, 128), 0, 64, seed + 4, "private copy of a file");
	sum += check_range(file, 0, 64, seed + 3, "the file itself");
	REQUIRE(do_madvise(at(r, 128), 64, MADV_DONTNEED) == 0);
	sum += check_range(at(r, 128), 0, 64, seed + 3, "file again after DONTNEED");
	REQUIRE(do_mmap(at(r, 128), 64, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at(r, 128));
	verify_zero(at(r, 128), 64, "memory over a file");
	verify(r, 0, 128, "before the file");
	verify(at(r, 192), 192, N - 192, "after the file");
	release(r, N);
	release(file, 64);
	close(fd);
}

static void dontneed(void)
{
	char *r = region(N);
	REQUIRE(do_madvise(at(r, 10), 200, MADV_DONTNEED) == 0);
	verify_zero(at(r, 10), 200, "after DONTNEED");
	verify(r, 0, 10, "before DONTNEED's range");
	verify(at(r, 210), 210, N - 210, "after DONTNEED's range");
	REQUIRE(do_madvise(r, N, MADV_DONTNEED) == 0);
	verify_zero(r, N, "after DONTNEED of all");
	release(r, N);
}

/* Lazily freed pages hold their old content or zeros, page by page, until they are written. */
static void lazy_free(void)
{
	char *r = region(N);
	REQUIRE(do_madvise(r, N / 2, MADV_FREE) == 0);
	press();
	for (uint64_t i = 0; i < N / 2; i++)
		if (first_difference(at(r, i), key_of(seed, i)) != WORDS)
			check_page(at(r, i), 0, "after MADV_FREE");
	fill_range(r, N / 2, seed + 1);
	settle(r, N / 2);
	sum += check_range(r, 0, N / 2, seed + 1, "written after MADV_FREE");
	verify(at(r, N / 2), N / 2, N / 2, "beside MADV_FREE");
	release(r, N);
}

static void protect_none_and_back(void)
{
	char *r = region(N);
	REQUIRE(do_mprotect(at(r, 64), 128, PROT_NONE) == 0);
	REQUIRE(faults(at(r, 64), false) && faults(at(r, 191), true));
	REQUIRE(!faults(at(r, 63), true) && !faults(at(r, 192), true));
	settle(r, N);
	REQUIRE(do_mprotect(at(r, 64), 128, PROT_READ | PROT_WRITE) == 0);
	verify(r, 0, N, "protected and back");
	release(r, N);
}

static void protect_read_only(void)
{
	char *r = region(N);
	REQUIRE(do_mprotect(r, N, PROT_READ) == 0);
	/* Pages of a read-only mapping may stay: the kernel moves writable ones only. */
	REQUIRE(madvise(r, N * PAGE, MADV_PAGEOUT) == 0);
	sum += check_range(r, 0, N, seed, "read-only");
	REQUIRE(faults(at(r, 3), true) && !faults(at(r, 3), false));
	REQUIRE(do_mprotect(at(r, N / 2), N / 2, PROT_READ | PROT_WRITE) == 0);
	REQUIRE(faults(at(r, N / 2 - 1), true) && !faults(at(r, N / 2), true));
	fill_range(at(r, N / 2), N / 2, seed + 1);
	evict(at(r, N / 2), N / 2);
	sum += check_range(r, 0, N / 2, seed, "still read-only");
	sum += check_range(at(r, N / 2), 0, N / 2, seed + 1, "writable again");
	release(r, N);
}

/* Pieces of different protection move, and evict, as one range does. */
static void protect_and_move_pieces(void)
{
	char *r = region(N);
	char *to = reserve(N);
	for (uint64_t i = 0; i < N; i += 64)
		REQUIRE(do_mprotect(at(r, i), 32, PROT_READ) == 0);
	REQUIRE(madvise(r, N * PAGE, MADV_PAGEOUT) == 0);
	evict(at(r, 32), 32);
	for (uint64_t i = 0; i < N; i += 32)
		REQUIRE(do_mremap(at(r, i), 32, 32, MREMAP_MAYMOVE | MREMAP_FIXED,
				  at(to, N - 32 - i)) == at(to, N - 32 - i));
	for (uint64_t i = 0; i < N; i += 32)
		sum += check_range(at(to, N - 32 - i), i, 32, seed, "piece that moved");
	REQUIRE(do_mprotect(to, N, PROT_READ | PROT_WRITE) == 0);
	fill_range(to, N, seed);
	verify(to, 0, N, "pieces writable again");
	release(to, N);
}

/* Locked memory comes in and stays. 64 pages are within everybody's RLIMIT_MEMLOCK. */
static void lock(void)
{
	char *r = region(N);
	REQUIRE(mlock(at(r, 16), 64 * PAGE) == 0);
	REQUIRE(resident_pages(at(r, 16), 64) == 64);
	press();
	REQUIRE(resident_pages(at(r, 16), 64) == 64);
	sum += check_range(r, 0, N, seed, "partly locked");
	REQUIRE(munlock(at(r, 16), 64 * PAGE) == 0);
	verify(r, 0, N, "unlocked");
	release(r, N);
}

/*
 * The kernel refuses to drop locked memory when it comes to it: what lies before is dropped by then,
 * the rest stays, swapped out or not.
 */
static void drop_locked(int advice)
{
	char *r = region(N);
	REQUIRE(mlock(at(r, 16), 64 * PAGE) == 0);
	evict(at(r, 80), 48);
	REQUIRE(do_madvise(at(r, 64), 64, advice) == -1 && errno == EINVAL);
	sum += check_range(r, 0, N, seed, "refused from its first page on");
	evict(at(r, 80), 48);
	REQUIRE(do_madvise(r, 128, advice) == -1 && errno == EINVAL);
	for (uint64_t i = 0; i < 16; i++)
		if (advice == MADV_DONTNEED || *(volatile uint64_t *)at(r, i) == 0)
			check_page(at(r, i), 0, "before what is locked");
		else
			check_page(at(r, i), key_of(seed, i), "before what is locked");
	sum += check_range(at(r, 16), 16, N - 16, seed, "refused from where it is locked on");
	REQUIRE(munlock(at(r, 16), 64 * PAGE) == 0);
	verify(at(r, 16), 16, N - 16, "no longer locked");
	release(r, N);
}

static void lock_and_drop(void)
{
	drop_locked(MADV_DONTNEED);
	drop_locked(MADV_FREE);
}

static void huge_pages(void)
{
	char *space = reserve(3 * 512);
	char *r = (char *)(((uintptr_t)space + 2 * MIB - 1) & ~(2 * MIB - 1));
	REQUIRE(do_mmap(r, 1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			-1, 0) == r);
	do_madvise(r, 1024, MADV_HUGEPAGE);
	fill_range(r, 1024, seed);
	settle(r, 1024);
	verify(r, 0, 1024, "asked for huge pages");
	REQUIRE(do_madvise(at(r, 200), 600, MADV_DONTNEED) == 0);
	verify_zero(at(r, 200), 600, "hole in huge pages");
	verify(r, 0, 200, "before the hole in huge pages");
	release(space, 3 * 512);
}

static void populate(void)
{
	char *r = do_mmap(NULL, N, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	REQUIRE(r != MAP_FAILED);
	verify_zero(r, N, "populated");
	release(r, N);
}

/* What garbage collectors do: reserve much, commit pieces by mprotect, give them back. */
static void reserve_and_commit(void)
{
	char *r = reserve(GIB_PAGES);
	for (int round = 0; round < 2; round++) {
		for (uint64_t piece = 0; piece < 8; piece++) {
			char *slice = at(r, piece * 16384 + 64);
			REQUIRE(do_mprotect(slice, 64, PROT_READ | PROT_WRITE) == 0);
			check_zero(slice, 64, "committed");
			fill_range(slice, 64, seed + piece);
			settle(slice, 64);
		}
		for (uint64_t piece = 0; piece < 8; piece++) {
			char *slice = at(r, piece * 16384 + 64);
			sum += check_range(slice, 0, 64, seed + piece, "committed slice");
			REQUIRE(do_madvise(slice, 64, MADV_DONTNEED) == 0);
			REQUIRE(do_mprotect(slice, 64, PROT_NONE) == 0);
			REQUIRE(faults(slice, false));
		}
	}
	release(r, GIB_PAGES);
}

static void shared_memory(void)
{
	char *r = do_mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(r != MAP_FAILED);
	fill_range(r, N, seed);
	press();
	sum += check_range(r, 0, N, seed, "shared");
	char *to = reserve(N);
	REQUIRE(do_mremap(r, N, N, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	sum += check_range(to, 0, N, seed, "shared and moved");
	release(to, N);
}

static void advice_that_changes_nothing(void)
{
	static const int advice[] = { MADV_COLD, MADV_WILLNEED, MADV_SEQUENTIAL, MADV_RANDOM,
				      MADV_NORMAL, MADV_PAGEOUT };
	char *r = region(N);
	for (size_t i = 0; i < sizeof advice / sizeof *advice; i++) {
		REQUIRE(do_madvise(at(r, 16), N - 32, advice[i]) == 0);
		sum += check_range(r, 0, N, seed, "after advice");
		settle(r, N);
	}
	release(r, N);
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
#define CASE(name) { #name, name }
	CASE(shrink_and_grow_in_place),
	CASE(move_same_size),
	CASE(move_and_grow),
	CASE(move_and_shrink),
	CASE(move_the_middle),
	CASE(move_over_a_used_range),
	CASE(move_there_and_back),
	CASE(move_dontunmap),
	CASE(unmap_the_middle),
	CASE(map_over_a_used_range),
	CASE(map_a_file_over_a_used_range),
	CASE(dontneed),
	CASE(lazy_free),
	CASE(protect_none_and_back),
	CASE(protect_read_only),
	CASE(protect_and_move_pieces),
	CASE(lock),
	CASE(lock_and_drop),
	CASE(huge_pages),
	CASE(populate),
	CASE(reserve_and_commit),
	CASE(shared_memory),
	CASE(advice_that_changes_nothing),
};

int main(int argc, char **argv)
{
	ballast_pages = argument(argc, argv, 1, 32) * MIB / PAGE;
	seed = argument(argc, argv, 2, 1);
	struct sigaction action = { .sa_handler = on_segv };
	REQUIRE(sigaction(SIGSEGV, &action, NULL) == 0);
	ballast = map(ballast_pages);
	fill_range(ballast, ballast_pages, 7);

	const char *flags = argc > 3 ? argv[3] : "";
	bool nosys = has_flag(flags, "nosys");
	choose_ways(flags);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		if (nosys && (cases[i].run == lock || cases[i].run == lock_and_drop))
			continue;
		for (unsigned n = 0; n < way_count; n++)
			for (state = FILLED; state < STATES; state++) {
				way = ways[n];
				seed++;
				cases[i].run();
			}
		say("%s", cases[i].name);
	}
	sum += check_range(ballast, 0, ballast_pages, 7, "ballast");
	say("ok remap checksum %016lx", sum);
	return 0;
}
