/*
 * heap MIB STEPS [THREADS [SEED]]: malloc, calloc, realloc and free keep their promises.
 *
 * Blocks of 16 bytes to 2 MiB, far more than the budget holds, so glibc's own chunk headers and bins
 * are swapped out as well. A block carries a pattern by its seed; calloc gives zeros also where a
 * freed block was swapped out; realloc keeps the common part; malloc_trim gives memory back.
 */
#include "vswap_test.h"
#include <malloc.h>

struct block {
	uint8_t *data;
	uint64_t size, seed;
};

struct worker {
	pthread_t thread;
	uint64_t seed, sum;
};

#define SLOTS 4096ul

static uint64_t budget, steps;

static uint8_t byte_of(uint64_t seed, uint64_t i)
{
	/* Runs of 64 equal bytes, so that the heap compresses. */
	return (uint8_t)mix(seed + i / 64);
}

static void fill_block(struct block *block, uint64_t from)
{
	for (uint64_t i = from; i < block->size; i++)
		block->data[i] = byte_of(block->seed, i);
}

static uint64_t check_block(const struct block *block, uint64_t size)
{
	for (uint64_t i = 0; i < size; i++)
		if (block->data[i] != byte_of(block->seed, i))
			fail("block %p of %lu bytes: byte %lu is %02x", (void *)block->data,
			     block->size, i, block->data[i]);
	return mix(block->seed + size);
}

static uint64_t random_size(struct rng *rng)
{
	switch (below(rng, 16)) {
	case 0:
		return 65536 + below(rng, 2 * MIB);
	case 1 ... 4:
		return 1024 + below(rng, 65536);
	default:
		return 16 + below(rng, 1024);
	}
}

static void allocate(struct block *block, struct rng *rng)
{
	block->size = random_size(rng);
	block->seed = draw(rng);
	if (draw(rng) % 2 == 0) {
		block->data = calloc(block->size, 1);
		REQUIRE(block->data != NULL);
		for (uint64_t i = 0; i < block->size; i++)
			if (block->data[i] != 0)
				fail("calloc(%lu): byte %lu is %02x", block->size, i,
				     block->data[i]);
	} else {
		block->data = malloc(block->size);
		REQUIRE(block->data != NULL);
	}
	fill_block(block, 0);
}

static void resize(struct block *block, struct rng *rng)
{
	uint64_t old = block->size, size = random_size(rng);
	block->data = realloc(block->data, size);
	REQUIRE(block->data != NULL);
	block->size = size;
	check_block(block, old < size ? old : size);
	if (size > old)
		fill_block(block, old);
}

static void *work(void *argument)
{
	struct worker *me = argument;
	struct rng rng = { me->seed };
	struct block *blocks = calloc(SLOTS, sizeof *blocks);
	REQUIRE(blocks != NULL);
	uint64_t held = 0;
	for (uint64_t step = 0; step < steps; step++) {
		struct block *block = &blocks[below(&rng, SLOTS)];
		held -= block->size;
		if (block->data == NULL && held < budget) {
			allocate(block, &rng);
		} else if (block->data != NULL) {
			me->sum += check_block(block, block->size);
			if (draw(&rng) % 3 == 0 && held < budget) {
				resize(block, &rng);
			} else {
				free(block->data);
				*block = (struct block){ 0 };
			}
		}
		held += block->size;
#ifdef __GLIBC__
		if (step % 8192 == 8191)
			malloc_trim(0);
#endif
	}
	for (uint64_t i = 0; i < SLOTS; i++) {
		if (blocks[i].data != NULL)
			me->sum += check_block(&blocks[i], blocks[i].size);
		free(blocks[i].data);
	}
	free(blocks);
	return NULL;
}

int main(int argc, char **argv)
{
	budget = argument(argc, argv, 1, 64) * MIB;
	steps = argument(argc, argv, 2, 20000);
	uint64_t threads = argument(argc, argv, 3, 1);
	uint64_t seed = argument(argc, argv, 4, 1), sum = 0;
	REQUIRE(threads >= 1 && threads <= 16);
	budget /= threads;

	struct worker workers[16];
	for (uint64_t i = 0; i < threads; i++) {
		workers[i] = (struct worker){ .seed = seed * 100 + i };
		REQUIRE(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
	}
	for (uint64_t i = 0; i < threads; i++) {
		REQUIRE(pthread_join(workers[i].thread, NULL) == 0);
		sum += workers[i].sum;
	}
	say("ok heap checksum %016lx", sum);
	return 0;
}
