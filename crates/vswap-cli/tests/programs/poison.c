/*
 * poison: a page that cannot be restored is lost alone, and never reads as anything.
 *
 * Fills 2 MiB with pages that end up in every kind of place (zero, same-filled, pool, swap file, in
 * turns), evicts them, the upper half first, and says `ready`. Somebody damages the swap file now and
 * writes which pages are lost on standard input. Those give SIGBUS, and EFAULT to system calls, each
 * time; all others are as they were filled. A page of the file begins with MAGIC and its index.
 */
#include "vswap_test.h"
#include <setjmp.h>

#define N 512ul
#define MAGIC 0x766f726170776170ull
#define SEED 11

enum kind { ZERO, SAME_FILLED, COMPRESSIBLE, INCOMPRESSIBLE, KINDS };

static char *data;
static bool lost[N];
static sigjmp_buf *escape;
static void *volatile bus_address;

static void *at(uint64_t page)
{
	return data + page * PAGE;
}

static uint64_t expected(uint64_t page, uint64_t word)
{
	switch ((enum kind)(page % KINDS)) {
	case ZERO:
		return 0;
	case SAME_FILLED:
		return key_of(SEED, page);
	case COMPRESSIBLE:
		return mix(key_of(SEED, page) + word % 32);
	default:
		return word == 0 ? MAGIC : word == 1 ? page : mix(key_of(SEED, page) + word);
	}
}

static void fill(void)
{
	for (uint64_t page = 0; page < N; page++)
		for (uint64_t word = 0; word < WORDS; word++)
			((uint64_t *)at(page))[word] = expected(page, word);
}

static void on_bus_error(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	bus_address = info->si_addr;
	siglongjmp(*escape, 1);
}

static bool raises_sigbus(uint64_t page)
{
	sigjmp_buf here;
	escape = &here;
	bus_address = NULL;
	if (sigsetjmp(here, 1) == 0) {
		(void)*(volatile uint64_t *)at(page);
		return false;
	}
	REQUIRE((char *)bus_address >= data + page * PAGE &&
		(char *)bus_address < data + (page + 1) * PAGE);
	return true;
}

/* No byte of a lost page comes out by a system call. */
static void require_no_data(uint64_t page)
{
	int ends[2];
	char byte;
	REQUIRE(pipe2(ends, O_NONBLOCK) == 0);
	REQUIRE(write(ends[1], at(page), PAGE) == -1 && errno == EFAULT);
	REQUIRE(read(ends[0], &byte, 1) == -1 && errno == EAGAIN);
	close(ends[0]);
	close(ends[1]);
}

static void check(uint64_t page)
{
	if (lost[page]) {
		/* Whichever of the two is first finds that it is lost. */
		if (page / KINDS % 2 == 0)
			require_no_data(page);
		for (int i = 0; i < 2; i++)
			if (!raises_sigbus(page))
				fail("page %lu can be read, though it is lost", page);
		require_no_data(page);
		return;
	}
	if (raises_sigbus(page))
		fail("page %lu raises SIGBUS, though it is not lost", page);
	for (uint64_t word = 0; word < WORDS; word++)
		if (((volatile uint64_t *)at(page))[word] != expected(page, word))
			fail("page %lu word %lu is wrong", page, word);
}

static void read_what_is_lost(void)
{
	static char text[8192];
	size_t length = 0;
	while (length == 0 || text[length - 1] != '\n') {
		ssize_t n = read(STDIN_FILENO, text + length, sizeof text - 1 - length);
		REQUIRE(n > 0);
		length += (size_t)n;
	}
	for (char *next = text, *end;; next = end) {
		uint64_t page = strtoul(next, &end, 10);
		if (end == next)
			return;
		REQUIRE(page < N);
		lost[page] = true;
	}
}

static void fork_and_check(void)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		for (uint64_t page = 0; page < N; page++)
			check(page);
		_exit(0);
	}
	REQUIRE(waitpid(child, &status, 0) == child && status == 0);
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO };
	REQUIRE(sigaction(SIGBUS, &action, NULL) == 0);
	data = (char *)(((uintptr_t)map(2 * N) + N * PAGE - 1) & ~(N * PAGE - 1));
	fill();
	evict(at(N / 2), N / 2);
	evict(data, N / 2);
	say("ready %d", (int)getpid());
	read_what_is_lost();
	/* In order, so that windows of read-ahead reach over what is lost. */
	for (uint64_t page = 0; page < N; page++)
		check(page);
	for (uint64_t page = N; page-- > 0;)
		check(page);
	fork_and_check();
	/* The address is not lost with its page. */
	for (uint64_t page = 0; page < N; page++) {
		if (!lost[page])
			continue;
		REQUIRE(madvise(at(page), PAGE, MADV_DONTNEED) == 0);
		REQUIRE(!raises_sigbus(page));
		check_zero(at(page), 1, "where a page was lost");
	}
	say("ok poison");
	return 0;
}
