// SPDX-License-Identifier: Apache-2.0
/* open_int80 PATH: opens by the 32-bit system call and prints what is in it, or "errno N". */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	/* a 32-bit call takes 32-bit pointers */
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	char text[4096];
	long fd;
	ssize_t n;

	strcpy(low, argv[1]);
	asm volatile("int $0x80" : "=a"(fd) : "a"(5L), "b"(low), "c"(0L), "d"(0L) : "memory", "r8", "r9", "r10", "r11");
	if ((int)fd < 0) {
		printf("errno %d\n", -(int)fd);
		return 1;
	}
	n = read(fd, text, sizeof(text));
	fwrite(text, 1, n > 0 ? n : 0, stdout);
	return 0;
}
