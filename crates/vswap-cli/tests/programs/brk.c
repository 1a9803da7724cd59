/*
 * brk MIB [SEED]: the heap end moves down and up, and what comes back is zero.
 *
 * Works below malloc: sbrk is moved in steps of random size over memory that is larger than the
 * budget. brk growth is a new mapping that nobody registered; shrinking drops swapped-out pages.
 */
#include "vswap_test.h"

int main(int argc, char **argv)
{
	uint64_t limit = argument(argc, argv, 1, 64) * MIB / PAGE;
	uint64_t seed = argument(argc, argv, 2, 1);
	struct rng rng = { seed };

	uintptr_t now = (uintptr_t)sbrk(0);
	REQUIRE(sbrk((intptr_t)(PAGE - now % PAGE)) != (void *)-1);
	char *base = sbrk(0);
	uint64_t pages = 0, sum = 0;
	for (int step = 0; step < 40; step++) {
		uint64_t target = step % 8 == 7 ? 0 : step % 8 == 3 ? limit : below(&rng, limit);
		REQUIRE(brk(base + target * PAGE) == 0);
		REQUIRE((char *)sbrk(0) == base + target * PAGE);
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
	REQUIRE(brk(base + 8 * PAGE) == 0);
	check_zero(base, 8, "after all");
	fill_range(base, 8, seed);
	evict(base, 8);
	REQUIRE(brk(base + 7 * PAGE + 100) == 0 && brk(base + 8 * PAGE) == 0);
	sum += check_range(base, 0, 8, seed, "end inside a page");
	say("ok brk checksum %016lx", sum);
	return 0;
}
