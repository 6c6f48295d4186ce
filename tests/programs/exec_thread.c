// SPDX-License-Identifier: Apache-2.0
/* exec_thread PROGRAM [ARGUMENT...]: runs it from a thread that is not the group leader; "errno N" if refused. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *run(void *words)
{
	execv(((char **)words)[0], words);
	printf("errno %d\n", errno);
	exit(1);
}

int main(int argc, char **argv)
{
	pthread_t t;

	pthread_create(&t, NULL, run, argv + 1);
	pause();
}
