/*
 * tcb [MIB]: what the kernel writes for a thread stays in memory, however the thread began.
 *
 * The first thread's control block comes from the loader; one thread runs on a stack from malloc and
 * began before anything was paged. Another then maps so much that paging begins, and advises out all
 * that there is. The control blocks (rseq area, robust list and clear_child_tid word are in them) and
 * the stacks have to be in memory still. All threads keep being scheduled, so that the kernel writes
 * their rseq areas.
 */
#include "vswap_test.h"

#define OWN_STACK (256 << 10)

struct task {
	pthread_t thread;
	void *control_block, *stack; /* its thread pointer, and an address in its stack */
};

static struct task first, on_own_stack;
static bool begun, finished;

static void note(struct task *task)
{
	task->control_block = __builtin_thread_pointer();
	task->stack = __builtin_frame_address(0);
}

static void *wait_for_the_end(void *unused)
{
	(void)unused;
	note(&on_own_stack);
	__atomic_store_n(&begun, true, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&finished, __ATOMIC_ACQUIRE))
		sched_yield();
	return NULL;
}

/* In memory, or in the kernel's swap, from where the kernel gets it when it wants to write there. */
static bool is_the_kernels(const void *address)
{
	uint64_t word;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	REQUIRE(pread(fd, &word, sizeof word, (off_t)((uintptr_t)address / PAGE * sizeof word)) ==
		sizeof word);
	close(fd);
	return word >> 62 != 0;
}

static void require_unevicted(const struct task *task, const char *who)
{
	void *parts[] = { task->control_block, task->stack };
	for (int i = 0; i < 2; i++)
		if (!is_the_kernels(parts[i]))
			fail("%s: the %s was evicted", who, i == 0 ? "control block" : "stack");
}

static void *evict_and_look(void *argument)
{
	uint64_t pages = (uintptr_t)argument, sum = 0;
	char *data = map(pages);
	fill_range(data, pages, 1);
	for (int round = 0; round < 20; round++) {
		evict_everything();
		require_unevicted(&first, "first thread");
		require_unevicted(&on_own_stack, "thread on a stack from malloc");
		sum += check_range(data, 0, pages / 16, 1, "filled");
		struct timespec moment = { 0, 2000000 };
		nanosleep(&moment, NULL);
	}
	evict(data, pages);
	sum += check_range(data, 0, pages, 1, "at the end");
	say("ok tcb checksum %016lx", sum);
	__atomic_store_n(&finished, true, __ATOMIC_RELEASE);
	return NULL;
}

int main(int argc, char **argv)
{
	uint64_t pages = argument(argc, argv, 1, 32) * MIB / PAGE;
	pthread_t evictor;
	pthread_attr_t attributes;
	note(&first);
	REQUIRE(pthread_attr_init(&attributes) == 0);
	REQUIRE(pthread_attr_setstack(&attributes, aligned_alloc(PAGE, OWN_STACK), OWN_STACK) == 0);
	REQUIRE(pthread_create(&on_own_stack.thread, &attributes, wait_for_the_end, NULL) == 0);
	while (!__atomic_load_n(&begun, __ATOMIC_ACQUIRE))
		sched_yield();
	REQUIRE(pthread_create(&evictor, NULL, evict_and_look, (void *)pages) == 0);
	while (!__atomic_load_n(&finished, __ATOMIC_ACQUIRE))
		sched_yield();
	REQUIRE(pthread_join(on_own_stack.thread, NULL) == 0);
	REQUIRE(pthread_join(evictor, NULL) == 0);
	return 0;
}
