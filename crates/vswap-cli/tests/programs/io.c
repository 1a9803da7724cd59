/*
 * io CASE DIRECTORY: system calls whose buffers, vectors and strings are swapped out.
 *
 * Each case fills memory, evicts it (under vswap this is asserted), lets the kernel read or write it,
 * and verifies every byte on both sides. Files are made in DIRECTORY.
 */
#include "vswap_test.h"
#include <dirent.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define N 64ul /* pages of a buffer */

static const char *directory;
static uint64_t sum;

static int temporary(int flags)
{
	char path[512];
	snprintf(path, sizeof path, "%s/vswap-io-XXXXXX", directory);
	int fd = mkostemp(path, flags);
	if (fd < 0 && errno == EINVAL && (flags & O_DIRECT)) {
		say("ok no O_DIRECT in this directory");
		exit(0);
	}
	REQUIRE(fd >= 0 && unlink(path) == 0);
	return fd;
}

/* A file of N pages filled with `seed`. */
static int pattern_file(uint64_t seed, int flags)
{
	int fd = temporary(flags);
	char *data = map(N);
	fill_range(data, N, seed);
	REQUIRE(write(fd, data, N * PAGE) == (ssize_t)(N * PAGE));
	munmap(data, N * PAGE);
	return fd;
}

static char *evicted(uint64_t seed)
{
	char *data = map(N);
	fill_range(data, N, seed);
	evict(data, N);
	return data;
}

static void write_to_a_file(void)
{
	int fd = temporary(0);
	char *data = evicted(1);
	REQUIRE(write(fd, data, N * PAGE) == (ssize_t)(N * PAGE));
	char *back = map(N);
	REQUIRE(pread(fd, back, N * PAGE, 0) == (ssize_t)(N * PAGE));
	sum += check_range(back, 0, N, 1, "written");
}

static void read_from_a_file(void)
{
	int fd = pattern_file(2, 0);
	char *data = evicted(1);
	REQUIRE(lseek(fd, 0, SEEK_SET) == 0);
	/* Not aligned: both ends of the range keep what they held. */
	REQUIRE(read(fd, data + PAGE, (N - 2) * PAGE) == (ssize_t)((N - 2) * PAGE));
	sum += check_range(data, 0, 1, 1, "before the read");
	sum += check_range(data + PAGE, 0, N - 2, 2, "read");
	sum += check_range(data + (N - 1) * PAGE, N - 1, 1, 1, "after the read");
	/* A few bytes in the middle of a page: its other bytes come back around them. */
	evict(data, N);
	REQUIRE(pread(fd, data + 100 * 8, 8, 0) == 8);
	uint64_t *words = (uint64_t *)data, key = key_of(1, 0);
	REQUIRE(words[100] == word_of(key_of(2, 0), period(key_of(2, 0)), 0));
	words[100] = word_of(key, period(key), 100);
	sum += check_range(data, 0, 1, 1, "around a short read");
}

/* The vectors themselves are in swapped-out memory too. */
static void vectors(void)
{
	int fd = temporary(0);
	char *data = evicted(1);
	struct iovec *list = map(1);
	for (uint64_t i = 0; i < N; i++)
		list[i] = (struct iovec){ data + (N - 1 - i) * PAGE, PAGE };
	evict(list, 1);
	REQUIRE(writev(fd, list, N) == (ssize_t)(N * PAGE));
	fill_range(data, N, 9);
	evict(data, N);
	evict(list, 1);
	REQUIRE(preadv(fd, list, N, 0) == (ssize_t)(N * PAGE));
	sum += check_range(data, 0, N, 1, "vectors");
	evict(data, N);
	evict(list, 1);
	struct iovec local = { map(N), N * PAGE };
	REQUIRE(process_vm_readv(getpid(), &local, 1, list, N, 0) == (ssize_t)(N * PAGE));
	for (uint64_t i = 0; i < N; i++)
		sum += check_page((char *)local.iov_base + i * PAGE, key_of(1, N - 1 - i), "process_vm");
}

static void direct(void)
{
	int fd = pattern_file(2, O_DIRECT);
	char *data = evicted(1);
	REQUIRE(pread(fd, data, N * PAGE, 0) == (ssize_t)(N * PAGE));
	sum += check_range(data, 0, N, 2, "direct read");
	fill_range(data, N, 3);
	evict(data, N);
	REQUIRE(pwrite(fd, data, N * PAGE, 0) == (ssize_t)(N * PAGE));
	evict(data, N);
	sum += check_range(data, 0, N, 3, "after a direct write");
	evict(data, N);
	REQUIRE(pread(fd, data + 8 * PAGE, 8 * PAGE, 0) == (ssize_t)(8 * PAGE));
	sum += check_range(data + 8 * PAGE, 0, 8, 3, "direct read of a part");
	sum += check_range(data, 0, 8, 3, "beside a direct read");
}

static void random_bytes(void)
{
	char *data = evicted(1);
	/* 256 bytes at a time is what getrandom never cuts short. */
	for (uint64_t at = 0; at < N * PAGE; at += 256) {
		REQUIRE(getrandom(data + at, 256, 0) == 256);
		REQUIRE(((uint64_t *)(data + at))[0] != ((uint64_t *)(data + at))[31]);
		if (at % (16 * PAGE) == 0 && at > 0) {
			uint64_t last = ((uint64_t *)(data + at))[-1];
			evict(data, N);
			REQUIRE(((uint64_t *)(data + at))[-1] == last);
		}
	}
}

static void strings_and_structures(void)
{
	char *page = map(4);
	struct stat *info = (struct stat *)(page + PAGE);
	struct timespec *time = (struct timespec *)(page + 2 * PAGE);
	char *path = strcpy(page + 3 * PAGE, directory);
	evict(page, 4);
	REQUIRE(stat(path, info) == 0 && S_ISDIR(info->st_mode));
	evict(page, 4);
	int fd = open(path, O_RDONLY | O_DIRECTORY);
	REQUIRE(fd >= 0);
	char *entries = evicted(1);
	REQUIRE(syscall(SYS_getdents64, fd, entries, N * PAGE) > 0);
	close(fd);
	time->tv_nsec = 1000;
	evict(page, 4);
	REQUIRE(clock_nanosleep(CLOCK_MONOTONIC, 0, time, time + 1) == 0);
	evict(page, 4);
	REQUIRE(clock_gettime(CLOCK_MONOTONIC, time) == 0 && time->tv_nsec != 1000);
	unsigned char *seen = (unsigned char *)page;
	evict(page, 4);
	REQUIRE(mincore(entries, N * PAGE, seen) == 0);
	sigset_t *set = (sigset_t *)(page + 512);
	sigemptyset(set);
	sigaddset(set, SIGUSR1);
	evict(page, 4);
	REQUIRE(pthread_sigmask(SIG_BLOCK, set, set + 1) == 0 && !sigismember(set + 1, SIGUSR1));
}

static void waiting_calls(void)
{
	int ends[2];
	struct pollfd *polled = map(2);
	struct epoll_event *events = (struct epoll_event *)((char *)polled + PAGE);
	REQUIRE(pipe(ends) == 0);
	int set = epoll_create1(0);
	*events = (struct epoll_event){ .events = EPOLLIN, .data.u64 = 77 };
	evict(polled, 2);
	REQUIRE(epoll_ctl(set, EPOLL_CTL_ADD, ends[0], events) == 0);
	*polled = (struct pollfd){ .fd = ends[0], .events = POLLIN };
	evict(polled, 2);
	REQUIRE(poll(polled, 1, 5) == 0);
	REQUIRE(write(ends[1], "x", 1) == 1);
	evict(polled, 2);
	REQUIRE(poll(polled, 1, 1000) == 1 && polled->revents == POLLIN);
	evict(polled, 2);
	REQUIRE(epoll_wait(set, events, 4, 1000) == 1 && events->data.u64 == 77);
	fd_set *sets = (fd_set *)polled;
	FD_ZERO(sets);
	FD_SET(ends[0], sets);
	evict(polled, 2);
	REQUIRE(select(ends[0] + 1, sets, NULL, NULL, NULL) == 1 && FD_ISSET(ends[0], sets));
}

/* exec copies strings and vectors from memory that is about to go away. */
static void exec_arguments(void)
{
	char *strings = map(4);
	char **arguments = (char **)strings;
	int status, ends[2];
	char line[64] = "";
	arguments[0] = strcpy(strings + PAGE, "/bin/echo");
	arguments[1] = strcpy(strings + 2 * PAGE - 4, "from evicted memory");
	arguments[2] = NULL;
	REQUIRE(pipe(ends) == 0);
	evict(strings, 4);
	pid_t child = fork();
	if (child == 0) {
		dup2(ends[1], STDOUT_FILENO);
		madvise(strings, 4 * PAGE, MADV_PAGEOUT);
		execv(strings + PAGE, arguments);
		_exit(9);
	}
	REQUIRE(waitpid(child, &status, 0) == child && status == 0);
	REQUIRE(read(ends[0], line, sizeof line) == 20);
	REQUIRE(strcmp(line, "from evicted memory\n") == 0);
}

static void pipes(void)
{
	int ends[2];
	char *from = evicted(1), *to = evicted(2);
	REQUIRE(pipe(ends) == 0);
	for (uint64_t i = 0; i < N; i += 8) {
		REQUIRE(write(ends[1], from + i * PAGE, 8 * PAGE) == (ssize_t)(8 * PAGE));
		REQUIRE(read(ends[0], to + i * PAGE, 8 * PAGE) == (ssize_t)(8 * PAGE));
	}
	sum += check_range(to, 0, N, 1, "through a pipe");
	evict(from, N);
	sum += check_range(from, 0, N, 1, "after a pipe");
}

/*
 * A pipe that holds pages by vmsplice delivers what they held, although they are evicted, brought
 * back, and although their frames would be free for other content meanwhile.
 */
static void vmspliced_pages(void)
{
	int ends[2];
	char *data = evicted(1), *back = map(N), *other;
	REQUIRE(pipe(ends) == 0);
	REQUIRE(fcntl(ends[1], F_SETPIPE_SZ, N * PAGE) >= (int)(N * PAGE));
	struct iovec whole = { data, N * PAGE };
	REQUIRE(vmsplice(ends[1], &whole, 1, 0) == (ssize_t)(N * PAGE));
	/* Whether a held page can be evicted is the pager's choice. */
	REQUIRE(madvise(data, N * PAGE, MADV_PAGEOUT) == 0);
	other = map(16 * N);
	fill_range(other, 16 * N, 4);
	evict(other, 16 * N);
	sum += check_range(data, 0, N, 1, "page that a pipe holds");
	REQUIRE(madvise(data, N * PAGE, MADV_PAGEOUT) == 0);
	for (uint64_t at = 0; at < N * PAGE;) {
		ssize_t n = read(ends[0], back + at, N * PAGE - at);
		REQUIRE(n > 0);
		at += (uint64_t)n;
	}
	sum += check_range(back, 0, N, 1, "delivered by the pipe");
	sum += check_range(data, 0, N, 1, "page that a pipe held");
	sum += check_range(other, 0, 16 * N, 4, "other pages");
	evict(data, N);
	sum += check_range(data, 0, N, 1, "page that is free again");
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
#define CASE(name) { #name, name }
	CASE(write_to_a_file), CASE(read_from_a_file), CASE(vectors),	    CASE(direct),
	CASE(random_bytes),    CASE(strings_and_structures), CASE(waiting_calls),
	CASE(exec_arguments),  CASE(pipes),	       CASE(vmspliced_pages),
};

int main(int argc, char **argv)
{
	REQUIRE(argc == 3);
	directory = argv[2];
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		if (strcmp(argv[1], cases[i].name) == 0) {
			cases[i].run();
			say("ok io %s checksum %016lx", argv[1], sum);
			return 0;
		}
	fail("no case %s", argv[1]);
}
