/* What every program of the spike shares: a clock, medians, pinning. */
#ifndef BENCH_H
#define BENCH_H
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define DIE(what) (perror(what), exit(1))
#define PAGE 4096UL

static inline double now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static inline double median(const double *v, int n)
{
	double s[n];
	for (int i = 0; i < n; i++)
		s[i] = v[i];
	qsort(s, n, sizeof *s, by_value);
	return n & 1 ? s[n / 2] : (s[n / 2 - 1] + s[n / 2]) / 2;
}

static inline void pin_to(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof set, &set))
		DIE("sched_setaffinity");
}

/* A fixed shuffle, so that no engine profits from neighbours merging in address order. */
static inline void shuffled(unsigned *order, unsigned n)
{
	uint64_t x = 88172645463325252ULL;
	for (unsigned i = 0; i < n; i++)
		order[i] = i;
	for (unsigned i = n; i > 1; i--) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		unsigned j = x % i, t = order[i - 1];
		order[i - 1] = order[j], order[j] = t;
	}
}
#endif
