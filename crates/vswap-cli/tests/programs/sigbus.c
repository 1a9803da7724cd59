/*
 * sigbus handle|block [MIB]: a program with its own idea of SIGBUS, the inline engine's signal.
 *
 * Installs a handler (and takes a real bus error with it), or blocks the signal, and then works with
 * swapped-out memory. Under the handoff engine this is none of the pager's business; under the inline
 * engine it has to be refused.
 */
#include "vswap_test.h"
#include <setjmp.h>

static sigjmp_buf *escape;

static void on_bus_error(int signal)
{
	(void)signal;
	siglongjmp(*escape, 1);
}

static void take_a_bus_error(void)
{
	char path[] = "/tmp/vswap-sigbus-XXXXXX";
	int fd = mkstemp(path);
	REQUIRE(fd >= 0 && unlink(path) == 0 && ftruncate(fd, PAGE) == 0);
	char *beyond = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	REQUIRE(beyond != MAP_FAILED);
	sigjmp_buf here;
	escape = &here;
	if (sigsetjmp(here, 1) == 0) {
		(void)*(volatile char *)(beyond + PAGE);
		fail("no bus error beyond the end of a file");
	}
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "handle";
	uint64_t pages = argument(argc, argv, 2, 32) * MIB / PAGE;
	if (strcmp(how, "handle") == 0) {
		struct sigaction action = { .sa_handler = on_bus_error };
		REQUIRE(sigaction(SIGBUS, &action, NULL) == 0);
		take_a_bus_error();
	} else {
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGBUS);
		REQUIRE(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
	}
	char *data = map(pages);
	fill_range(data, pages, 1);
	madvise(data, pages * PAGE, MADV_PAGEOUT);
	uint64_t sum = check_range(data, 0, pages, 1, "with its own SIGBUS");
	if (strcmp(how, "handle") == 0)
		take_a_bus_error();
	say("ok sigbus %s checksum %016lx", how, sum);
	return 0;
}
