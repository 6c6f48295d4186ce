// SPDX-License-Identifier: Apache-2.0
/*
 * spawn fork|vfork|thread|clone3|parent|vm|newpid|GROUP|PID PROGRAM [ARGUMENT...]: a child, made so, runs the program;
 * ends as it ended. By clone3 are parent (a child of the caller's parent: does not wait for it), vm (in the caller's
 * memory), newpid (in a PID namespace of its own), GROUP (in the control group of that path) and PID (with that very
 * process id).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
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

static char stack[65536] __attribute__((aligned(16)));

static void *in_thread(void *words)
{
	pid_t pid = vfork();

	if (!pid) {
		execv(((char **)words)[0], words);
		_exit(126);
	}
	return (void *)(intptr_t)pid;
}

__attribute__((noreturn, used)) static void run(char **words)
{
	execv(words[0], words);
	_exit(126);
}

/* clone3 with a stack of its own, on which the child calls run(). */
static long clone_on(struct clone_args *args, char **words)
{
	register char **kept asm("r12") = words;
	register void (*code)(char **) asm("r13") = run;
	long pid;

	asm volatile("syscall\n\t"
		     "test %%rax, %%rax\n\t"
		     "jnz 1f\n\t"
		     "mov %%r12, %%rdi\n\t"
		     "call *%%r13\n"
		     "1:"
		     : "=a"(pid)
		     : "a"(SYS_clone3), "D"(args), "S"(sizeof(*args)), "r"(kept), "r"(code)
		     : "rcx", "r11", "memory");
	if (pid < 0)
		errno = -pid;
	return pid;
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
	} else if (!strcmp(how, "vm")) {
		args.flags = CLONE_VM;
		args.stack = (uintptr_t)stack;
		args.stack_size = sizeof(stack);
		pid = clone_on(&args, argv);
	} else {
		wanted = atoi(how);
		if (!strcmp(how, "parent")) {
			args.flags = CLONE_PARENT;
			args.exit_signal = 0; /* the caller's */
		} else if (!strcmp(how, "newpid")) {
			args.flags = CLONE_NEWPID;
		} else if (how[0] == '/') {
			args.flags = CLONE_INTO_CGROUP;
			args.cgroup = open(how, O_PATH | O_DIRECTORY);
		} else if (wanted) {
			args.set_tid = (uintptr_t)&wanted;
			args.set_tid_size = 1;
		}
		pid = syscall(SYS_clone3, &args, sizeof(args));
	}
	if (pid < 0) {
		printf("errno %d\n", errno);
		return 125;
	}
	if (!pid)
		run(argv);
	if (args.flags & CLONE_PARENT)
		return 0;
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status)) { /* as a shell says it */
		fflush(stdout);
		return 128 + WTERMSIG(status);
	}
	return WEXITSTATUS(status);
}
