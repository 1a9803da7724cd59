/*
 * threads MIB THREADS ROUNDS [SEED]: threads write and verify pages at random, in one mapping.
 *
 * Page i belongs to thread i mod THREADS, so neighbouring pages are faulted, evicted and read ahead
 * on behalf of different threads at the same time. The versions are in shared memory, never paged,
 * and no thread waits on a word in paged memory, so this runs under both engines.
 */
#include "vswap_test.h"

static char *data;
static uint8_t *version;
static uint64_t pages, threads, rounds, seed;

struct worker {
	pthread_t thread;
	uint64_t index, sum;
};

static uint64_t key(uint64_t i)
{
	return key_of(seed + version[i], i);
}

static void *work(void *argument)
{
	struct worker *me = argument;
	struct rng rng = { seed * 1000 + me->index };
	uint64_t mine = (pages - me->index + threads - 1) / threads;
	for (uint64_t i = me->index; i < pages; i += threads)
		fill_page(data + i * PAGE, key(i));
	for (uint64_t round = 0; round < rounds * mine; round++) {
		uint64_t i = below(&rng, mine) * threads + me->index;
		me->sum += check_page(data + i * PAGE, key(i), "random");
		if (draw(&rng) % 3 == 0) {
			version[i]++;
			fill_page(data + i * PAGE, key(i));
		}
	}
	for (uint64_t i = me->index; i < pages; i += threads)
		me->sum += check_page(data + i * PAGE, key(i), "in order");
	return NULL;
}

int main(int argc, char **argv)
{
	pages = argument(argc, argv, 1, 64) * MIB / PAGE;
	threads = argument(argc, argv, 2, 4);
	rounds = argument(argc, argv, 3, 1);
	seed = argument(argc, argv, 4, 1);
	REQUIRE(threads >= 1 && threads <= 64);
	data = map(pages);
	version = mmap(NULL, pages, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(version != MAP_FAILED);

	/* On main's stack, which is not paged: pthread_join and clone get pointers into it. */
	struct worker workers[64] = { 0 };
	for (uint64_t i = 0; i < threads; i++) {
		workers[i].index = i;
		REQUIRE(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
	}
	uint64_t sum = 0;
	for (uint64_t i = 0; i < threads; i++) {
		REQUIRE(pthread_join(workers[i].thread, NULL) == 0);
		sum += workers[i].sum;
	}
	say("ok threads %lu pages checksum %016lx", pages, sum);
	return 0;
}
