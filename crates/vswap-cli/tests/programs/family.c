/*
 * family MIB CHILDREN: parent and children share what is on swap devices, and go on in both.
 *
 * The parent fills incompressible memory and makes one child after the other. Each verifies all of
 * it, writes a quarter of its own, verifies again and ends. The parent writes the next eighth
 * meanwhile. What a child held is the parent's to use again, or the devices fill up.
 */
#include "vswap_test.h"
#include <sys/wait.h>

static char *data;
static uint64_t pages;

static uint64_t word(uint64_t seed, uint64_t page, uint64_t i)
{
	return mix(key_of(seed, page) + i);
}

static void fill_part(uint64_t seed, uint64_t first, uint64_t end)
{
	for (uint64_t page = first; page < end; page++)
		for (uint64_t i = 0; i < WORDS; i++)
			((uint64_t *)(data + page * PAGE))[i] = word(seed, page, i);
}

static uint64_t check_part(uint64_t seed, uint64_t first, uint64_t end)
{
	uint64_t sum = 0;
	for (uint64_t page = first; page < end; page++)
		for (uint64_t i = 0; i < WORDS; i++) {
			uint64_t found = ((const volatile uint64_t *)(data + page * PAGE))[i];
			if (found != word(seed, page, i))
				fail("page %lu word %lu of seed %lu is wrong", page, i, seed);
			sum += found;
		}
	return sum;
}

/* Eighth `part` was last written in this round. */
static uint64_t seed_of(uint64_t part, uint64_t round)
{
	return part < round % 8 ? round / 8 + 1 : round / 8;
}

static uint64_t check_all(uint64_t round)
{
	uint64_t sum = 0;
	for (uint64_t part = 0; part < 8; part++)
		sum += check_part(seed_of(part, round), pages / 8 * part, pages / 8 * (part + 1));
	return sum;
}

static void child(uint64_t round)
{
	check_all(round);
	uint64_t first = pages / 4 * (round % 4);
	fill_part(1000 + round, first, first + pages / 4);
	check_part(1000 + round, first, first + pages / 4);
	uint64_t other = (round + 2) % 4 * 2;
	for (uint64_t part = other; part < other + 2; part++)
		check_part(seed_of(part, round), pages / 8 * part, pages / 8 * (part + 1));
	_exit(0);
}

int main(int argc, char **argv)
{
	pages = argument(argc, argv, 1, 24) * MIB / PAGE;
	uint64_t children = argument(argc, argv, 2, 16);
	data = map(pages);
	fill_part(0, 0, pages);
	for (uint64_t round = 0; round < children; round++) {
		pid_t pid = fork();
		REQUIRE(pid >= 0);
		if (pid == 0)
			child(round);
		uint64_t part = round % 8;
		fill_part(round / 8 + 1, pages / 8 * part, pages / 8 * (part + 1));
		int status = -1;
		REQUIRE(waitpid(pid, &status, 0) == pid);
		REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	}
	say("ok family checksum %lx\n", check_all(children));
	return 0;
}
