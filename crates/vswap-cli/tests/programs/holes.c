/*
 * holes MIB drop|fork: every second page goes, and what is left is read again and again.
 *
 * None of it compresses. `filled`, and after a line on standard input the pages go in no order: they are
 * dropped, or written anew after a fork whose child has ended. `holes`; then pages are verified at random
 * until the next line, and all of them at the end.
 */
#include "vswap_test.h"
#include <poll.h>

static char *data;
static uint64_t pages;

static uint64_t word(uint64_t seed, uint64_t page, uint64_t i)
{
	return mix(key_of(seed, page) + i);
}

static void fill(uint64_t seed, uint64_t page)
{
	for (uint64_t i = 0; i < WORDS; i++)
		((uint64_t *)(data + page * PAGE))[i] = word(seed, page, i);
}

static void check(uint64_t seed, uint64_t page)
{
	for (uint64_t i = 0; i < WORDS; i++) {
		uint64_t found = ((const volatile uint64_t *)(data + page * PAGE))[i];
		if (found != (seed == 0 ? 0 : word(seed, page, i)))
			fail("page %lu word %lu of seed %lu holds %016lx", page, i, seed, found);
	}
}

static void await_line(void)
{
	char line[64];
	REQUIRE(read(STDIN_FILENO, line, sizeof line) >= 0);
}

/* The pages that go, in an order that has each of them once: the factor is odd. */
static uint64_t nth_gone(uint64_t n)
{
	return n * 2654435761u % (pages / 2) * 2;
}

int main(int argc, char **argv)
{
	pages = argument(argc, argv, 1, 64) * MIB / PAGE;
	bool forks = argc > 2 && strcmp(argv[2], "fork") == 0;
	struct pollfd input = { STDIN_FILENO, POLLIN, 0 };
	struct timespec pause = { 0, 200000 };
	struct rng rng = { 7 };
	data = map(pages);
	for (uint64_t page = 0; page < pages; page++)
		fill(1, page);
	say("filled");
	await_line();
	if (forks) {
		int status = -1;
		pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			check(1, pages / 3);
			_exit(0);
		}
		REQUIRE(waitpid(child, &status, 0) == child && status == 0);
	}
	for (uint64_t n = 0; n < pages / 2; n++) {
		if (forks)
			fill(2, nth_gone(n));
		else
			REQUIRE(madvise(data + nth_gone(n) * PAGE, PAGE, MADV_DONTNEED) == 0);
	}
	say("holes");
	uint64_t gone = forks ? 2 : 0;
	while (poll(&input, 1, 0) == 0) {
		for (int n = 0; n < 16; n++) {
			uint64_t page = below(&rng, pages);
			check(page % 2 == 0 ? gone : 1, page);
		}
		nanosleep(&pause, NULL);
	}
	for (uint64_t page = 0; page < pages; page++)
		check(page % 2 == 0 ? gone : 1, page);
	say("ok holes");
	return 0;
}
