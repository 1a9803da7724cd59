/*
 * neighbours: mappings right behind the zeroed data of every loaded object, made while the program
 * is small. The kernel merges them with that data; they are paged all the same.
 */
#include "vswap_test.h"
#include <link.h>

#define N 8ul
#define OBJECTS 16

static char *mapped[OBJECTS];
static uint64_t count;

static int map_behind(struct dl_phdr_info *object, size_t size, void *unused)
{
	uintptr_t end = 0;
	(void)size, (void)unused;
	for (int i = 0; i < object->dlpi_phnum; i++) {
		const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
		uintptr_t to = object->dlpi_addr + segment->p_vaddr + segment->p_memsz;
		if (segment->p_type == PT_LOAD && to > end)
			end = to;
	}
	void *wanted = (void *)((end + PAGE - 1) & ~(PAGE - 1));
	char *got = mmap(wanted, N * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (got == wanted && count < OBJECTS)
		mapped[count++] = got;
	return 0;
}

int main(void)
{
	uint64_t sum = 0;
	dl_iterate_phdr(map_behind, NULL);
	/* At least the program itself has nothing behind it; the heap is further up. */
	REQUIRE(count > 0);
	for (uint64_t i = 0; i < count; i++)
		fill_range(mapped[i], N, i);
	for (uint64_t i = 0; i < count; i++) {
		evict(mapped[i], N);
		sum += check_range(mapped[i], 0, N, i, "behind an object");
	}
	/* How many there are depends on what is loaded, which differs under vswap. */
	say("ok neighbours %s", sum != 0 ? "all there" : "");
	return 0;
}
