/* Does holding work? One thread reads a file into memory that another thread keeps evicting, faults by
 * SIGSEGV: without a hook, with the buffer only touched before the call, and with it held. ./held */
#define _GNU_SOURCE
#include "bench.h"
#include "engines.h"
#include "patch.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define UNIT (16UL << 10)
#define UNITS 64
#define CALLS 20000
#define PRESENT 0x80
#define BUSY 0x40 /* below it: pins */

static const struct engine *engine = &engines[3]; /* procmem: no vector registers in its fill */
static _Atomic uint8_t words[SIZE / UNIT];
static _Atomic int lock, stop;
static char *store;
static enum { UNHOOKED, TOUCHED, HELD } mode;
static long evictions;

/* The engines of this spike take their data from two globals. */
static void fill_or_evict(size_t u, int evict)
{
	while (atomic_exchange(&lock, 1))
		;
	ready = sink = store + u * UNIT;
	(evict ? engine->evict : engine->fill)(mem + u * UNIT, UNIT);
	atomic_store(&lock, 0);
}

/* Makes a unit present; with `pins` it stays so until as many are taken away. */
static void resident(size_t u, int pins)
{
	for (;;) {
		uint8_t word = atomic_load(&words[u]);
		if (word & PRESENT) {
			if (!pins || atomic_compare_exchange_weak(&words[u], &word, word + pins))
				return;
		} else if (word == 0 && atomic_compare_exchange_weak(&words[u], &word, BUSY)) {
			fill_or_evict(u, 0);
			atomic_store(&words[u], PRESENT);
		}
	}
}

static void *evictor(void *arg)
{
	uint64_t x = 1;
	pin_to(1);
	while (!stop) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		size_t u = (x >> 33) % UNITS;
		uint8_t unpinned = PRESENT;
		if (atomic_compare_exchange_strong(&words[u], &unpinned, BUSY)) {
			fill_or_evict(u, 1);
			atomic_store(&words[u], 0);
			evictions++;
		}
	}
	return arg;
}

static void on_fault(int sig, siginfo_t *info, void *ctx)
{
	size_t u = ((char *)info->si_addr - mem) / UNIT;
	if (u >= UNITS)
		signal(sig, SIG_DFL);
	else
		resident(u, 0);
}

long serve(long nr, long a1, long a2, long a3, long a4, long a5, long a6)
{
	size_t u = ((char *)a2 - mem) / UNIT;
	if (nr != SYS_pread64 || u >= UNITS || mode == UNHOOKED)
		return gate_syscall(nr, a1, a2, a3, a4, a5, a6);
	resident(u, mode == HELD);
	long result = gate_syscall(nr, a1, a2, a3, a4, a5, a6);
	if (mode == HELD)
		atomic_fetch_sub(&words[u], 1);
	return result;
}

static void run(void)
{
	static char pattern[UNIT], altstack[64 << 10];
	stack_t ss = { .ss_sp = altstack, .ss_size = sizeof altstack };
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	long refused = 0, short_reads = 0, wrong = 0;
	pthread_t t;
	alarm(30);
	for (size_t i = 0; i < UNIT; i++)
		pattern[i] = i * 7 + i / 256;
	int fd = memfd_create("file", 0);
	if (write(fd, pattern, UNIT) != (ssize_t)UNIT)
		abort();
	engine->setup();
	sigaltstack(&ss, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	if (mode != UNHOOKED && patch_object("/libc.so.6") < 100)
		abort();
	pthread_create(&t, NULL, evictor, NULL);
	pin_to(0);
	double start = now_ns();
	for (long i = 0; i < CALLS; i++) {
		char *at = mem + (i * 37 % UNITS) * UNIT;
		ssize_t got = pread(fd, at, UNIT, 0);
		refused += got < 0 && errno == EFAULT;
		short_reads += got >= 0 && got < (ssize_t)UNIT;
		wrong += got == (ssize_t)UNIT && memcmp(at, pattern, UNIT);
		if (got == (ssize_t)UNIT)
			memset(at, 0, UNIT);
	}
	double each = (now_ns() - start) / CALLS;
	stop = 1;
	pthread_join(t, NULL);
	printf("%-34s %ld calls, %ld evictions: %ld EFAULT, %ld short, %ld wrong; %.0f ns a turn\n",
	       mode == UNHOOKED ? "no hook" : mode == TOUCHED ? "patched libc, buffer only touched" : "patched libc, buffer held", (long)CALLS, evictions,
	       refused, short_reads, wrong, each);
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	store = mmap(NULL, UNITS * UNIT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (mode = UNHOOKED; mode <= HELD; mode++) {
		int status;
		pid_t pid = fork();
		if (!pid) {
			run();
			_exit(0);
		}
		waitpid(pid, &status, 0);
		if (status)
			printf("mode %d failed, status %x\n", mode, status);
	}
}
