// SPDX-License-Identifier: Apache-2.0
/*
 * rewriter open GOOD BAD | send GOOD-PORT BAD-PORT: a second thread rewrites the argument, one name or port and the
 * other in turn, while the first hands it to the kernel, again and again. open: prints what BAD holds, once it was
 * read. send: to 127.0.0.1 over UDP.
 * rewriter exec_text|exec_pointer PROGRAM GOOD BAD: two children that share all memory run PROGRAM with one argument,
 * and their parent, which no exec ends, rewrites that, or the pointer to it, half way through the call. Handed over is
 * GOOD, and BAD what the kernel reads then; the second time BAD is read, and GOOD what is there afterwards.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 20000

static char path[4096];
static struct sockaddr_in to;
static volatile int over;
static volatile unsigned began;
static char **words;

static void *rewrite(void *unused)
{
	int sending = !strcmp(words[1], "send"), turn = 0;

	while (!over) {
		turn = !turn;
		if (!(++began % 16))
			sched_yield(); /* where there is one processor only */
		if (sending)
			*(volatile in_port_t *)&to.sin_port = htons(atoi(words[2 + turn]));
		else
			strcpy(path, words[2 + turn]);
	}
	return NULL;
}

static int open_both(void)
{
	char good[4096], text[4096];
	int fd = open(words[2], O_RDONLY), n, length = read(fd, good, sizeof(good));

	close(fd);
	for (int i = 0; i < ROUNDS; i++) {
		if (!(i % 16))
			sched_yield();
		fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		n = read(fd, text, sizeof(text));
		close(fd);
		if (n != length || memcmp(text, good, n)) {
			fwrite(text, 1, n, stdout);
			return 0;
		}
	}
	return 1;
}

static int send_both(void)
{
	int sock = socket(AF_INET, SOCK_DGRAM, 0);

	for (int i = 0; i < ROUNDS; i++) {
		if (!(i % 16))
			sched_yield();
		sendto(sock, "data", 4, 0, (struct sockaddr *)&to, sizeof(to));
	}
	return 0;
}

/* What execve is handed; and a page at which the kernel waits as it reads that, until somebody fills it. */
static char word[8], *given[3], *set[2], *page;

static int run(void *unused)
{
	execve(words[2], given, set);
	_exit(127);
}

static void hand(const char *text)
{
	if (!strcmp(words[1], "exec_text"))
		strcpy(word, text);
	else
		given[1] = (char *)text;
}

/* The environment is read before the arguments, and of these the first one last. */
static int exec_once(int fd, const char *first, const char *then, int early)
{
	static char stack[1 << 16], content[4096];
	struct uffdio_copy copy = {
		.dst = (uintptr_t)page, .src = (uintptr_t)content, .len = sizeof(content)};
	struct uffd_msg fault;
	pid_t pid;

	given[0] = early ? words[2] : page;
	set[0] = early ? page : NULL;
	given[1] = word;
	hand(first);
	strcpy(content, "x");
	madvise(page, sizeof(content), MADV_DONTNEED);
	pid = clone(run, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
	if (pid < 0 || read(fd, &fault, sizeof(fault)) != sizeof(fault))
		return 2;
	hand(then);
	if (ioctl(fd, UFFDIO_COPY, &copy))
		return 2;
	return waitpid(pid, NULL, 0) == pid ? 0 : 2;
}

static int exec_both(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.range.len = 4096, .mode = UFFDIO_REGISTER_MODE_MISSING};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);

	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (uintptr_t)page;
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range)) {
		printf("no userfaultfd: errno %d\n", errno);
		return 3;
	}
	return exec_once(fd, words[3], words[4], 1) | exec_once(fd, words[4], words[3], 0);
}

int main(int argc, char **argv)
{
	pthread_t thread;
	int result;

	words = argv;
	if (!strncmp(argv[1], "exec", 4))
		return exec_both();
	strcpy(path, argv[2]);
	to.sin_family = AF_INET;
	to.sin_port = htons(atoi(argv[2]));
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (pthread_create(&thread, NULL, rewrite, NULL))
		return 2;
	while (!began)
		sched_yield();
	result = strcmp(argv[1], "send") ? open_both() : send_both();
	over = 1;
	pthread_join(thread, NULL);
	return result;
}
