// SPDX-License-Identifier: Apache-2.0
/*
 * spawn fork|vfork|thread|clone3|PID PROGRAM [ARGUMENT...]: a child, made so, runs the program; ends as it ended.
 * PID: by clone3 with that very process id.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void *in_thread(void *words)
{
	pid_t pid = vfork();

	if (!pid) {
		execv(((char **)words)[0], words);
		_exit(126);
	}
	return (void *)(intptr_t)pid;
}

int main(int argc, char **argv)
{
	struct clone_args args = {.exit_signal = SIGCHLD};
	char *how = argv[1];
	pthread_t thread;
	pid_t pid, wanted;
	void *result;
	int status;

	argv += 2;
	if (!strcmp(how, "fork")) {
		pid = fork();
	} else if (!strcmp(how, "vfork")) {
		pid = vfork();
	} else if (!strcmp(how, "thread")) {
		pthread_create(&thread, NULL, in_thread, argv);
		pthread_join(thread, &result);
		pid = (intptr_t)result;
	} else {
		wanted = atoi(how);
		if (wanted) {
			args.set_tid = (uintptr_t)&wanted;
			args.set_tid_size = 1;
		}
		pid = syscall(SYS_clone3, &args, sizeof(args));
	}
	if (pid < 0) {
		printf("errno %d\n", errno);
		return 125;
	}
	if (!pid) {
		execv(argv[0], argv);
		_exit(126);
	}
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status)) { /* as a shell says it */
		fflush(stdout);
		return 128 + WTERMSIG(status);
	}
	return WEXITSTATUS(status);
}
