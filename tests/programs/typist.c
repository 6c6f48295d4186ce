// SPDX-License-Identifier: Apache-2.0
/*
 * typist WAY FD COMMAND: the ioctl COMMAND (TIOCSTI is 0x5412) with the byte "x" on descriptor FD. WAY: native; wide,
 * with more bits set in the command than the kernel takes of it; int80, by the 32-bit system call. Prints "ok" or "errno N".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	/* a 32-bit call takes 32-bit pointers */
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	unsigned long command;
	long fd, result;

	if (argc < 4)
		return 64;
	fd = atoi(argv[2]);
	command = strtoul(argv[3], NULL, 0);
	*low = 'x';
	if (!strcmp(argv[1], "int80")) {
		asm volatile("int $0x80"
			     : "=a"(result)
			     : "a"(54L), "b"(fd), "c"(command), "d"(low)
			     : "memory", "r8", "r9", "r10", "r11");
		errno = -(int)result;
	} else {
		if (!strcmp(argv[1], "wide"))
			command |= 1UL << 32 | 1UL << 63;
		result = syscall(SYS_ioctl, fd, command, low);
	}
	if ((int)result < 0) {
		printf("errno %d\n", errno);
		return 1;
	}
	puts("ok");
	return 0;
}
