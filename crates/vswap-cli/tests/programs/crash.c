/*
 * crash MIB HOW: a child fills memory and dies with a core dump; its parent says how that looked.
 * crash check CORE MIB: every word of the child's data is in the core.
 *
 * HOW: abort, segv, quit (by a signal from the parent), overflow (of the stack, where no handler could
 * run), thread (one of four, while the others read). The parent prints the wait status. Or handled: no
 * child; the program handles SIGSEGV itself, and prints the actions that it finds. Or leave: no child; the
 * first thread ends, and another one goes on.
 */
#include "vswap_test.h"

#include <elf.h>
#include <setjmp.h>
#include <sys/resource.h>

#define SEED 77

static char *const DATA = (char *)0x200000000000ul;
static uint64_t pages;

static void fill_data(void)
{
	char *data = mmap(DATA, pages * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	REQUIRE(data == DATA);
	fill_range(data, pages, SEED);
}

__attribute__((noreturn)) static void *read_for_ever(void *seed)
{
	struct rng rng = { (uintptr_t)seed };
	for (;;) {
		uint64_t page = below(&rng, pages);
		check_range(DATA + page * PAGE, page, 1, SEED, "before the crash");
	}
}

static void *die(void *unused)
{
	struct timespec pause = { 0, 200000000 };
	nanosleep(&pause, NULL);
	*(volatile char *)NULL = 1;
	return unused;
}

static uint64_t overflow(uint64_t depth)
{
	volatile char frame[1 << 12];
	frame[0] = (char)depth;
	return depth == 0 ? 0 : overflow(depth - 1) + (uint64_t)frame[0];
}

static void crash(const char *how, int ready)
{
	fill_data();
	if (strcmp(how, "abort") == 0)
		abort();
	if (strcmp(how, "segv") == 0)
		*(volatile char *)NULL = 1;
	if (strcmp(how, "overflow") == 0)
		overflow(UINT64_MAX);
	if (strcmp(how, "thread") == 0) {
		pthread_t thread;
		for (uintptr_t i = 0; i < 3; i++)
			REQUIRE(pthread_create(&thread, NULL, read_for_ever, (void *)(i + 1)) == 0);
		REQUIRE(pthread_create(&thread, NULL, die, NULL) == 0);
	}
	write_all(ready, "!", 1);
	for (;;)
		pause();
}

static void watch(const char *how)
{
	int ready[2], status;
	char byte;
	struct rlimit core = { RLIM_INFINITY, RLIM_INFINITY };
	REQUIRE(setrlimit(RLIMIT_CORE, &core) == 0 && pipe(ready) == 0);
	pid_t child = fork();
	if (child == 0)
		crash(how, ready[1]);
	close(ready[1]);
	if (strcmp(how, "quit") == 0)
		REQUIRE(read(ready[0], &byte, 1) == 1 && kill(child, SIGQUIT) == 0);
	REQUIRE(waitpid(child, &status, 0) == child);
	say("status %x, core dumped: %d", status, WCOREDUMP(status) != 0);
}

static sigjmp_buf back;

static void on_segv(int signal)
{
	siglongjmp(back, signal);
}

static void handle(void)
{
	struct sigaction old, segv = { .sa_handler = on_segv };
	fill_data();
	REQUIRE(sigaction(SIGABRT, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
	REQUIRE(sigaction(SIGSEGV, &segv, &old) == 0 && old.sa_handler == SIG_DFL);
	if (sigsetjmp(back, 1) == 0)
		*(volatile char *)NULL = 1;
	REQUIRE(sigaction(SIGSEGV, NULL, &old) == 0 && old.sa_handler == on_segv);
	check_range(DATA, 0, pages, SEED, "after SIGSEGV");
	say("ok handled");
}

static void *go_on(void *unused)
{
	struct timespec pause = { 0, 400000000 };
	nanosleep(&pause, NULL);
	check_range(DATA, 0, pages, SEED, "without the first thread");
	say("ok left");
	exit(0);
	return unused;
}

static void leave(void)
{
	pthread_t thread;
	fill_data();
	REQUIRE(pthread_create(&thread, NULL, go_on, NULL) == 0);
	pthread_exit(NULL);
}

/* Where a page is in the file; dies if it is not. */
static off_t place_of(int core, const Elf64_Ehdr *header, uint64_t address)
{
	for (unsigned i = 0; i < header->e_phnum; i++) {
		Elf64_Phdr part;
		off_t at = (off_t)(header->e_phoff + i * sizeof part);
		REQUIRE(pread(core, &part, sizeof part, at) == (ssize_t)sizeof part);
		if (part.p_type == PT_LOAD && part.p_vaddr <= address
		    && address + PAGE <= part.p_vaddr + part.p_filesz)
			return (off_t)(part.p_offset + (address - part.p_vaddr));
	}
	fail("%lx is not in the core", address);
}

static void check(const char *path)
{
	static char page[PAGE];
	Elf64_Ehdr header;
	int core = open(path, O_RDONLY);
	REQUIRE(core >= 0 && pread(core, &header, sizeof header, 0) == (ssize_t)sizeof header);
	for (uint64_t i = 0; i < pages; i++) {
		off_t at = place_of(core, &header, (uint64_t)DATA + i * PAGE);
		REQUIRE(pread(core, page, PAGE, at) == (ssize_t)PAGE);
		if (first_difference(page, key_of(SEED, i)) != WORDS)
			fail("page %lu of the core is wrong", i);
	}
	say("ok %lu pages", pages);
}

int main(int argc, char **argv)
{
	REQUIRE(argc >= 3);
	if (strcmp(argv[1], "check") == 0) {
		pages = argument(argc, argv, 3, 64) * MIB / PAGE;
		check(argv[2]);
		return 0;
	}
	pages = argument(argc, argv, 1, 64) * MIB / PAGE;
	if (strcmp(argv[2], "handled") == 0)
		handle();
	else if (strcmp(argv[2], "leave") == 0)
		leave();
	else
		watch(argv[2]);
	return 0;
}
