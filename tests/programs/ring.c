// SPDX-License-Identifier: Apache-2.0
/*
 * ring openat|openat2|write PATH [sqpoll], ring connect|send PORT [sqpoll], ring unix PATH [sqpoll], ring listen PORT
 * [sqpoll], ring unlink|mkdir|rename|link|symlink PATH [sqpoll]: one request through io_uring. Prints what is in the file, or "ok"; "errno N" from the completion;
 * "no ring: errno N" if the kernel gives none. sqpoll: a thread of the kernel takes the request, with no system call.
 * Ports are UDP, of listen TCP, on 127.0.0.1; unix is a stream; write is four bytes to a file that is opened as ever.
 * What rename, link and symlink make is PATH with a 2 behind it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define OP_LISTEN 57 /* IORING_OP_LISTEN, since Linux 6.11 */

int main(int argc, char **argv)
{
	struct io_uring_params p = {.flags = argc > 3 ? IORING_SETUP_SQPOLL : 0, .sq_thread_idle = 2000};
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_un there = {.sun_family = AF_UNIX};
	struct iovec data = {.iov_base = "data", .iov_len = 4};
	struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = &data, .msg_iovlen = 1};
	struct open_how how = {0};
	int ring = syscall(SYS_io_uring_setup, 4, &p), n;
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	char *sq, *cq, text[4096], other[4096];
	int names = 1;

	if (ring < 0) {
		printf("no ring: errno %d\n", errno);
		return 1;
	}
	sq = mmap(NULL, p.sq_off.array + 4 * p.sq_entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(*cqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		  IORING_OFF_CQ_RING);
	sqe = mmap(NULL, p.sq_entries * sizeof(*sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	memset(sqe, 0, sizeof(*sqe));
	to.sin_port = htons(atoi(argv[2]));
	if (!strcmp(argv[1], "openat") || !strcmp(argv[1], "openat2")) {
		sqe->opcode = argv[1][6] ? IORING_OP_OPENAT2 : IORING_OP_OPENAT;
		sqe->fd = AT_FDCWD;
		sqe->addr = (unsigned long)argv[2];
		names = 0;
		if (argv[1][6]) {
			sqe->len = sizeof(how);
			sqe->off = (unsigned long)&how;
		}
	} else if (!strcmp(argv[1], "unlink") || !strcmp(argv[1], "mkdir")) {
		sqe->opcode = *argv[1] == 'u' ? IORING_OP_UNLINKAT : IORING_OP_MKDIRAT;
		sqe->fd = AT_FDCWD;
		sqe->addr = (unsigned long)argv[2];
		sqe->len = *argv[1] == 'u' ? 0 : 0700;
	} else if (!strcmp(argv[1], "rename") || !strcmp(argv[1], "link") || !strcmp(argv[1], "symlink")) {
		sqe->opcode = *argv[1] == 'r'	? IORING_OP_RENAMEAT
			      : *argv[1] == 'l' ? IORING_OP_LINKAT
						: IORING_OP_SYMLINKAT;
		snprintf(other, sizeof(other), "%s2", argv[2]);
		sqe->fd = AT_FDCWD;
		sqe->addr = (unsigned long)argv[2];
		sqe->len = *argv[1] == 's' ? 0 : AT_FDCWD;
		sqe->off = (unsigned long)other;
	} else if (!strcmp(argv[1], "write")) {
		sqe->fd = open(argv[2], O_WRONLY);
		sqe->opcode = IORING_OP_WRITE;
		sqe->addr = (unsigned long)data.iov_base;
		sqe->len = data.iov_len;
	} else if (!strcmp(argv[1], "unix")) {
		strncpy(there.sun_path, argv[2], sizeof(there.sun_path) - 1);
		sqe->fd = socket(AF_UNIX, SOCK_STREAM, 0);
		sqe->opcode = IORING_OP_CONNECT;
		sqe->addr = (unsigned long)&there;
		sqe->off = sizeof(there);
	} else if (!strcmp(argv[1], "listen")) {
		sqe->fd = socket(AF_INET, SOCK_STREAM, 0);
		if (bind(sqe->fd, (void *)&to, sizeof(to)))
			return 1;
		sqe->opcode = OP_LISTEN;
		sqe->len = 1;
	} else {
		sqe->fd = socket(AF_INET, SOCK_DGRAM, 0);
		if (!strcmp(argv[1], "connect")) {
			sqe->opcode = IORING_OP_CONNECT;
			sqe->addr = (unsigned long)&to;
			sqe->off = sizeof(to);
		} else {
			sqe->opcode = IORING_OP_SENDMSG;
			sqe->addr = (unsigned long)&message;
			sqe->len = 1;
		}
	}
	((unsigned *)(sq + p.sq_off.array))[0] = 0;
	__atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	/* with SQPOLL this submits nothing: it waits for the completion */
	n = argc > 3 ? IORING_ENTER_SQ_WAKEUP : 0;
	if (syscall(SYS_io_uring_enter, ring, n ? 0 : 1, 1, IORING_ENTER_GETEVENTS | n, NULL, 0) < 0) {
		printf("errno %d\n", errno);
		return 1;
	}
	cqe = (void *)(cq + p.cq_off.cqes);
	if (cqe->res < 0) {
		printf("errno %d\n", -cqe->res);
		return 1;
	}
	if (sqe->opcode == IORING_OP_CONNECT) {
		if (write(sqe->fd, "data", 4) != 4)
			return 1;
	} else if (sqe->opcode == OP_LISTEN) {
		puts("ok");
		fflush(stdout);
		pause();
	} else if (!names) {
		n = read(cqe->res, text, sizeof(text));
		fwrite(text, 1, n > 0 ? n : 0, stdout);
		return 0;
	}
	puts("ok");
	return 0;
}
