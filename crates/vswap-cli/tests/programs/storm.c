/*
 * storm MIB CHILDREN AT_ONCE [THREADS]: many short-lived children of memory that is mostly swapped out.
 *
 * Each child verifies parts of what it has inherited, writes a part of its own, has a child of its own
 * now and then, and verifies both. The parent writes meanwhile, the threads make children, too.
 */
#include "vswap_test.h"

#define PART 48ul

static char *data;
static uint64_t pages, children, at_once;

/* What the pages of each part were last written with, by its thread. */
static uint64_t *seeds;
static uint64_t parts_per_thread;

static void check_part(uint64_t part, uint64_t seed)
{
	check_range(data + part * PART * PAGE, part * PART, PART, seed, "inherited");
}

static void child_work(uint64_t own, uint64_t number, bool with_child)
{
	struct rng rng = { .state = number };
	uint64_t first = own * parts_per_thread;
	uint64_t mine = first + below(&rng, parts_per_thread);
	for (int i = 0; i < 4; i++) {
		uint64_t part = first + below(&rng, parts_per_thread);
		check_part(part, seeds[part]);
	}
	fill_range(data + mine * PART * PAGE, PART, number);
	check_range(data + mine * PART * PAGE, 0, PART, number, "its own");
	if (with_child) {
		int status = -1;
		pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			check_range(data + mine * PART * PAGE, 0, PART, number, "grandchild");
			_exit(0);
		}
		REQUIRE(waitpid(child, &status, 0) == child && status == 0);
	}
	uint64_t other = mine == first ? first + 1 : first;
	check_part(other, seeds[other]);
	check_range(data + mine * PART * PAGE, 0, PART, number, "its own, later");
	_exit(0);
}

static void *make_children(void *argument)
{
	uint64_t own = (uint64_t)argument, first = own * parts_per_thread;
	struct rng rng = { .state = own + 77 };
	pid_t running[256];
	uint64_t begun = 0, ended = 0;
	while (ended < children) {
		if (begun < children && begun - ended < at_once) {
			uint64_t number = mix(own) + begun;
			pid_t child = fork();
			REQUIRE(child >= 0);
			if (child == 0)
				child_work(own, number, begun % 16 == 5);
			running[begun++ % at_once] = child;
			uint64_t part = first + below(&rng, parts_per_thread);
			seeds[part] = draw(&rng);
			for (uint64_t i = 0; i < PART; i++)
				fill_page(data + (part * PART + i) * PAGE,
					  key_of(seeds[part], part * PART + i));
			continue;
		}
		int status = -1;
		pid_t child = running[ended++ % at_once];
		REQUIRE(waitpid(child, &status, 0) == child);
		if (status != 0)
			fail("child %lu of thread %lu: wait status %x", ended - 1, own, status);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[8];
	pages = argument(argc, argv, 1, 48) * MIB / PAGE;
	uint64_t count = argument(argc, argv, 4, 1), sum = 0;
	REQUIRE(count >= 1 && count <= 8);
	children = argument(argc, argv, 2, 1000) / count;
	at_once = argument(argc, argv, 3, 32) / count;
	REQUIRE(at_once >= 1 && at_once <= 256);
	parts_per_thread = pages / PART / count;
	data = map(pages);
	/* Shared with nobody, but in memory that is paged, too. */
	seeds = map((parts_per_thread * count * sizeof *seeds + PAGE - 1) / PAGE);
	for (uint64_t part = 0; part < parts_per_thread * count; part++) {
		seeds[part] = part + 1;
		for (uint64_t i = 0; i < PART; i++)
			fill_page(data + (part * PART + i) * PAGE,
				  key_of(seeds[part], part * PART + i));
	}
	for (uint64_t i = 0; i < count; i++)
		REQUIRE(pthread_create(&threads[i], NULL, make_children, (void *)i) == 0);
	for (uint64_t i = 0; i < count; i++)
		REQUIRE(pthread_join(threads[i], NULL) == 0);
	for (uint64_t part = 0; part < parts_per_thread * count; part++)
		sum += check_range(data + part * PART * PAGE, part * PART, PART, seeds[part],
				   "parent");
	say("ok storm of %lu children checksum %016lx", children * count, sum);
	return 0;
}
