/*
 * uring CASE DIRECTORY: io_uring on memory that is swapped out, by raw system calls.
 *
 * `registered` reads into a registered buffer: the kernel has pinned its pages, so they must neither be
 * evicted nor replaced until they are unregistered, or the data lands in pages that nobody sees.
 * `plain` uses ordinary buffers, which the kernel faults in, at once or from a worker of its own.
 */
#include "vswap_test.h"
#include <linux/io_uring.h>
#include <sys/uio.h>

#define N 32ul /* pages of a buffer */
#define ENTRIES 8u

struct ring {
	int fd;
	char *queues;
	struct io_uring_sqe *entries;
	struct io_uring_params at;
};

static const char *directory;
static uint64_t sum;

static struct ring make_ring(void)
{
	struct ring ring = { 0 };
	ring.fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &ring.at);
	if (ring.fd < 0 && (errno == ENOSYS || errno == EPERM)) {
		say("ok io_uring is not allowed here");
		exit(0);
	}
	REQUIRE(ring.fd >= 0 && (ring.at.features & IORING_FEAT_SINGLE_MMAP));
	size_t size = ring.at.cq_off.cqes + ring.at.cq_entries * sizeof(struct io_uring_cqe);
	size_t other = ring.at.sq_off.array + ring.at.sq_entries * sizeof(uint32_t);
	ring.queues = mmap(NULL, size > other ? size : other, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQ_RING);
	ring.entries = mmap(NULL, ring.at.sq_entries * sizeof *ring.entries, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQES);
	REQUIRE(ring.queues != MAP_FAILED && ring.entries != MAP_FAILED);
	return ring;
}

static uint32_t *word_at(struct ring *ring, uint32_t offset)
{
	return (uint32_t *)(ring->queues + offset);
}

/* Submits one request, waits for it and returns its result. */
static int32_t perform(struct ring *ring, struct io_uring_sqe entry)
{
	uint32_t *tail = word_at(ring, ring->at.sq_off.tail);
	uint32_t index = *tail & *word_at(ring, ring->at.sq_off.ring_mask);
	ring->entries[index] = entry;
	word_at(ring, ring->at.sq_off.array)[index] = index;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	REQUIRE(syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1);
	uint32_t *head = word_at(ring, ring->at.cq_off.head);
	while (__atomic_load_n(word_at(ring, ring->at.cq_off.tail), __ATOMIC_ACQUIRE) == *head)
		sched_yield();
	struct io_uring_cqe *completions =
		(struct io_uring_cqe *)(ring->queues + ring->at.cq_off.cqes);
	int32_t result = completions[*head & *word_at(ring, ring->at.cq_off.ring_mask)].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

static int pattern_file(uint64_t seed)
{
	char path[512];
	snprintf(path, sizeof path, "%s/vswap-uring-XXXXXX", directory);
	int fd = mkstemp(path);
	REQUIRE(fd >= 0 && unlink(path) == 0);
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

static struct io_uring_sqe request(uint8_t operation, uint8_t flags, int fd, void *data)
{
	return (struct io_uring_sqe){ .opcode = operation, .flags = flags, .fd = fd,
				      .addr = (uintptr_t)data, .len = N * PAGE };
}

static void plain(void)
{
	struct ring ring = make_ring();
	for (int worker = 0; worker < 2; worker++) {
		uint8_t flags = worker ? IOSQE_ASYNC : 0;
		int fd = pattern_file(2);
		char *data = evicted(1);
		REQUIRE(perform(&ring, request(IORING_OP_READ, flags, fd, data)) ==
			(int32_t)(N * PAGE));
		sum += check_range(data, 0, N, 2, "read through a ring");
		fill_range(data, N, 3);
		evict(data, N);
		REQUIRE(perform(&ring, request(IORING_OP_WRITE, flags, fd, data)) ==
			(int32_t)(N * PAGE));
		char *back = map(N);
		REQUIRE(pread(fd, back, N * PAGE, 0) == (ssize_t)(N * PAGE));
		sum += check_range(back, 0, N, 3, "written through a ring");
		evict(data, N);
		sum += check_range(data, 0, N, 3, "after a ring wrote it");
		close(fd);
	}
}

static void registered(void)
{
	struct ring ring = make_ring();
	int fd = pattern_file(2);
	char *data = evicted(1), *other;
	struct iovec buffer = { data, N * PAGE };
	REQUIRE(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1) == 0);
	sum += check_range(data, 0, N, 1, "registered");
	for (uint64_t round = 0; round < 4; round++) {
		/* Asked to go, and under pressure: what is pinned stays where it is. */
		REQUIRE(madvise(data, N * PAGE, MADV_PAGEOUT) == 0);
		other = map(1024);
		fill_range(other, 1024, round);
		evict(other, 1024);
		REQUIRE(perform(&ring, request(IORING_OP_READ_FIXED, 0, fd, data)) ==
			(int32_t)(N * PAGE));
		sum += check_range(data, 0, N, 2, "read into a registered buffer");
		fill_range(data, N, 5 + round);
		REQUIRE(madvise(data, N * PAGE, MADV_PAGEOUT) == 0);
		int copy = pattern_file(9);
		REQUIRE(perform(&ring, request(IORING_OP_WRITE_FIXED, 0, copy, data)) ==
			(int32_t)(N * PAGE));
		char *back = map(N);
		REQUIRE(pread(copy, back, N * PAGE, 0) == (ssize_t)(N * PAGE));
		sum += check_range(back, 0, N, 5 + round, "written from a registered buffer");
		sum += check_range(other, 0, 1024, round, "other pages");
		close(copy);
		munmap(back, N * PAGE);
		munmap(other, 1024 * PAGE);
	}
	REQUIRE(syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0) == 0);
	evict(data, N);
	sum += check_range(data, 0, N, 8, "unregistered");
}

int main(int argc, char **argv)
{
	REQUIRE(argc == 3);
	directory = argv[2];
	if (strcmp(argv[1], "plain") == 0)
		plain();
	else if (strcmp(argv[1], "registered") == 0)
		registered();
	else
		fail("no case %s", argv[1]);
	say("ok uring %s checksum %016lx", argv[1], sum);
	return 0;
}
