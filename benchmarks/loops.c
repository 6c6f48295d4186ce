// SPDX-License-Identifier: Apache-2.0
/*
 * A process that opens and closes files on command, and times it.
 *
 *   loops CPU FILE...
 *
 * Commands on standard input, one a line; each is answered by one line on standard output:
 *   warm N        N times open + close, files in turn: nanoseconds of the whole loop
 *   cold N BYTES  N times: walk through BYTES of memory, then time one open: N times in nanoseconds
 *   seconds S     open + close for S seconds: how many, nanoseconds
 *   stat N        N times stat: nanoseconds of the whole loop
 * CPU -1: not pinned.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void open_close(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		perror(path);
		exit(1);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	int files = argc - 2, cpu;
	char **file = argv + 2, line[256];
	volatile char sink = 0;
	char *memory = NULL;
	long bytes = 0;

	if (files < 1) {
		fprintf(stderr, "usage: loops CPU FILE...\n");
		return 64;
	}
	cpu = atoi(argv[1]);
	if (cpu >= 0) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		sched_setaffinity(0, sizeof(set), &set);
	}
	setvbuf(stdout, NULL, _IOFBF, 1 << 20);
	while (fgets(line, sizeof(line), stdin)) {
		char what[16];
		long n, size = 0, start;

		if (sscanf(line, "%15s %ld %ld", what, &n, &size) < 2)
			return 64;
		if (!strcmp(what, "warm")) {
			start = now();
			for (long i = 0, f = 0; i < n; i++) {
				open_close(file[f]);
				f = f + 1 == files ? 0 : f + 1;
			}
			printf("%ld\n", now() - start);
		} else if (!strcmp(what, "stat")) {
			struct stat st;

			start = now();
			for (long i = 0, f = 0; i < n; i++) {
				stat(file[f], &st);
				f = f + 1 == files ? 0 : f + 1;
			}
			printf("%ld\n", now() - start);
		} else if (!strcmp(what, "seconds")) {
			long end, done = 0, t;

			start = now();
			end = start + n * 1000000000L;
			while ((t = now()) < end)
				for (int i = 0; i < 256; i++)
					open_close(file[done++ % files]);
			printf("%ld %ld\n", done, t - start);
		} else if (!strcmp(what, "cold")) {
			if (size > bytes) {
				memory = realloc(memory, size);
				if (!memory)
					return 1;
				memset(memory, 1, size);
				bytes = size;
			}
			for (long i = 0; i < n; i++) {
				int fd;

				/* writes, so that the lines are owned here and the old ones go */
				for (long at = 0; at < size; at += 64)
					memory[at]++;
				sink += memory[size - 1];
				start = now();
				fd = open(file[i % files], O_RDONLY | O_CLOEXEC);
				printf("%ld ", now() - start);
				if (fd < 0)
					return 1;
				close(fd);
			}
			printf("\n");
		} else {
			return 64;
		}
		fflush(stdout);
	}
	return 0;
}
