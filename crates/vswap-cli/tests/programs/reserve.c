/*
 * reserve MAPPED TOUCHED ROUNDS: maps much and uses little, as runtimes with a heap of their own do.
 *
 * Maps MAPPED MiB, asks for huge pages, fills the first TOUCHED MiB, verifies them ROUNDS times, and
 * says whether the kernel gave huge pages.
 */
#include "vswap_test.h"

static uint64_t huge_kib(void)
{
	char line[128];
	uint64_t kib = 0;
	FILE *file = fopen("/proc/self/smaps_rollup", "r");
	REQUIRE(file != NULL);
	while (fgets(line, sizeof line, file) != NULL)
		sscanf(line, "AnonHugePages: %lu", &kib);
	REQUIRE(fclose(file) == 0);
	return kib;
}

int main(int argc, char **argv)
{
	uint64_t mapped = argument(argc, argv, 1, 1024) * MIB / PAGE;
	uint64_t touched = argument(argc, argv, 2, 64) * MIB / PAGE;
	uint64_t rounds = argument(argc, argv, 3, 1), sum = 0;
	char *data = map(mapped);
	madvise(data, mapped * PAGE, MADV_HUGEPAGE);
	fill_range(data, touched, 1);
	bool huge = huge_kib() * 1024 > touched * PAGE / 2;
	for (uint64_t round = 0; round < rounds; round++)
		sum += check_range(data, 0, touched, 1, "touched");
	say("ok reserve checksum %016lx %s", sum, huge ? "huge" : "small");
	return 0;
}
