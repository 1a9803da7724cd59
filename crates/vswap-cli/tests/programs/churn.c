/*
 * churn THREADS ROUNDS MIB [SEED [WAYS]]: mappings come and go in several threads at once.
 *
 * Each round a thread maps a region where the kernel likes, which is often where another thread's was
 * a moment ago, checks that it is zero, fills it, gives parts of it back in different ways, verifies
 * the rest, moves it by mremap, verifies again and unmaps it. A block of ballast per thread keeps the
 * whole above the budget. WAYS are those of mapping_calls.h.
 */
#include "mapping_calls.h"

struct worker {
	pthread_t thread;
	uint64_t index, sum;
};

static uint64_t rounds, ballast_pages, seed;

/* How often a mapping could not be moved, of thousands of times. */
#define STAYED_MAX 3
static uint64_t stayed;

/* A look of the pager may just have registered a part of the mapping, which is two to the kernel until the
 * look is over, or, if that part has become one with a neighbour, for good (ARCHITECTURE.md, section 12).
 * Only who traps past libc can see that. */
static char *grow(char *start, uint64_t pages)
{
	for (int attempt = 0; attempt < 3; attempt++) {
		char *grown = do_mremap(start, pages, 2 * pages, MREMAP_MAYMOVE, NULL);
		if (grown != MAP_FAILED || way != TRAP || errno != EFAULT)
			return grown;
	}
	if (__atomic_add_fetch(&stayed, 1, __ATOMIC_RELAXED) > STAYED_MAX)
		fail("%lu mappings could not be moved", stayed);
	return NULL;
}

static void one_round(struct worker *me, struct rng *rng)
{
	uint64_t pages = 8 + below(rng, 248), own = draw(rng), cut = 1 + below(rng, pages / 2);
	way = ways[draw(rng) % way_count];
	char *start = do_mmap(NULL, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			      0);
	REQUIRE(start != MAP_FAILED);
	check_zero(start, pages, "fresh mapping");
	fill_range(start, pages, own);
	if (draw(rng) % 2)
		REQUIRE(do_madvise(start, pages, MADV_PAGEOUT) == 0);
	switch (below(rng, 3)) {
	case 0:
		REQUIRE(do_munmap(start, cut) == 0);
		break;
	case 1:
		REQUIRE(do_madvise(start, cut, MADV_DONTNEED) == 0);
		check_zero(start, cut, "dropped");
		REQUIRE(do_munmap(start, cut) == 0);
		break;
	default:
		me->sum += check_range(start, 0, cut, own, "head");
		REQUIRE(do_mprotect(start, cut, PROT_NONE) == 0);
		REQUIRE(do_munmap(start, cut) == 0);
	}
	char *rest = start + cut * PAGE;
	uint64_t left = pages - cut;
	me->sum += check_range(rest, cut, left, own, "rest");
	char *grown = grow(rest, left);
	REQUIRE(grown != MAP_FAILED);
	if (grown == NULL) {
		me->sum += check_range(rest, cut, left, own, "not moved");
		REQUIRE(do_munmap(rest, left) == 0);
		return;
	}
	me->sum += check_range(grown, cut, left, own, "moved");
	check_zero(grown + left * PAGE, left, "grown");
	REQUIRE(do_munmap(grown, 2 * left) == 0);
}

static void *work(void *argument)
{
	struct worker *me = argument;
	struct rng rng = { seed * 100 + me->index };
	char *ballast = map(ballast_pages);
	fill_range(ballast, ballast_pages, me->index);
	for (uint64_t round = 0; round < rounds; round++) {
		one_round(me, &rng);
		uint64_t first = below(&rng, ballast_pages - 32);
		me->sum += check_range(ballast + first * PAGE, first, 32, me->index, "ballast");
	}
	me->sum += check_range(ballast, 0, ballast_pages, me->index, "ballast");
	REQUIRE(munmap(ballast, ballast_pages * PAGE) == 0);
	return NULL;
}

int main(int argc, char **argv)
{
	uint64_t threads = argument(argc, argv, 1, 4), sum = 0;
	rounds = argument(argc, argv, 2, 250);
	ballast_pages = argument(argc, argv, 3, 64) * MIB / PAGE / threads;
	seed = argument(argc, argv, 4, 1);
	choose_ways(argc > 5 ? argv[5] : "");
	REQUIRE(threads >= 1 && threads <= 16 && ballast_pages > 32);

	struct worker workers[16] = { 0 };
	for (uint64_t i = 0; i < threads; i++) {
		workers[i].index = i;
		REQUIRE(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
	}
	for (uint64_t i = 0; i < threads; i++) {
		REQUIRE(pthread_join(workers[i].thread, NULL) == 0);
		sum += workers[i].sum;
	}
	say("ok churn checksum %016lx", sum);
	return 0;
}
