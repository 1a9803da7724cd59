/*
 * grow MIB [SEED]: an array that realloc grows keeps its elements.
 *
 * glibc serves a large block by mmap and grows it by mremap, in place or moved, so most of what
 * moves is swapped out at that time. A second array grows beside the first and forces moves.
 *
 * That it is mremap, and not a copy, is seen from the mapping: each array's has a flag that a fresh
 * mapping does not have (MADV_DONTDUMP), and keeps it wherever it goes.
 */
#include "vswap_test.h"
#include <malloc.h>

struct array {
	uint64_t *items;
	uint64_t length, capacity;
};

static uint64_t moved, moved_swapped;

/* Text-like values: a counter with a few random bits. */
static uint64_t item(uint64_t seed, uint64_t i)
{
	return (mix(seed + i) & 0x3ff) | i << 20;
}

/* glibc's header of a block that has a mapping of its own is at the start of its first page. */
static char *mapping_of(const uint64_t *items)
{
	return (char *)((uintptr_t)items & ~(PAGE - 1));
}

static uint64_t pages_of(uint64_t *items)
{
	return ((char *)items + malloc_usable_size(items) - mapping_of(items) + PAGE - 1) / PAGE;
}

static bool is_marked(const void *address)
{
	char *line = NULL;
	size_t size = 0;
	unsigned long start, end;
	bool inside = false, marked = false;
	FILE *maps = fopen("/proc/self/smaps", "r");
	REQUIRE(maps != NULL);
	while (getline(&line, &size, maps) > 0) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= (uintptr_t)address && (uintptr_t)address < end;
		else if (inside && strncmp(line, "VmFlags:", 8) == 0)
			marked = strstr(line, " dd") != NULL;
	}
	fclose(maps);
	free(line);
	return marked;
}

static void grow(struct array *array)
{
	uint64_t *old = array->items;
	uint64_t pages = old == NULL ? 0 : pages_of(old);
	uint64_t swapped = old == NULL ? 0 : pages - resident_pages(mapping_of(old), pages);
	array->capacity += array->capacity / 4 + 65536;
	array->items = realloc(old, array->capacity * sizeof *array->items);
	REQUIRE(array->items != NULL);
	if (old == NULL) {
		char *start = mapping_of(array->items);
		REQUIRE(madvise(start, pages_of(array->items) * PAGE, MADV_DONTDUMP) == 0);
	}
	REQUIRE(is_marked(array->items));
	if (old != NULL && array->items != old) {
		moved++;
		moved_swapped += swapped;
	}
}

static void push(struct array *array, uint64_t value)
{
	if (array->length == array->capacity)
		grow(array);
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
	REQUIRE(moved > 0 && (moved_swapped > 0 || !under_vswap()));
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
		REQUIRE(arrays[which].items != NULL && is_marked(arrays[which].items));
		for (uint64_t i = 0; i < arrays[which].length / 4; i += 511)
			REQUIRE(arrays[which].items[i] == item(seed + (uint64_t)which, i));
	}
	say("ok grow %lu items checksum %016lx", total, sum);
	return 0;
}
