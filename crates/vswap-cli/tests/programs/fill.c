/*
 * fill MIB [SEED [PASSES [random]]]: memory larger than the budget holds what was written to it.
 *
 * Fills a mapping with seeded pages, then reads it forwards, backwards and at random, rewriting a
 * third of it between passes. `random` makes every page incompressible. No system call touches
 * paged memory, so this runs under both engines.
 */
#include "vswap_test.h"

static bool incompressible;

static void fill_one(char *page, uint64_t key)
{
	if (!incompressible) {
		fill_page(page, key);
		return;
	}
	for (uint64_t i = 0; i < WORDS; i++)
		((uint64_t *)page)[i] = mix(key + i);
}

static uint64_t check_one(const char *page, uint64_t key)
{
	if (!incompressible)
		return check_page(page, key, "fill");
	for (uint64_t i = 0; i < WORDS; i++)
		if (((const volatile uint64_t *)page)[i] != mix(key + i))
			fail("random page %p word %lu is wrong", (const void *)page, i);
	return mix(key);
}

int main(int argc, char **argv)
{
	uint64_t pages = argument(argc, argv, 1, 64) * MIB / PAGE;
	uint64_t seed = argument(argc, argv, 2, 1);
	uint64_t passes = argument(argc, argv, 3, 2);
	incompressible = argc > 4 && strcmp(argv[4], "random") == 0;

	char *data = map(pages);
	/* Versions are part of the pages' keys and are kept beside the data, in shared memory that
	 * is never paged. */
	uint8_t *version = mmap(NULL, pages, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(version != MAP_FAILED);
#define KEY(i) key_of(seed + version[i], (i))
	for (uint64_t i = 0; i < pages; i++)
		fill_one(data + i * PAGE, KEY(i));

	struct rng rng = { seed };
	uint64_t sum = 0;
	for (uint64_t pass = 0; pass < passes; pass++) {
		for (uint64_t i = 0; i < pages; i++)
			sum += check_one(data + i * PAGE, KEY(i));
		for (uint64_t i = 0; i < pages / 3; i++) {
			uint64_t at = below(&rng, pages);
			sum += check_one(data + at * PAGE, KEY(at));
			version[at]++;
			fill_one(data + at * PAGE, KEY(at));
		}
		for (uint64_t i = pages; i-- > 0;)
			sum += check_one(data + i * PAGE, KEY(i));
	}
	say("ok fill %lu pages checksum %016lx", pages, sum);
	return 0;
}
