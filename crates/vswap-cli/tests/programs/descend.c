/*
 * descend MIB [random]: memory that is filled and read from its end, three times over, as `sort` does
 * with its arrays. `random` makes every page incompressible.
 */
#include "vswap_test.h"

static bool incompressible;

static uint64_t word(uint64_t page, uint64_t i)
{
	return incompressible ? mix(page * WORDS + i + 1) : mix(page + 1) + i % 32;
}

int main(int argc, char **argv)
{
	uint64_t pages = argument(argc, argv, 1, 64) * MIB / PAGE;
	incompressible = argc > 2 && strcmp(argv[2], "random") == 0;
	uint64_t *data = map(pages);

	for (uint64_t page = pages; page-- > 0;)
		for (uint64_t i = WORDS; i-- > 0;)
			data[page * WORDS + i] = word(page, i);
	uint64_t sum = 0;
	for (int pass = 0; pass < 3; pass++) {
		for (uint64_t page = pages; page-- > 0;) {
			for (uint64_t i = WORDS; i-- > 0;)
				if (data[page * WORDS + i] != word(page, i))
					fail("pass %d: page %lu word %lu is wrong", pass, page, i);
			sum += data[page * WORDS];
		}
	}
	say("%lu pages, sum %016lx", pages, sum);
	return 0;
}
