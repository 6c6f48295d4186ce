// SPDX-License-Identifier: Apache-2.0
/*
 * ring_xattr PATH [personality]: sets trusted.ring of PATH through io_uring; prints "set", or "errno N" from the completion;
 * "no ring: errno N" if the kernel gives none. personality: with credentials that were registered before, and are no
 * longer those of the process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct io_uring_params p = {0};
	int ring = syscall(SYS_io_uring_setup, 4, &p);
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	char *sq, *cq;

	if (ring < 0) {
		printf("no ring: errno %d\n", errno);
		return 1;
	}
	sq = mmap(NULL, p.sq_off.array + 4 * p.sq_entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(*cqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		  IORING_OFF_CQ_RING);
	sqe = mmap(NULL, p.sq_entries * sizeof(*sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_SETXATTR;
	sqe->addr = (unsigned long)"trusted.ring";
	sqe->addr2 = (unsigned long)"1";
	sqe->addr3 = (unsigned long)argv[1];
	sqe->len = 1;
	if (argc > 2) {
		sqe->personality = syscall(SYS_io_uring_register, ring, IORING_REGISTER_PERSONALITY, NULL, 0);
		if (setgid(getgid()))
			return 2;
	}
	((unsigned *)(sq + p.sq_off.array))[0] = 0;
	__atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0) {
		printf("errno %d\n", errno);
		return 1;
	}
	cqe = (void *)(cq + p.cq_off.cqes);
	if (cqe->res < 0) {
		printf("errno %d\n", -cqe->res);
		return 1;
	}
	printf("set\n");
	return 0;
}
