/*
 * The part of differential.c that makes trees of processes. A child goes on with the memory of its
 * parent and a copy of its model: random operations of all kinds, children of its own, perhaps a
 * thread, perhaps exec at the end; its parent does the same meanwhile, and kills some of them.
 */
#define DEPTH_MAX 3ul
#define CHILD_STEPS 150ul
#define THREAD_STEPS 100ul

#include <sys/prctl.h>

extern char **environ;

static void reap_oldest(void)
{
	int status;
	pid_t child = current->child[0];
	bool doomed = current->doomed[0];
	if (doomed)
		EXPECT(kill(child, SIGKILL) == 0);
	EXPECT(waitpid(child, &status, 0) == child);
	EXPECT(status == 0 || (doomed && status == SIGKILL));
	current->children--;
	for (uint64_t i = 0; i < current->children; i++) {
		current->child[i] = current->child[i + 1];
		current->doomed[i] = current->doomed[i + 1];
	}
}

/* Every way that libc has. After those but fork itself a child finds libc's locks as they were. */
static pid_t fork_somehow(uint64_t drawn)
{
	current->bare |= drawn < 3;
	switch (current->bare ? drawn % 3 : drawn) {
	case 0:
		return _Fork();
	case 1:
		return (pid_t)syscall(SYS_fork);
	case 2:
		return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	default:
		return fork();
	}
}

static void *work_beside(void *arena)
{
	current = arena;
	way = ways[0];
	EXPECT(do_mmap(address(0), arena_pages, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == address(0));
	mapped_anew((struct range){ 0, arena_pages }, 0);
	for (current->step = 0; current->step < THREAD_STEPS; current->step++)
		one_step();
	check_all();
	while (current->children > 0)
		reap_oldest();
	return NULL;
}

static void exec_self(uint64_t own_seed)
{
	char text[32];
	char *arguments[] = { "differential", text, "60", "4", "1",
			      with_system_calls ? "nofork" : "nosys", NULL };
	int nowhere = open("/dev/null", O_WRONLY);
	snprintf(text, sizeof text, "%lu", own_seed % 100000);
	EXPECT(nowhere >= 0 && dup2(nowhere, STDOUT_FILENO) == STDOUT_FILENO);
	execve("/proc/self/exe", arguments, environ);
	EXPECT(!"exec");
}

static void live_as_child(uint64_t own_seed)
{
	struct arena beside = {
		.index = current->index, .line = own_seed ^ 1, .depth = DEPTH_MAX,
		.base = current->base + (current->depth << 33), .rng.state = own_seed ^ 1,
	};
	bool with_thread = !current->bare && draw(&current->rng) % 2 == 0;
	if (with_thread) {
		beside.pages = shared(arena_pages * sizeof(struct model));
		beside.snapshot = shared(arena_pages * sizeof(struct model));
		EXPECT(pthread_create(&beside.thread, NULL, work_beside, &beside) == 0);
	}
	for (uint64_t i = 1; i < arena_pages; i++)
		if (current->pages[i].prot != current->pages[i - 1].prot)
			divide(i);
	for (current->step = 0; current->step < CHILD_STEPS; current->step++)
		one_step();
	check_all();
	while (current->children > 0)
		reap_oldest();
	if (with_thread)
		EXPECT(pthread_join(beside.thread, NULL) == 0);
	if (draw(&current->rng) % 4 == 0)
		exec_self(own_seed);
	_exit(0);
}

static void op_branch(void)
{
	uint64_t bytes = arena_pages * sizeof(struct model);
	uint64_t own_seed = draw(&current->rng), drawn = below(&current->rng, 6);
	if (current->depth == DEPTH_MAX)
		return;
	if (current->children == CHILDREN_MAX)
		reap_oldest();
	struct model *copy = shared(bytes);
	memcpy(copy, current->pages, bytes);
	bool bare = current->bare;
	pid_t child = fork_somehow(drawn);
	EXPECT(child >= 0);
	if (child == 0) {
		/* What descends from one that is killed does not outlive the program. */
		EXPECT(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
		current->pages = copy;
		current->snapshot = shared(bytes);
		current->line = own_seed;
		current->depth++;
		current->children = 0;
		current->rng.state = own_seed;
		live_as_child(own_seed);
	}
	current->bare = bare;
	EXPECT(munmap(copy, bytes) == 0);
	current->child[current->children] = child;
	current->doomed[current->children] = own_seed % 6 == 0;
	current->children++;
}
