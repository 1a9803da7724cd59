/* A page that io_uring has pinned (FOLL_PIN) is evicted, then the kernel reads a file into it: what does the
 * program see, and does the eviction say anything? ./pins */
#define _GNU_SOURCE
#include "bench.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#ifndef UFFDIO_MOVE
struct uffdio_move {
	__u64 dst, src, len, mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif

static struct io_uring_params params;
static int ring;
static char *sq, *cq;
static struct io_uring_sqe *sqes;

static void open_ring(struct iovec *buffer)
{
	ring = syscall(SYS_io_uring_setup, 4, &params);
	if (ring < 0)
		DIE("io_uring_setup");
	sq = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	sqes = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED)
		DIE("mmap ring");
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, buffer, 1))
		DIE("register buffers");
}

/* One READ_FIXED of a page; its result. */
static int read_fixed(int fd, char *at)
{
	_Atomic unsigned *tail = (void *)(sq + params.sq_off.tail), *head = (void *)(cq + params.cq_off.head);
	*sqes = (struct io_uring_sqe){ .opcode = IORING_OP_READ_FIXED, .fd = fd, .addr = (uint64_t)at, .len = PAGE };
	*(unsigned *)(sq + params.sq_off.array) = 0;
	atomic_fetch_add(tail, 1);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		DIE("io_uring_enter");
	struct io_uring_cqe *cqe = (void *)(cq + params.cq_off.cqes);
	int result = cqe[*head & *(unsigned *)(cq + params.cq_off.ring_mask)].res;
	atomic_fetch_add(head, 1);
	return result;
}

static void try(const char *what, int shared, int how)
{
	int file = memfd_create("file", 0), store = memfd_create("store", 0), out = 0;
	static char data[PAGE];
	memset(data, 'F', PAGE);
	if (write(file, data, PAGE) != PAGE || ftruncate(store, PAGE))
		DIE("memfd");
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, shared ? store : -1, 0);
	memset(p, 'm', PAGE);
	open_ring(&(struct iovec){ p, PAGE });
	if (how == 0) {
		out = madvise(p, PAGE, MADV_DONTNEED);
	} else if (how == 1) {
		out = madvise(p, PAGE, MADV_GUARD_INSTALL);
		madvise(p, PAGE, MADV_GUARD_REMOVE);
	} else if (how == 2) {
		out = fallocate(store, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE);
	} else {
		int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
		struct uffdio_api api = { .api = UFFD_API, .features = 1 << 16 };
		char *to = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		struct uffdio_register r = { .range = { (uint64_t)to, PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
		struct uffdio_move m = { .dst = (uint64_t)to, .src = (uint64_t)p, .len = PAGE };
		if (ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &r))
			DIE("uffd");
		out = ioctl(uffd, UFFDIO_MOVE, &m);
	}
	const char *said = out ? strerror(errno) : "success";
	if (how < 3)
		memset(p, 'm', PAGE); /* the engine refills what it saved */
	int got = read_fixed(file, p);
	printf("%-26s evicting a pinned page: %s; READ_FIXED: %d; the program sees %s\n", what, said, got, *p == 'F' ? "the file" : "OLD DATA");
	close(ring);
}

int main(void)
{
	try("UFFDIO_MOVE", 0, 3);
	try("MADV_DONTNEED", 0, 0);
	try("MADV_GUARD_INSTALL", 0, 1);
	try("memfd, punch hole", 1, 2);
}
