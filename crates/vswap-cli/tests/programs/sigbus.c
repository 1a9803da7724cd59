/*
 * sigbus HOW [MIB]: a program with its own idea of SIGBUS, the inline engine's signal.
 *
 * HOW says what it does with the signal, and then it works with swapped-out memory. `early` installs a
 * handler before any memory is mapped, `late` when paging has long begun; both take real bus errors
 * before and after. `once` installs one that applies once. `block` blocks the signal, `suspend` does
 * so in the mask of another signal's handler. `spawn` starts processes while all signals are blocked.
 * `sent` gets the signal from itself and dies of it. All of this is none of the pager's business.
 */
#include "vswap_test.h"
#include <setjmp.h>
#include <spawn.h>

extern char **environ;

static sigjmp_buf *escape;
static char *data;
static uint64_t pages;
static volatile uint64_t seen;

/* Touches paged memory, as handlers do. */
static void on_bus_error(int signal, siginfo_t *info, void *context)
{
	sigset_t now;
	REQUIRE(signal == SIGBUS && info->si_code == BUS_ADRERR && context != NULL);
	REQUIRE(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0);
	REQUIRE(sigismember(&now, SIGUSR1) == 1 && sigismember(&now, SIGUSR2) == 0);
	if (data != NULL)
		seen += check_range(data, 0, pages / 8, 1, "in the handler");
	siglongjmp(*escape, 1);
}

static void on_user_signal(int signal)
{
	(void)signal;
	seen += check_range(data, 0, pages, 1, "in the handler");
}

static struct sigaction bus_action(int flags)
{
	struct sigaction action = { .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | flags };
	sigemptyset(&action.sa_mask);
	sigaddset(&action.sa_mask, SIGUSR1);
	return action;
}

static void handle(int flags)
{
	struct sigaction action = bus_action(flags), old;
	REQUIRE(sigaction(SIGBUS, &action, &old) == 0 && old.sa_handler == SIG_DFL);
	REQUIRE(sigaction(SIGBUS, NULL, &old) == 0);
	REQUIRE(old.sa_sigaction == on_bus_error && sigismember(&old.sa_mask, SIGUSR1) == 1);
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
	munmap(beyond, 2 * PAGE);
	close(fd);
}

static void set_mask(int how, int signal)
{
	sigset_t set;
	sigemptyset(&set);
	if (signal == 0)
		sigfillset(&set);
	else
		sigaddset(&set, signal);
	REQUIRE(pthread_sigmask(how, &set, NULL) == 0);
}

static void catch_with_all_blocked(void)
{
	struct sigaction action = { .sa_handler = on_user_signal }, old;
	sigfillset(&action.sa_mask);
	REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0);
	REQUIRE(sigaction(SIGUSR1, NULL, &old) == 0 && sigismember(&old.sa_mask, SIGBUS) == 1);
	evict(data, pages);
	REQUIRE(raise(SIGUSR1) == 0);
}

/* Its children set the signal to its default in memory that they share with this process. */
static void spawn(void)
{
	char *line[] = { (char *)"/bin/true", NULL };
	posix_spawnattr_t *attributes = malloc(sizeof *attributes);
	sigset_t all;
	int status;
	pid_t child;
	sigfillset(&all);
	REQUIRE(posix_spawnattr_init(attributes) == 0);
	REQUIRE(posix_spawnattr_setsigdefault(attributes, &all) == 0);
	REQUIRE(posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGDEF) == 0);
	for (int i = 0; i < 20; i++) {
		REQUIRE(posix_spawn(&child, line[0], NULL, attributes, line, environ) == 0);
		REQUIRE(waitpid(child, &status, 0) == child && status == 0);
	}
	posix_spawnattr_destroy(attributes);
	free(attributes);
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "early";
	pages = argument(argc, argv, 2, 32) * MIB / PAGE;
	bool early = strcmp(how, "early") == 0, late = strcmp(how, "late") == 0;
	if (early) {
		handle(0);
		take_a_bus_error();
	}
	if (strcmp(how, "block") == 0)
		set_mask(SIG_BLOCK, SIGBUS);
	data = map(pages);
	fill_range(data, pages, 1);
	if (late || strcmp(how, "spawn") == 0)
		handle(0);
	if (strcmp(how, "once") == 0)
		handle(SA_RESETHAND);
	if (strcmp(how, "spawn") == 0)
		spawn();
	if (strcmp(how, "suspend") == 0)
		catch_with_all_blocked();
	evict(data, pages);
	if (strcmp(how, "block") == 0)
		set_mask(SIG_SETMASK, 0);
	uint64_t sum = check_range(data, 0, pages, 1, "with its own SIGBUS");
	for (int i = 0; i < 3 && (early || late || strcmp(how, "spawn") == 0); i++) {
		evict(data, pages);
		take_a_bus_error();
	}
	if (strcmp(how, "once") == 0) {
		struct sigaction old;
		take_a_bus_error();
		REQUIRE(sigaction(SIGBUS, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
	}
	sum += check_range(data, 0, pages, 1, "at the end");
	say("ok sigbus %s checksum %016lx", how, sum + seen);
	if (strcmp(how, "sent") == 0)
		raise(SIGBUS);
	return 0;
}
