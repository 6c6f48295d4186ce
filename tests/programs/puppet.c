// SPDX-License-Identifier: Apache-2.0
/*
 * puppet WORD: does what it is told on descriptor 7, a line each, in a child of its own; answers "yes" or "no" on 8.
 *
 *   w FILE     writes two bytes to it
 *   r PROGRAM  runs it, in another child: as `puppet exit`
 *   c PORT     connects to it on 127.0.0.1
 *   n          nothing
 *   e STATUS   ends itself
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* 0 if the child, which `pid` says we are not, ended well. */
static int result(pid_t pid)
{
	int status = 0;

	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return 1;
	return status != 0;
}

static int act(char what, const char *more)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	pid_t pid;
	int fd;

	switch (what) {
	case 'w':
		fd = open(more, O_WRONLY | O_APPEND);
		return fd < 0 || write(fd, "x\n", 2) != 2;
	case 'r':
		pid = fork();
		if (!pid) {
			execl(more, more, "exit", NULL);
			_exit(1);
		}
		return result(pid);
	case 'c':
		to.sin_port = htons(atoi(more));
		to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		fd = socket(AF_INET, SOCK_STREAM, 0);
		return fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to));
	}
	return 0;
}

int main(int argc, char **argv)
{
	char line[4200];
	FILE *told = argc > 1 && strcmp(argv[1], "exit") ? fdopen(7, "r") : NULL;

	if (!told)
		return 0;
	dprintf(8, "ready\n");
	while (fgets(line, sizeof(line), told)) {
		char *more = line + 2;
		pid_t pid;

		line[strcspn(line, "\n")] = 0;
		if (*line == 'e')
			_exit(atoi(more));
		pid = fork();
		if (!pid)
			_exit(act(*line, more));
		dprintf(8, result(pid) ? "no\n" : "yes\n");
	}
	return 0;
}
