/* Cost per fault and per eviction of each engine, all in one run: ./fault [rounds].
 * Each engine runs in its own child, alone or with a sibling thread that spins on the other CPU;
 * within a round every engine takes its turn, and ratios are taken within the round. */
#define _GNU_SOURCE
#include "bench.h"
#include "engines.h"
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { UNITS = 3, RUNS = 4, COLS = UNITS + RUNS + 3 };
static const size_t unit_sizes[UNITS] = { 4 << 10, 16 << 10, 64 << 10 };
static const size_t run_pages[RUNS] = { 1, 4, 16, 64 };

static const struct engine *engine;
static size_t unit;
static unsigned order[SIZE / PAGE];
static volatile int stop;

/* A fault of the engine's own region is served; anything else is a bug of the spike. */
static void on_fault(int sig, siginfo_t *info, void *ctx)
{
	char *at = info->si_addr;
	if (at < mem || at >= mem + SIZE) {
		signal(sig, SIG_DFL);
		return;
	}
	engine->fill(mem + (at - mem) / unit * unit, unit);
}

static void *handler(void *arg)
{
	struct uffd_msg msg;
	pin_to(0);
	while (read(uffd, &msg, sizeof msg) == sizeof msg) {
		char *at = (char *)msg.arg.pagefault.address;
		engine->fill(mem + (at - mem) / unit * unit, unit);
	}
	return arg;
}

static void *sibling(void *arg)
{
	static volatile unsigned long spins;
	pin_to(1);
	while (!stop)
		spins++;
	return arg;
}

static void touch(unsigned first, unsigned n)
{
	for (unsigned i = first; i < n; i++)
		for (size_t at = 0; at < unit; at += PAGE) {
			volatile uint64_t *word = (uint64_t *)(mem + order[i] * unit + at);
			if (*word != 0x5ca1ab1e)
				fprintf(stderr, "%s: wrong data\n", engine->name), _exit(1);
			*word = 0x5ca1ab1e;
		}
}

static double evict_all(size_t len)
{
	unsigned n = SIZE / len;
	shuffled(order, n);
	double start = now_ns();
	for (unsigned i = 0; i < n; i++)
		engine->evict(mem + order[i] * len, len);
	return (now_ns() - start) / (SIZE / PAGE);
}

static double evict_scattered(void)
{
	unsigned n = SIZE / PAGE;
	char *at[64];
	shuffled(order, n);
	double start = now_ns();
	for (unsigned i = 0; i < n; i += 64) {
		for (int j = 0; j < 64; j++)
			at[j] = mem + order[i + j] * PAGE;
		engine->evict_scattered(at, 64, PAGE);
	}
	return (now_ns() - start) / n;
}

static double fill_all(size_t size, int in_order)
{
	unsigned n = SIZE / size;
	unit = size;
	shuffled(order, n);
	for (unsigned i = 0; in_order && i < n; i++)
		order[i] = i;
	double start = now_ns();
	touch(0, n);
	return (now_ns() - start) / n;
}

static void own_stack(void)
{
	stack_t ss = { .ss_sp = malloc(64 << 10), .ss_size = 64 << 10 };
	sigaltstack(&ss, NULL);
}

static void *second_half(void *arg)
{
	own_stack();
	pin_to(1);
	touch(SIZE / PAGE / 2, SIZE / PAGE);
	return arg;
}

/* Two threads fault at once, each in its half of the shuffled units: per unit, by the wall clock. */
static double fill_by_two(void)
{
	pthread_t t;
	unit = PAGE;
	shuffled(order, SIZE / PAGE);
	double start = now_ns();
	pthread_create(&t, NULL, second_half, NULL);
	touch(0, SIZE / PAGE / 2);
	pthread_join(t, NULL);
	return (now_ns() - start) / (SIZE / PAGE);
}

/* Columns: fault at each unit (per unit, all its pages touched), fault 4 KiB in address order,
 * eviction per page in runs of each length, eviction of 64 scattered pages per call, two threads. */
static void measure(double *out, int alone)
{
	pthread_t t;
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	engine->setup();
	own_stack();
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	unit = PAGE;
	if (engine->handoff && pthread_create(&t, NULL, handler, NULL))
		DIE("pthread_create");
	fill_all(64 << 10, 0); /* warm-up */
	evict_all(PAGE);
	for (int u = 0; u < UNITS; u++) {
		out[u] = fill_all(unit_sizes[u], 0);
		evict_all(64 << 10);
	}
	for (int r = 0; r < RUNS; r++) {
		double t4 = fill_all(r ? 64 << 10 : PAGE, 1);
		if (!r)
			out[UNITS] = t4;
		out[UNITS + 1 + r] = evict_all(run_pages[r] * PAGE);
	}
	out[COLS - 2] = out[COLS - 1] = 0;
	if (engine->evict_scattered) {
		fill_all(64 << 10, 1);
		out[COLS - 2] = evict_scattered();
	}
	/* One handler and one scratch page serve one thread. */
	if (alone && !engine->handoff && !engine->one_thread)
		out[COLS - 1] = fill_by_two();
}

static void run_child(const struct engine *e, int with_sibling, double *out)
{
	pid_t pid = fork();
	if (!pid) {
		pthread_t t;
		engine = e;
		pin_to(0);
		if (with_sibling && pthread_create(&t, NULL, sibling, NULL))
			DIE("pthread_create");
		usleep(1000);
		measure(out, !with_sibling);
		_exit(0);
	}
	int status;
	waitpid(pid, &status, 0);
	if (status)
		fprintf(stderr, "%s: failed, status %x\n", e->name, status), exit(1);
}

static void report(const char *title, int rounds, double v[rounds][engine_count][COLS])
{
	printf("\n%s (ns; in brackets: ratio to uffd-sigbus within the round, medians of %d)\n", title, rounds);
	printf("%-14s %16s %16s %16s %16s | %15s %15s %15s %15s %9s %16s\n", "engine", "fault 4K", "fault 16K", "fault 64K",
	       "4K in order", "evict/page x1", "x4", "x16", "x64", "64 scatt.", "2 threads 4K");
	for (int e = 0; e < engine_count; e++) {
		printf("%-14s", engines[e].name);
		for (int c = 0; c < COLS; c++) {
			double a[rounds], b[rounds];
			for (int r = 0; r < rounds; r++)
				a[r] = v[r][e][c], b[r] = v[r][0][c] ? v[r][e][c] / v[r][0][c] : 0;
			if (c == COLS - 2)
				printf(" %9.0f", median(a, rounds));
			else
				printf("%s %*.0f (%.2f)", c == UNITS + 1 ? " |" : "", c > UNITS ? 8 : 9, median(a, rounds), median(b, rounds));
		}
		printf("\n");
	}
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 7;
	double(*v[2])[engine_count][COLS];
	for (int s = 0; s < 2; s++)
		v[s] = mmap(NULL, rounds * sizeof *v[s], PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ready = aligned_alloc(PAGE, MAX_RUN);
	sink = aligned_alloc(PAGE, MAX_RUN);
	memset(sink, 1, MAX_RUN);
	for (size_t i = 0; i < MAX_RUN; i += 8)
		*(uint64_t *)(ready + i) = 0x5ca1ab1e;
	double start = now_ns();
	for (int r = 0; r < rounds; r++)
		for (int s = 0; s < 2; s++)
			for (int e = 0; e < engine_count; e++)
				run_child(&engines[e], s, v[s][r][e]);
	for (int e = 0; e < engine_count; e++)
		printf("%-14s %s\n", engines[e].name, engines[e].how);
	report("1 thread alone", rounds, v[0]);
	report("a sibling thread spins on the other CPU", rounds, v[1]);
	printf("\n%.1f s in all\n", (now_ns() - start) / 1e9);
}
