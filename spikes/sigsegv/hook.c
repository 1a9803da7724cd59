/* What it costs to see every system call before the kernel does: ./hook [rounds].
 * Each way runs in its own child (a seccomp filter stays for ever); within a round all take turns. */
#define _GNU_SOURCE
#include "bench.h"
#include "patch.h"
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define REGION (1UL << 30)
#define CALLS 20000

/* --- holding: a table by system-call number says which argument points to how much --- */

struct buffer {
	uint8_t pointer, length; /* argument numbers from 1; 0: none */
};
static const struct buffer buffers[512] = {
	[SYS_read] = { 2, 3 }, [SYS_write] = { 2, 3 }, [SYS_pread64] = { 2, 3 }, [SYS_pwrite64] = { 2, 3 },
};
static char *region;
static _Atomic uint8_t *units; /* per 4 KiB unit: bit 7 present, below it the pins */
static int holding;

__attribute__((target("general-regs-only"), noinline)) static void hold(char *at, size_t len, int by)
{
	size_t first = (at - region) / PAGE, last = (at + len - 1 - region) / PAGE;
	for (size_t u = first; u <= last; u++)
		if (!(atomic_fetch_add_explicit(&units[u], by, memory_order_acq_rel) & 0x80))
			__builtin_trap(); /* an engine would fill the unit here */
}

__attribute__((target("general-regs-only"))) long serve(long nr, long a1, long a2, long a3, long a4, long a5, long a6)
{
	struct buffer b = holding && (unsigned long)nr < 512 ? buffers[nr] : (struct buffer){ 0, 0 };
	long args[] = { 0, a1, a2, a3, a4, a5, a6 };
	char *at = (char *)args[b.pointer];
	if (!b.pointer || at < region || at >= region + REGION)
		return gate_syscall(nr, a1, a2, a3, a4, a5, a6);
	hold(at, args[b.length], 1);
	long result = gate_syscall(nr, a1, a2, a3, a4, a5, a6);
	hold(at, args[b.length], -1);
	return result;
}

/* --- the ways --- */

static void on_sigsys(int sig, siginfo_t *info, void *ctx)
{
	greg_t *r = ((ucontext_t *)ctx)->uc_mcontext.gregs;
	r[REG_RAX] = serve(info->si_syscall, r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]);
}

/* libc's own return from a signal would be intercepted as well. */
static void catch_sigsys(void)
{
	struct {
		void (*handler)(int, siginfo_t *, void *);
		unsigned long flags;
		void (*restorer)(void);
		unsigned long mask;
	} sa = { on_sigsys, SA_SIGINFO | SA_NODEFER | 0x04000000, gate_sigreturn, 0 };
	if (gate_syscall(SYS_rt_sigaction, SIGSYS, (long)&sa, 0, 8, 0, 0))
		abort();
}

static char selector;
static void dispatch(int block)
{
	catch_sigsys();
	if (prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, gate_start, gate_end - gate_start, &selector))
		DIE("syscall user dispatch");
	selector = block;
}
static void dispatch_allow(void) { dispatch(0); }
static void dispatch_block(void) { dispatch(1); }

static void filter(uint32_t otherwise)
{
	uint64_t lo = (uint64_t)gate_start, hi = (uint64_t)gate_end;
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, lo >> 32, 0, 4),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)),
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (uint32_t)lo, 0, 2),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, (uint32_t)hi, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, otherwise),
	};
	struct sock_fprog prog = { sizeof code / sizeof *code, code };
	catch_sigsys();
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
		DIE("seccomp");
}
static void filter_allow(void) { filter(SECCOMP_RET_ALLOW); }
static void filter_trap(void) { filter(SECCOMP_RET_TRAP); }
static void patched(void)
{
	if (patch_object("/libc.so.6") < 100)
		abort();
}
static void patched_and_dispatch(void)
{
	patched();
	dispatch(1);
}
static void plain(void) {}

static const struct way {
	const char *name;
	void (*start)(void);
	int holding;
} ways[] = {
	{ "plain", plain, 0 },
	{ "dispatch armed, selector allows", dispatch_allow, 0 },
	{ "dispatch, SIGSYS per call", dispatch_block, 0 },
	{ "dispatch + hold", dispatch_block, 1 },
	{ "seccomp filter that allows", filter_allow, 0 },
	{ "seccomp trap, SIGSYS per call", filter_trap, 0 },
	{ "seccomp trap + hold", filter_trap, 1 },
	{ "patched libc", patched, 0 },
	{ "patched libc + hold", patched, 1 },
	{ "the same, dispatch for the rest", patched_and_dispatch, 1 },
};
enum { WAYS = sizeof ways / sizeof *ways, CASES = 4 };

static void measure(double *out)
{
	int fd = memfd_create("file", 0), null = open("/dev/null", O_WRONLY);
	char *buf = region + 3 * PAGE;
	if (ftruncate(fd, 1 << 20) || pwrite(fd, buf, 65536, 0) != 65536)
		abort();
	for (int c = 0; c < CASES; c++) {
		int calls = c == 3 ? CALLS / 4 : CALLS;
		double start = now_ns();
		for (int i = 0; i < calls; i++) {
			long bad = 0;
			switch (c) {
			case 0: bad = getppid() <= 0; break;
			case 1: bad = write(null, buf, 1) != 1; break;
			case 2: bad = pread(fd, buf, 4096, 0) != 4096; break;
			case 3: bad = pread(fd, buf, 65536, 0) != 65536; break;
			}
			if (bad)
				abort();
		}
		out[c] = (now_ns() - start) / calls;
	}
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 9;
	double(*v)[WAYS][CASES] = mmap(NULL, rounds * sizeof *v, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	region = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	units = mmap(NULL, REGION / PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset((void *)units, 0x80, REGION / PAGE);
	memset(region, 1, 1 << 20);
	for (int r = 0; r < rounds; r++)
		for (int w = 0; w < WAYS; w++) {
			int status;
			pid_t pid = fork();
			if (!pid) {
				pin_to(0);
				holding = ways[w].holding;
				double mine[CASES];
				/* Warm before the hook is on, and let the hook's own start-up settle. */
				measure(mine);
				ways[w].start();
				measure(mine);
				measure(v[r][w]);
				gate_syscall(SYS_exit_group, 0, 0, 0, 0, 0, 0);
			}
			waitpid(pid, &status, 0);
			if (status)
				fprintf(stderr, "%s: failed, status %x\n", ways[w].name, status), exit(1);
		}
	printf("ns per call; in brackets: what the way adds to plain in the same round (medians of %d)\n", rounds);
	printf("%-34s %16s %16s %16s %18s\n", "way", "getppid", "write 1 B", "pread 4 KiB", "pread 64 KiB");
	for (int w = 0; w < WAYS; w++) {
		printf("%-34s", ways[w].name);
		for (int c = 0; c < CASES; c++) {
			double a[rounds], d[rounds];
			for (int r = 0; r < rounds; r++)
				a[r] = v[r][w][c], d[r] = v[r][w][c] - v[r][0][c];
			printf(" %8.0f (%+6.0f)", median(a, rounds), median(d, rounds));
		}
		printf("\n");
	}
}
