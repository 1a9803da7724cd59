/*
 * rest MIB [threads]: fills memory and rests, all of it resident as far as the budget allows.
 *
 * Evicts nothing itself, so that what others do with its memory can be seen. After a line on its
 * standard input it verifies all of it. `threads`: a second thread is there, which makes the engine
 * watch a program that is far below its budget.
 */
#include "vswap_test.h"

static void *idle(void *argument)
{
	pause();
	return argument;
}

int main(int argc, char **argv)
{
	uint64_t pages = argument(argc, argv, 1, 32) * MIB / PAGE;
	pthread_t thread;
	char line[64];
	if (argc > 2 && strcmp(argv[2], "threads") == 0)
		REQUIRE(pthread_create(&thread, NULL, idle, NULL) == 0);
	char *data = map(pages);
	fill_range(data, pages, 1);
	say("ready %d", (int)getpid());
	REQUIRE(read(STDIN_FILENO, line, sizeof line) >= 0);
	uint64_t sum = check_range(data, 0, pages, 1, "after a rest");
	say("ok rest checksum %016lx", sum);
	return 0;
}
