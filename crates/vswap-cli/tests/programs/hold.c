/*
 * hold ACTION [MIB]: swapped-out memory survives what a program may do to itself.
 *
 * Fills and evicts memory, performs ACTION, prints `ready PID`, waits for a line on standard input
 * (where somebody may look at it, trace it or kill it), and verifies. The actions: none, closing every
 * descriptor, another user, other namespaces, waiting for children, pipes, closing standard output,
 * tight resource limits, dying by a signal.
 */
#include "vswap_test.h"
#include <grp.h>
#include <linux/close_range.h>
#include <sys/resource.h>

static char *data;
static uint64_t pages;

static void verify(const char *when)
{
	check_range(data, 0, pages, 1, when);
	evict(data, pages);
}

static void none(void)
{
}

static void close_everything(void)
{
	REQUIRE(syscall(SYS_close_range, 3u, ~0u, 0u) == 0);
	verify("after close_range");
	for (int fd = 3; fd < 1024; fd++)
		close(fd);
	verify("after closing one by one");
	REQUIRE(syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_UNSHARE) == 0);
	verify("after close_range with a table of its own");
	/* The lowest free descriptors are the program's again. */
	REQUIRE(open("/dev/null", O_RDONLY) == 3 && open("/dev/null", O_RDONLY) == 4);
	REQUIRE(dup2(3, 200) == 200);
	verify("after opening");
}

static void become_nobody(void)
{
	REQUIRE(setgroups(0, NULL) == 0);
	REQUIRE(setresgid(65534, 65534, 65534) == 0);
	REQUIRE(setresuid(65534, 65534, 65534) == 0);
	check_range(data, 0, pages, 1, "as nobody");
	fill_range(data, pages, 1);
	madvise(data, pages * PAGE, MADV_PAGEOUT);
}

static void new_user_namespace(void)
{
	REQUIRE(unshare(CLONE_NEWUSER) == 0);
	check_range(data, 0, pages, 1, "in a user namespace");
}

static void new_namespaces(void)
{
	REQUIRE(unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_FILES |
			CLONE_FS) == 0);
	verify("in namespaces");
}

/* The first process ends while the other is there: the kernel kills that one and the pagers of both,
 * and lets the first end when the other is reaped, which is later than its pager. */
static void new_pid_namespace(void)
{
	int status, go_on[2];
	char byte;
	struct timespec a_while = { 0, 300000000 };
	REQUIRE(unshare(CLONE_NEWPID) == 0 && pipe2(go_on, O_CLOEXEC) == 0);
	pid_t child = fork();
	if (child == 0) {
		REQUIRE(getpid() == 1);
		check_range(data, 0, pages, 1, "as the first process of a namespace");
		fill_range(data, pages, 2);
		madvise(data, pages * PAGE, MADV_PAGEOUT);
		check_range(data, 0, pages, 2, "as the first process of a namespace, its own");
		REQUIRE(read(go_on[0], &byte, 1) == 1);
		_exit(0);
	}
	pid_t other = fork();
	if (other == 0)
		for (;;)
			pause();
	REQUIRE(child > 0 && other > 0 && write(go_on[1], "", 1) == 1);
	nanosleep(&a_while, NULL);
	REQUIRE(waitpid(other, &status, 0) == other && WTERMSIG(status) == SIGKILL);
	REQUIRE(waitpid(child, &status, 0) == child && status == 0);
	close(go_on[0]);
	close(go_on[1]);
}

static volatile sig_atomic_t children_died;

static void on_child(int signal)
{
	(void)signal;
	children_died++;
}

static void require_no_child(void)
{
	int status;
	REQUIRE(wait(&status) == -1 && errno == ECHILD);
	REQUIRE(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD);
	REQUIRE(waitpid(-1, &status, WNOHANG | __WALL) == -1 && errno == ECHILD);
	REQUIRE(waitpid(-1, &status, WNOHANG | __WCLONE) == -1 && errno == ECHILD);
	siginfo_t info;
	REQUIRE(waitid(P_ALL, 0, &info, WEXITED | WNOHANG) == -1 && errno == ECHILD);
	REQUIRE(waitpid(0, &status, WNOHANG) == -1 && errno == ECHILD);
}

static void wait_for_children(void)
{
	int status;
	REQUIRE(signal(SIGCHLD, on_child) != SIG_ERR);
	require_no_child();
	verify("without children");
	pid_t child = fork();
	if (child == 0)
		_exit(5);
	while (wait(&status) != child)
		REQUIRE(errno == EINTR);
	REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 5);
	require_no_child();
	verify("after a child");
	REQUIRE(children_died == 1);
}

static pid_t reader_of(int ends[2])
{
	pid_t child = fork();
	if (child == 0) {
		char text[16];
		close(ends[1]);
		REQUIRE(read(ends[0], text, sizeof text) == 4);
		REQUIRE(read(ends[0], text, sizeof text) == 0);
		_exit(0);
	}
	close(ends[0]);
	return child;
}

/* A reader sees the end when the last writer closes, while this program lives on. */
static void close_pipes(void)
{
	int status, ends[2];
	for (int round = 0; round < 3; round++) {
		REQUIRE(pipe(ends) == 0);
		pid_t child = reader_of(ends);
		verify("with a pipe");
		REQUIRE(write(ends[1], "four", 4) == 4 && close(ends[1]) == 0);
		REQUIRE(waitpid(child, &status, 0) == child && status == 0);
	}
	/* And a writer without readers gets EPIPE. */
	REQUIRE(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
	REQUIRE(pipe(ends) == 0 && close(ends[0]) == 0);
	verify("with half a pipe");
	REQUIRE(write(ends[1], "x", 1) == -1 && errno == EPIPE);
}

static void set_limit(int resource, rlim_t value)
{
	struct rlimit limit;
	REQUIRE(getrlimit(resource, &limit) == 0);
	limit.rlim_cur = value < limit.rlim_max ? value : limit.rlim_max;
	REQUIRE(setrlimit(resource, &limit) == 0);
}

static void tight_limits(void)
{
	REQUIRE(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
	set_limit(RLIMIT_NOFILE, 3);
	set_limit(RLIMIT_FSIZE, 0);
	set_limit(RLIMIT_MEMLOCK, 0);
	set_limit(RLIMIT_SIGPENDING, 0);
	verify("under tight limits");
	fill_range(data, pages, 1);
	verify("written under tight limits");
}

/*
 * Raises RLIMIT_NPROC one by one, as a user that may not have a userfaultfd. A fork either fails with
 * EAGAIN or gives a child that sees its memory.
 */
static void few_processes(void)
{
	int forked = 0;
	REQUIRE(setresuid(65534, 65534, 65534) == 0);
	for (rlim_t limit = 1; forked < 8; limit++) {
		int status;
		REQUIRE(limit < 4096);
		set_limit(RLIMIT_NPROC, limit);
		pid_t child = fork();
		REQUIRE(child >= 0 || errno == EAGAIN);
		if (child == 0) {
			check_range(data, 0, pages, 1, "child at a limit");
			_exit(0);
		}
		if (child < 0)
			continue;
		forked++;
		REQUIRE(waitpid(child, &status, 0) == child && status == 0);
		madvise(data, pages * PAGE, MADV_PAGEOUT);
	}
}

static FILE *open_beside_limit(const char *file, const char *mode)
{
	char path[256];
	snprintf(path, sizeof path, "%s", getenv("PIDS_MAX"));
	strcpy(strrchr(path, '/') + 1, file);
	return fopen(path, mode);
}

static uint64_t tasks_now(void)
{
	char number[32];
	FILE *file = open_beside_limit("pids.current", "r");
	REQUIRE(file != NULL && fgets(number, sizeof number, file) != NULL && fclose(file) == 0);
	return strtoul(number, NULL, 0);
}

static void set_room(uint64_t tasks)
{
	uint64_t now = tasks_now();
	FILE *file = open_beside_limit("pids.max", "w");
	REQUIRE(file != NULL && fprintf(file, "%lu", now + tasks) > 0);
	REQUIRE(fclose(file) == 0);
}

/* A pager ends some time after its program, and what it leaves is room that nobody counted on. */
static void wait_for_pagers_to_end(uint64_t tasks)
{
	struct timespec pause = { 0, 1000000 };
	for (int tries = 0; tasks_now() > tasks; tries++) {
		REQUIRE(tries < 5000);
		nanosleep(&pause, NULL);
	}
}

static bool sigchld_is_pending(void)
{
	sigset_t pending;
	REQUIRE(sigpending(&pending) == 0);
	return sigismember(&pending, SIGCHLD) == 1;
}

/* A fork that fails leaves no trace, of those that are refused by the kernel and of the others. */
static bool fork_at_a_limit(uint64_t room)
{
	int status, died = children_died;
	set_room(room);
	pid_t child = fork();
	if (child == 0) {
		check_range(data, 0, pages, 1, "child at a limit");
		_exit(0);
	}
	if (child > 0) {
		REQUIRE(waitpid(child, &status, 0) == child && status == 0);
	} else {
		REQUIRE(errno == EAGAIN);
		REQUIRE(children_died == died && !sigchld_is_pending());
		require_no_child();
		check_range(data, 0, pages, 1, "after a fork that failed");
	}
	madvise(data, pages * PAGE, MADV_PAGEOUT);
	return child > 0;
}

/* Its end is told while a fork fails, and told once. */
static void keep_the_signal_of_another_child(uint64_t tasks_alone)
{
	sigset_t set;
	siginfo_t info;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	REQUIRE(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	set_room(64);
	pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0)
		_exit(7);
	while (waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT) != 0)
		REQUIRE(errno == EINTR);
	REQUIRE(sigchld_is_pending());
	/* That child itself takes a place until somebody waits for it. */
	wait_for_pagers_to_end(tasks_alone + 1);
	set_room(1);
	REQUIRE(fork() == -1 && errno == EAGAIN);
	REQUIRE(sigwaitinfo(&set, &info) == SIGCHLD);
	REQUIRE(info.si_pid == child && info.si_code == CLD_EXITED && info.si_status == 7);
	REQUIRE(!sigchld_is_pending());
	REQUIRE(waitpid(child, NULL, 0) == child);
	REQUIRE(sigprocmask(SIG_UNBLOCK, &set, NULL) == 0);
}

/* Raises the limit of a cgroup one by one, past the point where a child fits and its pager does not. */
static void few_tasks(void)
{
	uint64_t room = 0, tasks_alone = tasks_now();
	REQUIRE(signal(SIGCHLD, on_child) != SIG_ERR);
	while (!fork_at_a_limit(room))
		room++;
	keep_the_signal_of_another_child(tasks_alone);
	/* Children that nobody waits for leave no zombies, those that fail included. */
	REQUIRE(signal(SIGCHLD, SIG_IGN) != SIG_ERR);
	wait_for_pagers_to_end(tasks_alone);
	set_room(1);
	REQUIRE(fork() == -1 && errno == EAGAIN);
	require_no_child();
	set_room(64);
	say("refused %lu", room);
}

static void close_stdout(void)
{
	REQUIRE(close(STDOUT_FILENO) == 0);
}

static void die_by_segv(void)
{
	volatile uintptr_t nowhere = 16;
	*(volatile char *)nowhere = 1;
}

static void die_by_abort(void)
{
	abort();
}

static void die_by_bus_error(void)
{
	char path[] = "/tmp/vswap-hold-XXXXXX";
	int fd = mkstemp(path);
	REQUIRE(fd >= 0 && unlink(path) == 0 && ftruncate(fd, PAGE) == 0);
	char *beyond = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	REQUIRE(beyond != MAP_FAILED);
	(void)*(volatile char *)(beyond + PAGE);
}

static void exit_with_42(void)
{
	exit(42);
}

static const struct {
	const char *name;
	void (*run)(void);
} actions[] = {
#define ACTION(name) { #name, name }
	ACTION(none),		    ACTION(close_everything), ACTION(become_nobody),
	ACTION(new_user_namespace), ACTION(new_namespaces),   ACTION(new_pid_namespace),
	ACTION(wait_for_children),  ACTION(close_pipes),      ACTION(tight_limits),
	ACTION(few_processes),	    ACTION(few_tasks),	      ACTION(close_stdout),
	ACTION(die_by_segv),	    ACTION(die_by_abort),     ACTION(die_by_bus_error),
	ACTION(exit_with_42),
};

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "none";
	char line[64];
	pages = argument(argc, argv, 2, 16) * MIB / PAGE;
	data = map(pages);
	fill_range(data, pages, 1);
	evict(data, pages);

	size_t i = 0;
	while (strcmp(actions[i].name, name) != 0)
		REQUIRE(++i < sizeof actions / sizeof *actions);
	actions[i].run();
	bool silent = actions[i].run == close_stdout;
	if (!silent)
		say("ready %d", (int)getpid());
	REQUIRE(read(STDIN_FILENO, line, sizeof line) >= 0);
	uint64_t sum = check_range(data, 0, pages, 1, "at the end");
	if (!silent)
		say("ok hold %s checksum %016lx", name, sum);
	return 0;
}
