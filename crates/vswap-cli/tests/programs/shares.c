/*
 * shares MIB ORDER [random]: who frees what a fork made common, and when.
 *
 * Fills memory, forks, and both sides free it: the parent first (`parent`), the child first (`child`), the
 * child by its end (`exit`), or each a half in turn (`halves`). Before each step it says `step NAME` and
 * waits for a line; the data that is left is verified at each.
 */
#include "vswap_test.h"

static char *data;
static uint64_t pages;
static bool incompressible;
static int down[2], up[2];

static void fill(void)
{
	fill_range(data, pages, 1);
	for (uint64_t i = 0; incompressible && i < pages; i++)
		for (uint64_t word = 0; word < WORDS; word++)
			((uint64_t *)(data + i * PAGE))[word] = mix(i * WORDS + word + 1);
}

static void check(uint64_t first, uint64_t end, const char *who)
{
	if (!incompressible) {
		check_range(data + first * PAGE, first, end - first, 1, who);
		return;
	}
	for (uint64_t i = first; i < end; i++)
		for (uint64_t word = 0; word < WORDS; word++)
			if (((volatile uint64_t *)(data + i * PAGE))[word] !=
			    mix(i * WORDS + word + 1))
				fail("%s: page %lu word %lu", who, i, word);
}

static void drop(uint64_t first, uint64_t end)
{
	REQUIRE(munmap(data + first * PAGE, (end - first) * PAGE) == 0);
}

static void await(const char *name)
{
	char line[16];
	uint64_t n = 0;
	say("step %s", name);
	do
		REQUIRE(read(STDIN_FILENO, line + n, 1) == 1);
	while (line[n] != '\n' && ++n < sizeof line);
}

/* `v`: verify the half, `d`: drop it; lower case is the first half, upper the second; `e`: end. */
static void obey(void)
{
	char order;
	while (read(down[0], &order, 1) == 1) {
		if (order == 'v' || order == 'V')
			check(order == 'v' ? 0 : pages / 2, order == 'v' ? pages / 2 : pages,
			      "child");
		if (order == 'd' || order == 'D')
			drop(order == 'd' ? 0 : pages / 2, order == 'd' ? pages / 2 : pages);
		REQUIRE(write(up[1], &order, 1) == 1);
		if (order == 'e')
			_exit(0);
	}
	_exit(9);
}

static void order(const char *orders)
{
	char done;
	for (; *orders != 0; orders++) {
		REQUIRE(write(down[1], orders, 1) == 1);
		REQUIRE(read(up[0], &done, 1) == 1 && done == *orders);
	}
}

int main(int argc, char **argv)
{
	const char *who = argc > 2 ? argv[2] : "parent";
	int status = -1;
	pages = argument(argc, argv, 1, 48) * MIB / PAGE;
	incompressible = argc > 3 && strcmp(argv[3], "random") == 0;
	data = map(pages);
	fill();
	REQUIRE(pipe(down) == 0 && pipe(up) == 0);
	await("filled");
	pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0)
		obey();
	await("forked");
	if (strcmp(who, "parent") == 0) {
		drop(0, pages);
		await("half");
		order("vVdD");
	} else if (strcmp(who, "child") == 0) {
		order("vVdD");
		await("half");
		check(0, pages, "parent");
		drop(0, pages);
	} else if (strcmp(who, "exit") == 0) {
		order("ve");
		await("half");
		check(0, pages, "parent");
		drop(0, pages);
	} else {
		drop(0, pages / 2);
		order("vD");
		await("half");
		check(pages / 2, pages, "parent");
		drop(pages / 2, pages);
		order("vd");
	}
	await("freed");
	if (strcmp(who, "exit") != 0)
		order("e");
	REQUIRE(waitpid(child, &status, 0) == child && status == 0);
	say("ok shares");
	return 0;
}
