/*
 * reread MIB [ROUNDS]: pages that are read many times and changed in one byte now and then.
 *
 * Every round reads all pages in order and then changes one byte of a few, some while they are in
 * memory from the read, so that what was kept of them since they came in is wrong by that byte, and
 * some by the kernel: pread(2) of the byte where faults inside system calls work. The next round
 * expects every change. `fork` in the middle: the child checks the same from its own memory.
 */
#include "vswap_test.h"

#define CHANGES 4

static uint64_t pages;
static char *data;
/* What was added to the byte `where` of each page, in memory that is never paged. */
static uint8_t *added;

static uint64_t where(uint64_t page)
{
	return mix(page) % PAGE;
}

static void check_all(uint64_t round, uint64_t *sum)
{
	for (uint64_t i = 0; i < pages; i++) {
		const volatile uint8_t *page = (uint8_t *)data + i * PAGE;
		uint64_t at = where(i), repeat = period(key_of(1, i));
		for (uint64_t j = 0; j < PAGE; j++) {
			uint64_t word = word_of(key_of(1, i), repeat, j / 8 % repeat);
			uint8_t want = (uint8_t)(word >> j % 8 * 8) + (j == at ? added[i] : 0);
			if (page[j] != want)
				fail("round %lu: byte %lu of page %lu is %02x, not %02x", round, j,
				     i, page[j], want);
			j += j + 97 < at || j > at ? 96 : 0;
		}
		*sum += page[at];
	}
}

int main(int argc, char **argv)
{
	pages = argument(argc, argv, 1, 64) * MIB / PAGE;
	uint64_t rounds = argument(argc, argv, 2, 6);
	bool by_kernel = argc <= 3;

	data = map(pages);
	added = mmap(NULL, pages, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(added != MAP_FAILED);
	fill_range(data, pages, 1);
	int file = open("/proc/self/exe", O_RDONLY);
	REQUIRE(file >= 0);

	struct rng rng = { 7 };
	uint64_t sum = 0;
	for (uint64_t round = 0; round < rounds; round++) {
		check_all(round, &sum);
		/* The last pages that were read are in memory still. */
		for (uint64_t n = 0; n < CHANGES * 16; n++) {
			uint64_t i = n % 2 ? below(&rng, pages) : pages - 1 - below(&rng, 256);
			uint8_t *byte = (uint8_t *)data + i * PAGE + where(i);
			if (by_kernel && n % 5 == 0) {
				uint8_t before = *byte;
				REQUIRE(pread(file, byte, 1, 1 + (off_t)(n % 3)) == 1);
				added[i] += (uint8_t)(*byte - before);
			} else {
				*byte += 1;
				added[i] += 1;
			}
		}
		if (round == rounds / 2) {
			pid_t child = fork();
			REQUIRE(child >= 0);
			if (child == 0) {
				check_all(1000, &sum);
				_exit(0);
			}
			int status;
			REQUIRE(waitpid(child, &status, 0) == child && status == 0);
		}
	}
	say("%lu pages, sum %016lx", pages, sum);
	return 0;
}
