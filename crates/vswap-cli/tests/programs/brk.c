/*
 * brk MIB [SEED [WAYS]]: the heap end moves down and up, and what comes back is zero.
 *
 * Works below malloc: the end is moved in steps of random size over memory that is larger than the
 * budget. brk growth is a new mapping that nobody registered; shrinking drops swapped-out pages. WAYS
 * are those of mapping_calls.h, taken in turn.
 */
#include "mapping_calls.h"

int main(int argc, char **argv)
{
	uint64_t limit = argument(argc, argv, 1, 64) * MIB / PAGE;
	uint64_t seed = argument(argc, argv, 2, 1);
	struct rng rng = { seed };

	choose_ways(argc > 3 ? argv[3] : "");
	uintptr_t now = (uintptr_t)do_brk(NULL);
	char *base = (char *)(now + PAGE - now % PAGE);
	REQUIRE(do_brk(base) == base);
	uint64_t pages = 0, sum = 0;
	for (int step = 0; step < 40; step++) {
		uint64_t target = step % 8 == 7 ? 0 : step % 8 == 3 ? limit : below(&rng, limit);
		way = ways[(unsigned)step % way_count];
		REQUIRE(do_brk(base + target * PAGE) == base + target * PAGE);
		if (target > pages) {
			check_zero(base + pages * PAGE, target - pages, "heap that grew");
			for (uint64_t i = pages; i < target; i++)
				fill_page(base + i * PAGE, key_of(seed, i));
		}
		pages = target;
		if (step % 4 == 1)
			evict(base, pages / 2);
		sum += check_range(base, 0, pages, seed, "heap");
	}
	/* An end inside a page keeps that page's rest until the page itself goes. */
	REQUIRE(do_brk(base + 8 * PAGE) == base + 8 * PAGE);
	check_zero(base, 8, "after all");
	fill_range(base, 8, seed);
	evict(base, 8);
	REQUIRE(do_brk(base + 7 * PAGE + 100) == base + 7 * PAGE + 100);
	REQUIRE(do_brk(base + 8 * PAGE) == base + 8 * PAGE);
	sum += check_range(base, 0, 8, seed, "end inside a page");
	say("ok brk checksum %016lx", sum);
	return 0;
}
