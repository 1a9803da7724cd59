/*
 * exclude ROUNDS: memory that stops being paged keeps its content, whatever else is under way.
 *
 * Evicted memory becomes an alternate signal stack, which the pager has to bring back, while another
 * thread drops memory of its own past libc. Its events are pending then, and as long as they are the
 * kernel refuses to fill pages. A mapping of which a part is excluded shrinks, grows and moves like
 * any other: once mremap of one waited for the pager, which waited for mremap.
 */
#include "vswap_test.h"
#include <stdatomic.h>

#define N 256ul

static atomic_bool stop;

/* A system call from this very code: libc's function `syscall` is hooked as its other calls are. */
static long drop_unseen(void *start, uint64_t pages)
{
#ifdef __x86_64__
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"((long)SYS_madvise), "D"(start), "S"(pages * PAGE),
			   "d"((long)MADV_DONTNEED)
			 : "rcx", "r11", "memory");
	return result;
#else
	return madvise(start, pages * PAGE, MADV_DONTNEED);
#endif
}

static void *drop_now_and_then(void *own)
{
	struct timespec pause = { 0, 20000 };
	while (!atomic_load(&stop)) {
		REQUIRE(drop_unseen(own, N) == 0);
		nanosleep(&pause, NULL);
	}
	return own;
}

static uint64_t make_a_signal_stack(uint64_t seed)
{
	char *memory = map(N);
	fill_range(memory, N, seed);
	evict(memory, N);
	stack_t stack = { .ss_sp = memory, .ss_size = N * PAGE }, none = { .ss_flags = SS_DISABLE };
	REQUIRE(sigaltstack(&stack, NULL) == 0);
	uint64_t sum = check_range(memory, 0, N, seed, "signal stack");
	REQUIRE(sigaltstack(&none, NULL) == 0);
	REQUIRE(munmap(memory, N * PAGE) == 0);
	return sum;
}

static uint64_t remap_with_a_part_excluded(uint64_t seed)
{
	char *memory = map(N);
	fill_range(memory, N, seed);
	stack_t stack = { .ss_sp = memory, .ss_size = 4 * PAGE }, none = { .ss_flags = SS_DISABLE };
	REQUIRE(sigaltstack(&stack, NULL) == 0);
	REQUIRE(sigaltstack(&none, NULL) == 0);
	evict(memory + 4 * PAGE, N - 4);
	REQUIRE(mremap(memory, N * PAGE, N / 2 * PAGE, 0) == memory);
	REQUIRE(mremap(memory, N / 2 * PAGE, 1ul << 60, MREMAP_MAYMOVE) == MAP_FAILED);
	REQUIRE(mremap(memory, N / 2 * PAGE, N * PAGE, 0) == memory);
	evict(memory + 4 * PAGE, N - 4);
	check_range(memory, 0, N / 2, seed, "grown in place");
	REQUIRE(mremap(memory, N * PAGE, N / 2 * PAGE, 0) == memory);
	char *moved = mremap(memory, N / 2 * PAGE, 2 * N * PAGE, MREMAP_MAYMOVE);
	REQUIRE(moved != MAP_FAILED);
	fill_range(moved + N / 2 * PAGE, N, seed + 1);
	evict(moved, 2 * N);
	uint64_t sum = check_range(moved, 0, N / 2, seed, "moved with a part excluded");
	check_range(moved + N / 2 * PAGE, 0, N, seed + 1, "grown");
	REQUIRE(munmap(moved, 2 * N * PAGE) == 0);
	return sum;
}

int main(int argc, char **argv)
{
	uint64_t rounds = argument(argc, argv, 1, 100), sum = 0;
	pthread_t dropper;
	char *first = map(N), *dropped = map(N);
	fill_range(first, N, 1);
	evict(first, N);
	REQUIRE(pthread_create(&dropper, NULL, drop_now_and_then, dropped) == 0);
	for (uint64_t round = 0; round < rounds; round++)
		sum += make_a_signal_stack(round + 2) + remap_with_a_part_excluded(round + 3);
	atomic_store(&stop, true);
	REQUIRE(pthread_join(dropper, NULL) == 0);
	sum += check_range(first, 0, N, 1, "at the end");
	say("ok exclude checksum %016lx", sum);
	return 0;
}
