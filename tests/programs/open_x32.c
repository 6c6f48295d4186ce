// SPDX-License-Identifier: Apache-2.0
/* open_x32 PATH: opens by the x32 system call and prints what is in it, or "errno N" (38: the kernel has no x32). */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char text[4096];
	long fd = syscall(0x40000000 | 2, argv[1], 0, 0);
	ssize_t n;

	if (fd < 0) {
		printf("errno %d\n", errno);
		return 1;
	}
	n = read(fd, text, sizeof(text));
	fwrite(text, 1, n > 0 ? n : 0, stdout);
	return 0;
}
