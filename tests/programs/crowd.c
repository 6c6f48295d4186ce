// SPDX-License-Identifier: Apache-2.0
/*
 * crowd PROCESSES FILES SECONDS DIRECTORY: many processes on one CPU, each opens its own files, with paths that no other
 * opens, again and again. Prints how many opens there were.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int processes = atoi(argv[1]), files = atoi(argv[2]);
	double seconds = atof(argv[3]);
	long *opens = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof(one), &one);
	for (int p = 0; p < processes; p++) {
		struct timespec from, now;
		char path[4096];
		long done = 0;

		if (fork())
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		clock_gettime(CLOCK_MONOTONIC, &from);
		do {
			snprintf(path, sizeof(path), "%s/%d/%ld", argv[4], p, done % files);
			int fd = open(path, O_RDONLY);

			if (fd < 0)
				_exit(1);
			close(fd);
			if (!(++done & 15))
				sched_yield();
			clock_gettime(CLOCK_MONOTONIC, &now);
		} while (now.tv_sec - from.tv_sec + (now.tv_nsec - from.tv_nsec) / 1e9 < seconds);
		__atomic_fetch_add(opens, done, __ATOMIC_SEQ_CST);
		_exit(0);
	}
	while (wait(NULL) > 0)
		;
	printf("%ld\n", *opens);
	return 0;
}
