/*
 * net CASE: sockets whose buffers, vectors and control messages are swapped out.
 *
 * Data goes through Unix stream and datagram sockets, with a descriptor passed along, and through TCP
 * over the loopback device, also with MSG_ZEROCOPY: there the kernel holds the pages themselves until
 * they were delivered, while they are evicted and their frames could be taken for other content.
 */
#include "vswap_test.h"
#include <arpa/inet.h>
#include <linux/errqueue.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define N 128ul

static uint64_t sum;

static char *evicted(uint64_t pages, uint64_t seed)
{
	char *data = map(pages);
	fill_range(data, pages, seed);
	evict(data, pages);
	return data;
}

struct stream {
	int fd;
	char *data;
};

static void *send_all(void *argument)
{
	struct stream *out = argument;
	for (uint64_t at = 0; at < N * PAGE;) {
		ssize_t n = send(out->fd, out->data + at, N * PAGE - at, 0);
		REQUIRE(n > 0);
		at += (uint64_t)n;
	}
	return NULL;
}

static void receive_all(int fd, char *to, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes;) {
		ssize_t n = recv(fd, to + at, bytes - at, 0);
		REQUIRE(n > 0);
		at += (uint64_t)n;
	}
}

static void exchange(int from, int to)
{
	struct stream out = { from, evicted(N, 1) };
	char *in = evicted(N, 2);
	pthread_t sender;
	REQUIRE(pthread_create(&sender, NULL, send_all, &out) == 0);
	receive_all(to, in, N * PAGE);
	REQUIRE(pthread_join(sender, NULL) == 0);
	sum += check_range(in, 0, N, 1, "received");
	evict(out.data, N);
	sum += check_range(out.data, 0, N, 1, "sent");
}

static void unix_stream(void)
{
	int ends[2];
	REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
	exchange(ends[0], ends[1]);
	exchange(ends[1], ends[0]);
}

/* The message header, its vector and its control data are swapped out as well. */
static void unix_messages(void)
{
	int ends[2], extra[2], passed;
	struct {
		struct msghdr header;
		struct iovec vector[8];
		char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
	} *message = map(1);
	char *out = evicted(8, 3), *in = evicted(8, 4);
	REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0 && pipe(extra) == 0);
	message->header = (struct msghdr){ .msg_iov = message->vector, .msg_iovlen = 8,
					   .msg_control = message->control,
					   .msg_controllen = sizeof message->control };
	struct cmsghdr *control = CMSG_FIRSTHDR(&message->header);
	*control = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(control), &extra[1], sizeof(int));
	for (int i = 0; i < 8; i++)
		message->vector[i] = (struct iovec){ out + (uint64_t)(7 - i) * PAGE, PAGE };
	evict(message, 1);
	REQUIRE(sendmsg(ends[0], &message->header, 0) == (ssize_t)(8 * PAGE));
	for (int i = 0; i < 8; i++)
		message->vector[i].iov_base = in + (uint64_t)(7 - i) * PAGE;
	memset(message->control, 0, sizeof message->control);
	evict(message, 1);
	REQUIRE(recvmsg(ends[1], &message->header, 0) == (ssize_t)(8 * PAGE));
	sum += check_range(in, 0, 8, 3, "message");
	memcpy(&passed, CMSG_DATA(CMSG_FIRSTHDR(&message->header)), sizeof(int));
	char byte = 'x';
	REQUIRE(write(passed, &byte, 1) == 1 && read(extra[0], &byte, 1) == 1);
}

static void connect_tcp(int ends[2])
{
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in *address = map(1);
	socklen_t *length = (socklen_t *)((char *)address + 512);
	*address = (struct sockaddr_in){ .sin_family = AF_INET,
					 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	*length = sizeof *address;
	evict(address, 1);
	REQUIRE(bind(listener, (struct sockaddr *)address, sizeof *address) == 0);
	evict(address, 1);
	REQUIRE(getsockname(listener, (struct sockaddr *)address, length) == 0);
	REQUIRE(listen(listener, 1) == 0);
	ends[0] = socket(AF_INET, SOCK_STREAM, 0);
	evict(address, 1);
	REQUIRE(connect(ends[0], (struct sockaddr *)address, sizeof *address) == 0);
	evict(address, 1);
	ends[1] = accept(listener, (struct sockaddr *)address, length);
	REQUIRE(ends[1] >= 0);
	close(listener);
}

static void tcp(void)
{
	int ends[2];
	connect_tcp(ends);
	exchange(ends[0], ends[1]);
	exchange(ends[1], ends[0]);
}

/* Waits for the kernel to say that it is done with `sends` calls. */
static void await_completions(int fd, uint32_t sends)
{
	uint32_t done = 0;
	while (done < sends) {
		char control[128];
		struct msghdr header = { .msg_control = control, .msg_controllen = sizeof control };
		struct pollfd polled = { .fd = fd };
		REQUIRE(poll(&polled, 1, 5000) == 1);
		REQUIRE(recvmsg(fd, &header, MSG_ERRQUEUE) == 0);
		struct cmsghdr *message = CMSG_FIRSTHDR(&header);
		REQUIRE(message != NULL);
		struct sock_extended_err *report = (struct sock_extended_err *)CMSG_DATA(message);
		REQUIRE(report->ee_origin == SO_EE_ORIGIN_ZEROCOPY && report->ee_errno == 0);
		done += report->ee_data - report->ee_info + 1;
	}
}

static void zerocopy(void)
{
	int ends[2], one = 1;
	const uint64_t pages = 16;
	connect_tcp(ends);
	if (setsockopt(ends[0], SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) != 0) {
		say("ok no MSG_ZEROCOPY in this kernel");
		exit(0);
	}
	for (uint64_t round = 0; round < 8; round++) {
		char *out = evicted(pages, 10 + round), *in = evicted(pages, 4);
		/* The receiver does not read yet, so that the pages stay in the socket. */
		REQUIRE(send(ends[0], out, pages * PAGE, MSG_ZEROCOPY) == (ssize_t)(pages * PAGE));
		REQUIRE(madvise(out, pages * PAGE, MADV_PAGEOUT) == 0);
		char *other = evicted(8 * pages, 5);
		sum += check_range(out, 0, pages, 10 + round, "page in flight");
		REQUIRE(madvise(out, pages * PAGE, MADV_PAGEOUT) == 0);
		receive_all(ends[1], in, pages * PAGE);
		sum += check_range(in, 0, pages, 10 + round, "received without a copy");
		await_completions(ends[0], 1);
		sum += check_range(out, 0, pages, 10 + round, "page that was in flight");
		sum += check_range(other, 0, 8 * pages, 5, "other pages");
		evict(out, pages);
		munmap(out, pages * PAGE);
		munmap(in, pages * PAGE);
		munmap(other, 8 * pages * PAGE);
	}
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "tcp";
	if (strcmp(name, "unix_stream") == 0)
		unix_stream();
	else if (strcmp(name, "unix_messages") == 0)
		unix_messages();
	else if (strcmp(name, "tcp") == 0)
		tcp();
	else if (strcmp(name, "zerocopy") == 0)
		zerocopy();
	else
		fail("no case %s", name);
	say("ok net %s checksum %016lx", name, sum);
	return 0;
}
