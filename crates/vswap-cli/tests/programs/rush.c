/*
 * rush HOW MIB: allocates as fast as it can, for the budget to hold against.
 *
 * HOW is `touch` (one big mapping), `threads` (four threads, a mapping each), `populate`
 * (MAP_POPULATE, several times), `huge` (huge pages), `malloc`, `small` (mappings of 64 KiB),
 * `processes` (four children), `inherited` (a child fills what its parent mapped), `shared` (a child reads
 * what its parent filled, and both keep it) or `traps` (mappings of 1 MiB made past libc, but for one
 * call). Everything stays allocated, is verified, and is then freed.
 */
#include "mapping_calls.h"

static uint64_t pages;

static void *touch(void *seed)
{
	uint64_t sum = 0, own = (uintptr_t)seed;
	char *data = map(pages);
	fill_range(data, pages, own);
	sum = check_range(data, 0, pages, own, "touched");
	return (void *)(uintptr_t)sum;
}

static uint64_t in_threads(void)
{
	pthread_t threads[4];
	uint64_t sum = 0;
	pages /= 4;
	for (uintptr_t i = 0; i < 4; i++)
		REQUIRE(pthread_create(&threads[i], NULL, touch, (void *)i) == 0);
	for (int i = 0; i < 4; i++) {
		void *result;
		REQUIRE(pthread_join(threads[i], &result) == 0);
		sum += (uintptr_t)result;
	}
	return sum;
}

static uint64_t populate(void)
{
	uint64_t sum = 0;
	for (uint64_t round = 0; round < 3; round++) {
		char *data = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		REQUIRE(data != MAP_FAILED);
		for (uint64_t i = 0; i < pages; i += 16)
			fill_page(data + i * PAGE, key_of(round, i));
		for (uint64_t i = 0; i < pages; i++)
			sum += check_page(data + i * PAGE, i % 16 ? 0 : key_of(round, i), "populated");
		REQUIRE(munmap(data, pages * PAGE) == 0);
	}
	return sum;
}

static uint64_t touch_huge(void)
{
	char *data = map(pages);
	/* A kernel without huge pages makes it an ordinary rush. */
	madvise(data, pages * PAGE, MADV_HUGEPAGE);
	fill_range(data, pages, 1);
	return check_range(data, 0, pages, 1, "touched by huge pages");
}

/* Blocks of all sizes; the first word of each links to the last. */
static uint64_t allocate(void)
{
	struct rng rng = { 1 };
	uint64_t left = pages * PAGE, sum = 0, *last = NULL, blocks = 0;
	while (left > 0) {
		uint64_t words = 4 + below(&rng, below(&rng, 64) == 0 ? 100000 : 500);
		uint64_t *block = malloc(words * sizeof *block);
		REQUIRE(block != NULL);
		for (uint64_t i = 2; i < words; i++)
			block[i] = words;
		block[0] = (uintptr_t)last;
		block[1] = words;
		last = block;
		blocks++;
		left -= left < words * 8 ? left : words * 8;
	}
	while (last != NULL) {
		uint64_t *block = last, words = block[1];
		for (uint64_t i = 2; i < words; i++)
			REQUIRE(block[i] == words);
		sum += mix(words);
		last = (uint64_t *)(uintptr_t)block[0];
		free(block);
	}
	return sum + blocks;
}

static uint64_t small_mappings(void)
{
	uint64_t count = pages / 16, sum = 0;
	char **starts = map(count * sizeof *starts / PAGE + 1);
	for (uint64_t i = 0; i < count; i++) {
		starts[i] = map(16);
		/* Keeps neighbours from merging into one mapping. */
		REQUIRE(mprotect(starts[i] + 15 * PAGE, PAGE, PROT_READ) == 0);
		fill_range(starts[i], 15, i);
	}
	for (uint64_t i = 0; i < count; i++) {
		sum += check_range(starts[i], 0, 15, i, "small mapping");
		REQUIRE(munmap(starts[i], 16 * PAGE) == 0);
	}
	return sum;
}

static uint64_t in_processes(void)
{
	pid_t children[4];
	uint64_t sum = 0;
	for (uintptr_t i = 0; i < 4; i++) {
		children[i] = fork();
		REQUIRE(children[i] >= 0);
		if (children[i] == 0) {
			touch((void *)i);
			_exit((int)i);
		}
	}
	for (int i = 0; i < 4; i++) {
		int status;
		REQUIRE(waitpid(children[i], &status, 0) == children[i]);
		REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == i);
		sum += mix((uint64_t)status);
	}
	return sum;
}

static uint64_t inherited(void)
{
	int status;
	char *data = map(pages);
	pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0) {
		fill_range(data, pages, 1);
		check_range(data, 0, pages, 1, "inherited");
		_exit(0);
	}
	REQUIRE(waitpid(child, &status, 0) == child && status == 0);
	return check_page(data, 0, "left alone");
}

static uint64_t shared(void)
{
	int status;
	char *data = map(pages);
	fill_range(data, pages, 1);
	pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0) {
		check_range(data, 0, pages, 1, "shared, in the child");
		_exit(0);
	}
	REQUIRE(waitpid(child, &status, 0) == child && status == 0);
	return check_range(data, 0, pages, 1, "shared");
}

/* Mappings of 1 MiB, each filled as soon as it is there, with a pause of a millisecond behind it: whoever
 * looks for them has to get a CPU, on a busy machine too. After an eighth of them comes the only call that
 * vswap can see. */
static uint64_t past_libc(void)
{
	uint64_t count = pages * PAGE / MIB, sum = 0;
	struct timespec pause = { 0, 1000000 };
	way = TRAP;
	char **starts = do_mmap(NULL, count * sizeof *starts / PAGE + 1, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(starts != MAP_FAILED);
	for (uint64_t i = 0; i < count; i++) {
		starts[i] = do_mmap(NULL, MIB / PAGE, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		REQUIRE(starts[i] != MAP_FAILED);
		fill_range(starts[i], MIB / PAGE, i);
		nanosleep(&pause, NULL);
		if (i == count / 8)
			REQUIRE(munmap(map(1), PAGE) == 0);
	}
	for (uint64_t i = 0; i < count; i++) {
		sum += check_range(starts[i], 0, MIB / PAGE, i, "mapped by a trap");
		REQUIRE(do_munmap(starts[i], MIB / PAGE) == 0);
	}
	return sum;
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "touch";
	uint64_t sum = 0;
	pages = argument(argc, argv, 2, 64) * MIB / PAGE;
	if (strcmp(how, "touch") == 0)
		sum = (uintptr_t)touch(NULL);
	else if (strcmp(how, "threads") == 0)
		sum = in_threads();
	else if (strcmp(how, "populate") == 0)
		sum = populate();
	else if (strcmp(how, "huge") == 0)
		sum = touch_huge();
	else if (strcmp(how, "inherited") == 0)
		sum = inherited();
	else if (strcmp(how, "shared") == 0)
		sum = shared();
	else if (strcmp(how, "malloc") == 0)
		sum = allocate();
	else if (strcmp(how, "small") == 0)
		sum = small_mappings();
	else if (strcmp(how, "traps") == 0)
		sum = past_libc();
	else if (strcmp(how, "processes") == 0)
		sum = in_processes();
	else
		fail("unknown way: %s", how);
	say("ok rush %s checksum %016lx", how, sum);
	return 0;
}
