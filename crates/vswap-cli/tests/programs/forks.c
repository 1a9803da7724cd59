/*
 * forks MIB [SEED]: every way of making a process, with most of the memory swapped out.
 *
 * The child sees each page as it was at the fork, writes its own copy while the parent writes
 * another, and neither sees the other's. Covers fork, several children at once, generations, double
 * fork, fork from a thread while others write, vfork, posix_spawn, exec, system, popen,
 * pthread_atfork, MADV_DONTFORK, MADV_WIPEONFORK, and a fork by a raw system call (whose child may
 * be killed, but never reads wrong data).
 */
#include "vswap_test.h"
#include <spawn.h>
#include <stdatomic.h>

extern char **environ;

static char *data;
static uint64_t pages, seed, sum;
static const char *self;

static void advise_out(void)
{
	/* Pages that two processes share may stay, so this asks and does not insist. */
	REQUIRE(madvise(data, pages * PAGE, MADV_PAGEOUT) == 0);
}

static void refill(void)
{
	seed++;
	fill_range(data, pages, seed);
	advise_out();
}

static void reap(pid_t child, const char *what)
{
	int status;
	REQUIRE(child > 0);
	REQUIRE(waitpid(child, &status, 0) == child);
	if (status != 0)
		fail("%s: wait status %x", what, status);
}

/* The child's part: all of the memory is the parent's at the fork, and then its own. */
static void child_work(uint64_t own_seed)
{
	check_range(data, 0, pages, seed, "child");
	fill_range(data, pages, own_seed);
	advise_out();
	check_range(data, 0, pages, own_seed, "child's own copy");
}

static void fork_and_write_on_both_sides(void)
{
	refill();
	pid_t child = fork();
	if (child == 0) {
		child_work(seed + 1000);
		_exit(0);
	}
	fill_range(data, pages / 2, seed + 2000);
	advise_out();
	reap(child, "fork");
	sum += check_range(data, 0, pages / 2, seed + 2000, "parent wrote");
	sum += check_range(data + pages / 2 * PAGE, pages / 2, pages / 2, seed, "parent kept");
}

static void child_that_reads_nothing(void)
{
	refill();
	pid_t child = fork();
	if (child == 0)
		_exit(0);
	reap(child, "fork and exit");
	sum += check_range(data, 0, pages, seed, "after a child that read nothing");
}

static void child_that_unmaps(void)
{
	refill();
	pid_t child = fork();
	if (child == 0) {
		REQUIRE(madvise(data, pages / 2 * PAGE, MADV_DONTNEED) == 0);
		check_zero(data, pages / 2, "child dropped");
		REQUIRE(munmap(data + pages / 2 * PAGE, pages / 2 * PAGE) == 0);
		_exit(0);
	}
	reap(child, "fork and munmap");
	sum += check_range(data, 0, pages, seed, "after a child that unmapped");
}

static void children_at_once(void)
{
	pid_t children[3];
	refill();
	for (int i = 0; i < 3; i++) {
		children[i] = fork();
		if (children[i] == 0) {
			child_work(seed + 100 * (uint64_t)i);
			_exit(0);
		}
	}
	sum += check_range(data, 0, pages, seed, "parent of three");
	for (int i = 0; i < 3; i++)
		reap(children[i], "one of three");
}

static void generations(int depth)
{
	if (depth == 0)
		refill();
	pid_t child = fork();
	if (child == 0) {
		check_range(data, 0, pages, seed, "next generation");
		if (depth < 2) {
			seed += 50;
			fill_range(data, pages, seed);
			generations(depth + 1);
		}
		_exit(0);
	}
	reap(child, "generation");
	sum += check_range(data, 0, pages, seed, "older generation");
}

static void double_fork(void)
{
	int ends[2];
	char byte = 0;
	refill();
	REQUIRE(pipe(ends) == 0);
	pid_t child = fork();
	if (child == 0) {
		if (fork() == 0) {
			close(ends[0]);
			/* Outlive the middle process. */
			while (getppid() == child)
				sched_yield();
			child_work(seed + 3000);
			byte = 'k';
			REQUIRE(write(ends[1], &byte, 1) == 1);
		}
		_exit(0);
	}
	close(ends[1]);
	reap(child, "middle of a double fork");
	fill_range(data, pages / 2, seed + 1);
	REQUIRE(read(ends[0], &byte, 1) == 1 && byte == 'k');
	REQUIRE(read(ends[0], &byte, 1) == 0);
	close(ends[0]);
}

static atomic_bool stop;

static void *write_all_the_time(void *own)
{
	uint64_t round = 0;
	while (!atomic_load(&stop)) {
		fill_range(own, 256, ++round);
		check_range(own, 0, 256, round, "thread beside a fork");
	}
	return NULL;
}

static void *fork_here(void *unused)
{
	for (int i = 0; i < 3; i++) {
		pid_t child = fork();
		if (child == 0) {
			child_work(seed + 77);
			_exit(0);
		}
		reap(child, "child of a thread");
	}
	return unused;
}

static void fork_from_a_thread(void)
{
	pthread_t writers[2], forker;
	char *own = map(512);
	refill();
	atomic_store(&stop, false);
	for (int i = 0; i < 2; i++)
		REQUIRE(pthread_create(&writers[i], NULL, write_all_the_time,
				       own + (uint64_t)i * 256 * PAGE) == 0);
	REQUIRE(pthread_create(&forker, NULL, fork_here, NULL) == 0);
	REQUIRE(pthread_join(forker, NULL) == 0);
	atomic_store(&stop, true);
	for (int i = 0; i < 2; i++)
		REQUIRE(pthread_join(writers[i], NULL) == 0);
	munmap(own, 512 * PAGE);
	sum += check_range(data, 0, pages, seed, "after forks from a thread");
}

/* vfork's child runs in the parent's memory; what it writes there is the parent's. */
static void vfork_and_exec(void)
{
	refill();
	pid_t child = vfork();
	if (child == 0) {
		fill_page(data, key_of(seed + 9, 0));
		execl(self, self, "--exec", "8", (char *)NULL);
		_exit(9);
	}
	reap(child, "vfork and exec");
	sum += check_page(data, key_of(seed + 9, 0), "written by vfork's child");
	sum += check_range(data + PAGE, 1, pages - 1, seed, "after vfork");
}

static void spawn(void)
{
	char *arguments[] = { (char *)self, "--exec", "8", NULL };
	pid_t child;
	refill();
	REQUIRE(posix_spawn(&child, self, NULL, NULL, arguments, environ) == 0);
	sum += check_range(data, 0, pages, seed, "while the spawned one runs");
	reap(child, "posix_spawn");
	REQUIRE(posix_spawn(&child, "/nonexistent", NULL, NULL, arguments, environ) == ENOENT);
}

static void fork_and_exec(void)
{
	refill();
	pid_t child = fork();
	if (child == 0) {
		check_range(data, 0, pages, seed, "before exec");
		execl(self, self, "--exec", "16", (char *)NULL);
		_exit(9);
	}
	reap(child, "fork and exec");
	sum += check_range(data, 0, pages, seed, "after exec");
}

static void shells(void)
{
	char line[64] = "";
	refill();
	REQUIRE(system("exit 3") == 3 << 8);
	FILE *pipe = popen("echo from a shell | tr a-z A-Z", "r");
	REQUIRE(pipe != NULL && fgets(line, sizeof line, pipe) != NULL);
	REQUIRE(strcmp(line, "FROM A SHELL\n") == 0 && pclose(pipe) == 0);
	sum += check_range(data, 0, pages, seed, "after shells");
}

static int prepared, in_parent, in_child;

static void prepare(void)
{
	prepared++;
	free(memset(malloc(100000), 1, 100000));
}

static void parent_after(void)
{
	in_parent++;
}

static void child_after(void)
{
	in_child++;
	free(memset(malloc(100000), 1, 100000));
}

static void atfork_handlers(void)
{
	refill();
	REQUIRE(pthread_atfork(prepare, parent_after, child_after) == 0);
	pid_t child = fork();
	if (child == 0) {
		REQUIRE(prepared == 1 && in_child == 1 && in_parent == 0);
		child_work(seed + 5);
		_exit(0);
	}
	REQUIRE(prepared == 1 && in_parent == 1 && in_child == 0);
	reap(child, "atfork");
}

/* The program's own use of the flag that the engine uses as well. */
static void dontfork_and_wipeonfork(void)
{
	refill();
	REQUIRE(madvise(data, 16 * PAGE, MADV_DONTFORK) == 0);
	REQUIRE(madvise(data + 16 * PAGE, 16 * PAGE, MADV_WIPEONFORK) == 0);
	pid_t child = fork();
	if (child == 0) {
		unsigned char seen;
		REQUIRE(mincore(data, PAGE, &seen) == -1 && errno == ENOMEM);
		check_zero(data + 16 * PAGE, 16, "wiped on fork");
		check_range(data + 32 * PAGE, 32, pages - 32, seed, "not wiped");
		_exit(0);
	}
	reap(child, "dontfork");
	sum += check_range(data, 0, pages, seed, "parent kept what was wiped");
	REQUIRE(madvise(data, 16 * PAGE, MADV_DOFORK) == 0);
	REQUIRE(madvise(data + 16 * PAGE, 16 * PAGE, MADV_KEEPONFORK) == 0);
	child = fork();
	if (child == 0) {
		child_work(seed + 6);
		_exit(0);
	}
	reap(child, "dofork");
}

static void fork_by_system_call(void)
{
	int status;
	refill();
	pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (child == 0) {
		check_range(data, 0, pages, seed, "child of a raw fork");
		_exit(0);
	}
	REQUIRE(waitpid(child, &status, 0) == child);
	if (status != 0 && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV))
		fail("raw fork: wait status %x", status);
	sum += check_range(data, 0, pages, seed, "after a raw fork");
}

static void exec_target(uint64_t mib)
{
	pages = mib * MIB / PAGE;
	data = map(pages);
	fill_range(data, pages, 3);
	evict(data, pages);
	check_range(data, 0, pages, 3, "after exec");
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "--exec") == 0) {
		exec_target(argument(argc, argv, 2, 8));
		return 0;
	}
	self = argv[0];
	pages = argument(argc, argv, 1, 32) * MIB / PAGE;
	seed = argument(argc, argv, 2, 1);
	data = map(pages);

	fork_and_write_on_both_sides();
	child_that_reads_nothing();
	child_that_unmaps();
	children_at_once();
	generations(0);
	double_fork();
	fork_from_a_thread();
	vfork_and_exec();
	spawn();
	fork_and_exec();
	shells();
	atfork_handlers();
	dontfork_and_wipeonfork();
	fork_by_system_call();
	say("ok forks checksum %016lx", sum);
	return 0;
}
