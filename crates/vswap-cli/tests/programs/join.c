/*
 * join MIB [SEED]: threads end, are joined, and others begin, with everything evicted.
 *
 * Before each step, every private writable mapping of the program is advised out: its heap, its data,
 * the thread library's blocks. Threads then return, call pthread_exit, run destructors of
 * thread-specific data, are cancelled in a blocking call, or are detached; and are joined. A kernel
 * that cannot write the word that pthread_join waits for leaves it waiting for ever.
 */
#include "vswap_test.h"
#include <semaphore.h>

#define THREADS 6

static pthread_key_t key;
static sem_t started, detached;
static int destroyed;
static char *ballast;
static uint64_t pages;

static void destroy(void *value)
{
	REQUIRE(((uint64_t *)value)[0] == 42);
	free(value);
	__atomic_add_fetch(&destroyed, 1, __ATOMIC_SEQ_CST);
}

static void *thread(void *argument)
{
	uintptr_t how = (uintptr_t)argument;
	uint64_t *own = calloc(1000, sizeof *own);
	REQUIRE(own != NULL);
	own[0] = 42;
	REQUIRE(pthread_setspecific(key, own) == 0);
	sem_post(&started);
	if (how % 3 == 0)
		return argument;
	if (how % 3 == 1)
		pthread_exit(argument);
	for (;;)
		pause(); /* until it is cancelled */
}

static void *detached_thread(void *argument)
{
	thread((void *)(uintptr_t)((uintptr_t)argument * 3));
	sem_post(&detached);
	return NULL;
}

int main(int argc, char **argv)
{
	pages = argument(argc, argv, 1, 32) * MIB / PAGE;
	ballast = map(pages);
	fill_range(ballast, pages, 1);
	REQUIRE(pthread_key_create(&key, destroy) == 0);
	REQUIRE(sem_init(&started, 0, 0) == 0 && sem_init(&detached, 0, 0) == 0);

	for (int round = 0; round < 8; round++) {
		pthread_t threads[THREADS], alone;
		for (uintptr_t i = 0; i < THREADS; i++)
			REQUIRE(pthread_create(&threads[i], NULL, thread, (void *)i) == 0);
		for (int i = 0; i < THREADS; i++)
			REQUIRE(sem_wait(&started) == 0);
		evict_everything();
		for (uintptr_t i = 0; i < THREADS; i++) {
			void *result;
			if (i % 3 == 2)
				REQUIRE(pthread_cancel(threads[i]) == 0);
			REQUIRE(pthread_join(threads[i], &result) == 0);
			REQUIRE(result == (i % 3 == 2 ? PTHREAD_CANCELED : (void *)i));
			if (i % 2)
				evict_everything();
		}
		REQUIRE(pthread_create(&alone, NULL, detached_thread, NULL) == 0);
		REQUIRE(pthread_detach(alone) == 0);
		evict_everything();
		REQUIRE(sem_wait(&started) == 0 && sem_wait(&detached) == 0);
	}
	uint64_t sum = check_range(ballast, 0, pages, 1, "ballast");
	while (__atomic_load_n(&destroyed, __ATOMIC_SEQ_CST) < 8 * (THREADS + 1))
		sched_yield();
	say("ok join checksum %016lx", sum);
	return 0;
}
