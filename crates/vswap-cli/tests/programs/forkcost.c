/*
 * forkcost MIB MAPPINGS ROUNDS: what a fork takes, by the clock of the parent.
 *
 * Fills MIB in that many mappings, which their protection keeps apart, and prints the median of
 * microseconds that fork took to return, and that it took until the child, which does nothing, was
 * reaped: `fork US until end US`.
 */
#include "vswap_test.h"

static double now_us(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *values, uint64_t n)
{
	qsort(values, n, sizeof *values, compare);
	return values[n / 2];
}

int main(int argc, char **argv)
{
	uint64_t pages = argument(argc, argv, 1, 64) * MIB / PAGE;
	uint64_t mappings = argument(argc, argv, 2, 1), rounds = argument(argc, argv, 3, 51);
	static double returned[1001], ended[1001];
	REQUIRE(mappings >= 1 && rounds <= 1001);
	for (uint64_t i = 0; i < mappings; i++) {
		uint64_t n = pages / mappings;
		char *part = map(n + 1);
		REQUIRE(mprotect(part + n * PAGE, PAGE, PROT_NONE) == 0);
		fill_range(part, n, i + 1);
	}
	for (uint64_t round = 0; round < rounds; round++) {
		int status = -1;
		double start = now_us();
		pid_t child = fork();
		if (child == 0)
			_exit(0);
		returned[round] = now_us() - start;
		REQUIRE(child > 0 && waitpid(child, &status, 0) == child && status == 0);
		ended[round] = now_us() - start;
	}
	say("fork %.0f us, to the child's end %.0f us", median(returned, rounds),
	    median(ended, rounds));
	return 0;
}
