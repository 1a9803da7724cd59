/*
 * readers MIB CHILDREN: fills memory, evicts it, and has so many children read all of it. When they have,
 * it says so and waits for a line, so that the memory of the tree can be measured; everybody is there still.
 * The contents are half zeros and half random, so that they compress two to one.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define WORDS (PAGE / sizeof(uint64_t))

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static void fail(const char *what)
{
	fprintf(stderr, "readers: %s\n", what);
	exit(1);
}

static void check(const uint64_t *data, uint64_t pages)
{
	for (uint64_t i = 0; i < pages * WORDS; i++)
		if (data[i] != (i % WORDS < WORDS / 2 ? mix(i + 1) : 0))
			fail("a word is wrong");
}

int main(int argc, char **argv)
{
	if (argc != 3)
		fail("readers MIB CHILDREN");
	uint64_t pages = strtoull(argv[1], NULL, 0) << 8;
	int children = atoi(argv[2]), done[2], stay[2];
	uint64_t *data = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (data == MAP_FAILED || pipe(done) != 0 || pipe(stay) != 0)
		fail("no memory or no pipe");
	for (uint64_t i = 0; i < pages * WORDS; i++)
		if (i % WORDS < WORDS / 2)
			data[i] = mix(i + 1);
	for (int i = 0; i < 20; i++) {
		madvise(data, pages * PAGE, MADV_PAGEOUT);
		usleep(100000);
	}
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < children; i++) {
		pid_t child = fork();
		char byte = 0;
		if (child < 0)
			fail("fork failed");
		if (child > 0)
			continue;
		close(stay[1]);
		check(data, pages);
		if (write(done[1], &byte, 1) != 1)
			fail("no pipe");
		_exit(read(stay[0], &byte, 1) != 0);
	}
	for (int i = 0; i < children; i++) {
		char byte;
		if (read(done[0], &byte, 1) != 1)
			fail("a child has ended");
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("read %.1f\n", (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
	fflush(stdout);
	char line[16];
	if (read(STDIN_FILENO, line, sizeof line) < 0)
		fail("no standard input");
	close(stay[1]);
	for (int status; wait(&status) > 0;)
		if (status != 0)
			fail("a child has failed");
	return 0;
}
