/*
 * unpageable FILE: holds memory of each kind that is never paged, of different sizes: 8 MiB of a
 * shared mapping, 4 MiB locked, 12 MiB of a private file mapping, and 16 MiB of a thread's stack.
 */
#include "vswap_test.h"

#define STACK (16 * MIB)

static void *use_stack(void *held)
{
	volatile char frame[STACK - 256 * 1024];
	for (size_t i = 0; i < sizeof frame; i += PAGE)
		frame[i] = 1;
	pthread_barrier_wait(held);
	pthread_barrier_wait(held);
	return NULL;
}

int main(int argc, char **argv)
{
	REQUIRE(argc > 1);
	char *shared = mmap(NULL, 8 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(shared != MAP_FAILED);
	memset(shared, 1, 8 * MIB);

	int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
	REQUIRE(fd >= 0 && ftruncate(fd, 12 * MIB) == 0 && unlink(argv[1]) == 0);
	volatile char *file = mmap(NULL, 12 * MIB, PROT_READ, MAP_PRIVATE, fd, 0);
	REQUIRE(file != MAP_FAILED);
	for (size_t i = 0; i < 12 * MIB; i += PAGE)
		(void)file[i];

	/* Paged from here on, so that the lock is on memory that the engine knows. */
	void *data = map(4 * MIB / PAGE);
	fill_range(data, 4 * MIB / PAGE, 1);
	evict(data, 4 * MIB / PAGE);
	REQUIRE(mlock(data, 4 * MIB) == 0);

	pthread_t thread;
	pthread_attr_t attributes;
	pthread_barrier_t held;
	REQUIRE(pthread_attr_init(&attributes) == 0);
	REQUIRE(pthread_attr_setstacksize(&attributes, STACK) == 0);
	REQUIRE(pthread_barrier_init(&held, NULL, 2) == 0);
	REQUIRE(pthread_create(&thread, &attributes, use_stack, &held) == 0);
	pthread_barrier_wait(&held);
	/* Looks are a second apart, and more on a busy machine. */
	struct timespec look = { 3, 0 };
	nanosleep(&look, NULL);
	pthread_barrier_wait(&held);
	REQUIRE(pthread_join(thread, NULL) == 0);
	check_range(data, 0, 4 * MIB / PAGE, 1, "locked");
	say("ok unpageable");
	return 0;
}
