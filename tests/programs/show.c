// SPDX-License-Identifier: Apache-2.0
/* show PATH: prints what is in a file, or "errno N". */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char text[4096];
	int fd = open(argv[1], O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text));

	if (n < 0)
		printf("errno %d\n", errno);
	else
		fwrite(text, 1, n, stdout);
	return n < 0;
}
