/*
 * rest MIB [threads|random|words] [twice]: fills memory and rests, all of it resident as far as the budget allows.
 *
 * Evicts nothing itself, so that what others do with its memory can be seen. After a line on its
 * standard input it verifies all of it. `threads`: a second thread is there, which makes the engine
 * watch a program that is far below its budget. `random`: none of it compresses. `words`: 256 words in
 * random order, which zstd makes much smaller than lz4 does. `twice`: it says `again` then, and rests again.
 */
#include "vswap_test.h"

static void *idle(void *argument)
{
	pause();
	return argument;
}

/* The numbers that the words of memory are made of, below this. */
static uint64_t vocabulary = UINT64_MAX;

static uint64_t expected(uint64_t i)
{
	return mix(mix(i + 1) % vocabulary);
}

static void fill_drawn(uint64_t *words, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		words[i] = expected(i);
}

static uint64_t check_drawn(const uint64_t *words, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		if (words[i] != expected(i))
			fail("word %lu holds %016lx", i, words[i]);
	return mix(words[count - 1]);
}

int main(int argc, char **argv)
{
	uint64_t pages = argument(argc, argv, 1, 32) * MIB / PAGE;
	pthread_t thread;
	char line[64];
	if (argc > 2 && strcmp(argv[2], "threads") == 0)
		REQUIRE(pthread_create(&thread, NULL, idle, NULL) == 0);
	char *data = map(pages);
	bool twice = strcmp(argv[argc - 1], "twice") == 0;
	if (twice)
		argc--;
	bool drawn = argc > 2 && strcmp(argv[2], "threads") != 0;
	if (argc > 2 && strcmp(argv[2], "words") == 0)
		vocabulary = 256;
	if (drawn)
		fill_drawn((uint64_t *)data, pages * WORDS);
	else
		fill_range(data, pages, 1);
	say("ready %d", (int)getpid());
	REQUIRE(read(STDIN_FILENO, line, sizeof line) >= 0);
	uint64_t sum = drawn ? check_drawn((uint64_t *)data, pages * WORDS) :
				check_range(data, 0, pages, 1, "after a rest");
	if (twice) {
		say("again");
		REQUIRE(read(STDIN_FILENO, line, sizeof line) >= 0);
	}
	say("ok rest checksum %016lx", sum);
	return 0;
}
