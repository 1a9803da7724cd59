/* Does another thread see a half-made page? ./torn: while one thread faults 16 KiB units in and evicts
 * them, a second one reads their last word; it may fault too (then it waits for the first). */
#define _GNU_SOURCE
#include "bench.h"
#include "engines.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define UNIT (16UL << 10)
#define UNITS 64
#define PASSES 200

enum state { ABSENT, BUSY, PRESENT };
static _Atomic int states[SIZE / UNIT];
static const struct engine *engine;
static _Atomic int stop;
static long torn, looked;

/* The state word decides who fills; the loser waits for the winner, and retries its access. */
static void on_fault(int sig, siginfo_t *info, void *ctx)
{
	size_t u = ((char *)info->si_addr - mem) / UNIT;
	if (u >= UNITS) {
		signal(sig, SIG_DFL);
		return;
	}
	int absent = ABSENT;
	if (atomic_compare_exchange_strong(&states[u], &absent, BUSY)) {
		engine->fill(mem + u * UNIT, UNIT);
		atomic_store(&states[u], PRESENT);
	} else
		while (atomic_load(&states[u]) == BUSY)
			;
}

static void own_stack(void)
{
	stack_t ss = { .ss_sp = malloc(64 << 10), .ss_size = 64 << 10 };
	sigaltstack(&ss, NULL);
}

static void *look(void *arg)
{
	own_stack();
	pin_to(1);
	for (size_t i = 0; !stop; i++) {
		volatile uint64_t *last = (uint64_t *)(mem + i % UNITS * UNIT + UNIT - 8);
		torn += *last != 0x5ca1ab1e;
		looked++;
	}
	return arg;
}

static void churn(void)
{
	for (int pass = 0; pass < PASSES; pass++) {
		for (size_t u = 0; u < UNITS; u++)
			(void)*(volatile char *)(mem + u * UNIT);
		for (size_t u = 0; u < UNITS; u++) {
			int present = PRESENT;
			if (atomic_compare_exchange_strong(&states[u], &present, BUSY)) {
				engine->evict(mem + u * UNIT, UNIT);
				atomic_store(&states[u], ABSENT);
			}
		}
	}
}

int main(void)
{
	ready = aligned_alloc(PAGE, MAX_RUN);
	sink = aligned_alloc(PAGE, MAX_RUN);
	memset(sink, 1, MAX_RUN);
	for (size_t i = 0; i < MAX_RUN; i += 8)
		*(uint64_t *)(ready + i) = 0x5ca1ab1e;
	setvbuf(stdout, NULL, _IONBF, 0);
	for (int e = 0; e < engine_count; e++) {
		engine = &engines[e];
		if (engine->handoff)
			continue;
		pid_t pid = fork();
		if (!pid) {
			pthread_t t;
			struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
			alarm(10);
			engine->setup();
			own_stack();
			sigaction(SIGSEGV, &sa, NULL);
			sigaction(SIGBUS, &sa, NULL);
			pin_to(0);
			pthread_create(&t, NULL, look, NULL);
			churn();
			stop = 1;
			pthread_join(t, NULL);
			printf("%-14s %6d fills, %9ld looks, %ld torn\n", engine->name, PASSES * UNITS, looked, torn);
			_exit(0);
		}
		int status;
		waitpid(pid, &status, 0);
		if (status)
			printf("%-14s failed, status %x\n", engine->name, status);
	}
}
