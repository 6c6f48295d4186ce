// SPDX-License-Identifier: Apache-2.0
/*
 * flood FILL MORE: FILL children that sleep, then MORE forks from a real-time thread whose children get no turn before
 * it is done. Each child beyond FILL that runs prints a byte.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

static void child(int tell)
{
	if (tell)
		write(1, "x", 1);
	alarm(10);
	pause();
	_exit(0);
}

int main(int argc, char **argv)
{
	struct sched_param fifo = {.sched_priority = 10};
	cpu_set_t one;

	for (int i = atoi(argv[1]); i; i--)
		if (!fork())
			child(0);
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof(one), &one);
	sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo);
	for (int i = atoi(argv[2]); i; i--)
		if (!fork())
			child(1);
	sleep(3);
	return 0;
}
