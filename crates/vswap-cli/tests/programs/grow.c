/*
 * grow MIB [SEED]: an array that realloc grows keeps its elements.
 *
 * glibc serves a large block by mmap and grows it by mremap, in place or moved, so most of what
 * moves is swapped out at that time. A second array grows beside the first and forces moves.
 */
#include "vswap_test.h"

struct array {
	uint64_t *items;
	uint64_t length, capacity;
};

/* Text-like values: a counter with a few random bits, so that pages compress about 3:1. */
static uint64_t item(uint64_t seed, uint64_t i)
{
	return (mix(seed + i) & 0x3ff) | i << 20;
}

static void push(struct array *array, uint64_t value)
{
	if (array->length == array->capacity) {
		array->capacity += array->capacity / 4 + 65536;
		array->items = realloc(array->items, array->capacity * sizeof *array->items);
		REQUIRE(array->items != NULL);
	}
	array->items[array->length++] = value;
}

int main(int argc, char **argv)
{
	uint64_t total = argument(argc, argv, 1, 128) * MIB / sizeof(uint64_t);
	uint64_t seed = argument(argc, argv, 2, 1);
	struct array arrays[2] = { 0 };

	for (uint64_t i = 0; i < total / 2; i++)
		for (int which = 0; which < 2; which++)
			push(&arrays[which], item(seed + (uint64_t)which, i));
	uint64_t sum = 0;
	for (int which = 0; which < 2; which++) {
		for (uint64_t i = 0; i < arrays[which].length; i++) {
			uint64_t value = arrays[which].items[i];
			if (value != item(seed + (uint64_t)which, i))
				fail("array %d item %lu is %016lx", which, i, value);
			sum += mix(value);
		}
		/* Shrinking gives the tail back and keeps the head. */
		arrays[which].items = realloc(arrays[which].items, arrays[which].length * 2);
		REQUIRE(arrays[which].items != NULL);
		for (uint64_t i = 0; i < arrays[which].length / 4; i += 511)
			REQUIRE(arrays[which].items[i] == item(seed + (uint64_t)which, i));
	}
	say("ok grow %lu items checksum %016lx", total, sum);
	return 0;
}
