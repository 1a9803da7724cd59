/*
 * special CASE [MIB]: what few programs do with their memory, with more of it than the budget holds.
 *
 * Each case fills memory, evicts it, does the unusual thing and verifies. A case that the machine
 * cannot run prints `cannot: ` with the reason and ends with code 77.
 */
#include "vswap_test.h"
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

static char *data;
static uint64_t pages, sum;

static _Noreturn void cannot(const char *why)
{
	say("cannot: %s", why);
	_exit(77);
}

static void verify(const char *when)
{
	sum += check_range(data, 0, pages, 1, when);
}

/* A key's rights apply to memory that comes back, and to memory that is brought back by reading. */
static void protection_keys(void)
{
	int key = pkey_alloc(0, 0);
	if (key < 0)
		cannot("there are no protection keys");
	REQUIRE(pkey_mprotect(data, pages * PAGE, PROT_READ | PROT_WRITE, key) == 0);
	evict(data, pages);
	verify("under a key");
	REQUIRE(pkey_set(key, PKEY_DISABLE_WRITE) == 0);
	verify("read-only by its key");
	REQUIRE(pkey_set(key, PKEY_DISABLE_ACCESS) == 0);
	int pipe_ends[2];
	REQUIRE(pipe(pipe_ends) == 0);
	REQUIRE(write(pipe_ends[1], data, PAGE) == -1 && errno == EFAULT);
	REQUIRE(pkey_set(key, 0) == 0);
	REQUIRE(pkey_mprotect(data, pages * PAGE, PROT_READ | PROT_WRITE, 0) == 0);
	evict(data, pages);
	verify("without the key");
}

static void locked(void)
{
	uint64_t half = pages / 8;
	REQUIRE(mlock(data, half * PAGE) == 0);
	REQUIRE(resident_pages(data, half) == half);
	verify("locked in part");
	REQUIRE(resident_pages(data, half) == half);
	REQUIRE(munlock(data, half * PAGE) == 0);
	evict(data, pages);
	verify("unlocked");
	/* Only what is mapped from now on: all of it does not fit. */
	REQUIRE(mlockall(MCL_FUTURE) == 0);
	char *later = map(256);
	REQUIRE(resident_pages(later, 256) == 256);
	fill_range(later, 256, 2);
	verify("beside locked memory");
	REQUIRE(resident_pages(later, 256) == 256);
	sum += check_range(later, 0, 256, 2, "locked from its start");
	REQUIRE(munlockall() == 0);
	evict(later, 256);
	sum += check_range(later, 0, 256, 2, "unlocked");
	fill_range(data + pages / 8 * 7 * PAGE, pages - pages / 8 * 7, 3);
	evict(data, pages);
	/* Of the rest, only what is there: it may be little, and it is the program's alone. */
	REQUIRE(munmap(data, pages / 8 * 7 * PAGE) == 0);
	data += pages / 8 * 7 * PAGE;
	pages -= pages / 8 * 7;
	REQUIRE(mlockall(MCL_CURRENT | MCL_FUTURE) == 0);
	REQUIRE(resident_pages(data, pages) == pages);
	sum += check_range(data, 0, pages, 3, "locked as it was");
	REQUIRE(munlockall() == 0);
	evict(data, pages);
	sum += check_range(data, 0, pages, 3, "unlocked again");
}

static void forked(void)
{
	uint64_t half = pages / 2;
	REQUIRE(madvise(data, half * PAGE, MADV_WIPEONFORK) == 0);
	REQUIRE(madvise(data + half * PAGE, PAGE, MADV_DONTFORK) == 0);
	evict(data, pages);
	pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0) {
		check_zero(data, half, "wiped");
		check_range(data + (half + 1) * PAGE, half + 1, pages - half - 1, 1, "inherited");
		unsigned char seen;
		REQUIRE(mincore(data + half * PAGE, PAGE, &seen) == -1 && errno == ENOMEM);
		_exit(0);
	}
	int status;
	REQUIRE(waitpid(child, &status, 0) == child && status == 0);
	verify("in the parent");
}

/* Its own handler of its own faults. */
static void *handle_faults(void *argument)
{
	int fd = *(int *)argument;
	char *source = map(1);
	for (;;) {
		struct uffd_msg message;
		struct pollfd ready = { fd, POLLIN, 0 };
		REQUIRE(poll(&ready, 1, -1) == 1);
		if (read(fd, &message, sizeof message) != sizeof message)
			return NULL;
		if (message.event != UFFD_EVENT_PAGEFAULT)
			continue;
		uint64_t page = (message.arg.pagefault.address & ~(PAGE - 1)) - (uint64_t)data;
		fill_page(source, key_of(3, page / PAGE));
		struct uffdio_copy copy = { (uint64_t)data + page, (uint64_t)source, PAGE, 0, 0 };
		REQUIRE(ioctl(fd, UFFDIO_COPY, &copy) == 0 || errno == EEXIST);
	}
}

/* The second quarter of the memory is the program's own to fill, the first page of it is not there. */
static void own_userfaultfd(void)
{
	static int fd;
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		cannot("userfaultfd is not permitted");
	struct uffdio_api api = { .api = UFFD_API };
	REQUIRE(ioctl(fd, UFFDIO_API, &api) == 0);
	uint64_t quarter = pages / 4;
	char *own = data + quarter * PAGE;
	struct uffdio_register range = { { (uint64_t)own, quarter * PAGE },
					 UFFDIO_REGISTER_MODE_MISSING, 0 };
	if (ioctl(fd, UFFDIO_REGISTER, &range) != 0) {
		say("refused: UFFDIO_REGISTER: %s", strerror(errno));
		_exit(78);
	}
	sum += check_range(own, quarter, quarter, 1, "registered");
	pthread_t handler;
	REQUIRE(pthread_create(&handler, NULL, handle_faults, &fd) == 0);
	REQUIRE(madvise(own, quarter * PAGE, MADV_DONTNEED) == 0);
	sum += check_range(own, quarter, quarter, 3, "filled by the program");
	sum += check_range(data, 0, quarter, 1, "before its own");
	sum += check_range(own + quarter * PAGE, 2 * quarter, pages - 2 * quarter, 1, "behind");
	sum += check_range(own, quarter, quarter, 3, "after others were paged");
	REQUIRE(ioctl(fd, UFFDIO_UNREGISTER, &range.range) == 0);
	sum += check_range(own, quarter, quarter, 3, "unregistered");
}

/* Written and read by a way that goes past the page tables' protection. */
static void through_proc_mem(void)
{
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	REQUIRE(fd >= 0);
	char *page = map(1);
	uint64_t refused = 0;
	for (uint64_t i = 0; i < pages; i++) {
		off_t at = (off_t)(uintptr_t)(data + i * PAGE);
		fill_page(page, key_of(4, i));
		ssize_t n = pwrite(fd, page, PAGE, at);
		if (n != (ssize_t)PAGE) {
			REQUIRE(n == -1 && errno == EIO);
			refused++;
			memcpy(data + i * PAGE, page, PAGE);
		}
	}
	sum += check_range(data, 0, pages, 4, "written through /proc/self/mem");
	evict(data, pages);
	for (uint64_t i = 0; i < pages; i++) {
		off_t at = (off_t)(uintptr_t)(data + i * PAGE);
		ssize_t n = pread(fd, page, PAGE, at);
		if (n != (ssize_t)PAGE) {
			REQUIRE(n == -1 && errno == EIO);
			refused++;
			continue;
		}
		sum += check_page(page, key_of(4, i), "read through /proc/self/mem");
	}
	if (refused != 0) {
		say("refused: %lu of %lu calls: EIO", refused, 2 * pages);
		_exit(78);
	}
}

static void huge_pages(void)
{
	char *more = map(pages);
	if (madvise(more, pages * PAGE, MADV_HUGEPAGE) != 0)
		cannot("there are no transparent huge pages");
	fill_range(more, pages, 5);
	verify("beside huge pages");
	sum += check_range(more, 0, pages, 5, "of huge pages");
	/* It may fail for many reasons: it is a wish. */
	madvise(more, pages * PAGE, MADV_COLLAPSE);
	sum += check_range(more, 0, pages, 5, "collapsed");
	verify("in the end");
}

static void no_huge_pages(void)
{
	REQUIRE(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
	huge_pages();
}

/* The owner dies with the mutex in memory that is swapped out around it. */
static void *die_with(void *mutex)
{
	REQUIRE(pthread_mutex_lock(mutex) == 0);
	return NULL;
}

static void robust_mutexes(void)
{
	pthread_mutexattr_t kind;
	REQUIRE(pthread_mutexattr_init(&kind) == 0);
	REQUIRE(pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST) == 0);
	for (uint64_t i = 0; i < pages; i += pages / 16) {
		pthread_mutex_t *mutex = (void *)(data + i * PAGE);
		pthread_t owner;
		REQUIRE(pthread_mutex_init(mutex, &kind) == 0);
		REQUIRE(pthread_create(&owner, NULL, die_with, mutex) == 0);
		REQUIRE(pthread_join(owner, NULL) == 0);
		evict(data, pages);
		REQUIRE(pthread_mutex_lock(mutex) == EOWNERDEAD);
		REQUIRE(pthread_mutex_consistent(mutex) == 0);
		REQUIRE(pthread_mutex_unlock(mutex) == 0);
		fill_page(mutex, key_of(1, i));
	}
	verify("where mutexes were");
}

/* Dies with everything evicted. */
static void dies(void)
{
	abort();
}

/* Grows until the limit of its address space, and uses what it got. */
static void address_space(void)
{
	struct rlimit limit = { 0, 0 }, files = { 16, 16 };
	REQUIRE(setrlimit(RLIMIT_NOFILE, &files) == 0);
	REQUIRE(getrlimit(RLIMIT_AS, &limit) == 0);
	if (limit.rlim_cur == RLIM_INFINITY)
		cannot("there is no ulimit -v");
	for (uint64_t i = 0; i < 4096; i++) {
		char *block = malloc(MIB);
		if (block == NULL)
			break;
		REQUIRE(i < 4095);
		free(block);
		block = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (block == MAP_FAILED)
			break;
	}
	verify("at the limit of the address space");
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} cases[] = {
		{ "protection-keys", protection_keys },
		{ "locked", locked },
		{ "forked", forked },
		{ "own-userfaultfd", own_userfaultfd },
		{ "proc-mem", through_proc_mem },
		{ "huge-pages", huge_pages },
		{ "no-huge-pages", no_huge_pages },
		{ "robust-mutexes", robust_mutexes },
		{ "abort", dies },
		{ "address-space", address_space },
	};
	REQUIRE(argc > 1);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		if (strcmp(argv[1], cases[i].name) != 0)
			continue;
		pages = argument(argc, argv, 2, 100) * MIB / PAGE;
		data = map(pages);
		fill_range(data, pages, 1);
		evict(data, pages);
		cases[i].run();
		say("ok special %s checksum %016lx", argv[1], sum);
		return 0;
	}
	fail("no case %s", argv[1]);
}
