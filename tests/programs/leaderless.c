// SPDX-License-Identifier: Apache-2.0
/* leaderless PATH: the first thread ends; another prints what is in the file, or "errno N". */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *go_on(void *path)
{
	char text[4096];
	int fd;
	ssize_t n;

	usleep(100000);
	fd = open(path, O_RDONLY);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text));
	if (n < 0)
		printf("errno %d\n", errno);
	else
		fwrite(text, 1, n, stdout);
	exit(n < 0);
}

int main(int argc, char **argv)
{
	pthread_t t;

	pthread_create(&t, NULL, go_on, argv[1]);
	pthread_exit(NULL);
}
