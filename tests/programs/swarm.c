// SPDX-License-Identifier: Apache-2.0
/*
 * swarm DEPTH WIDTH SECRET FLAG: a tree of processes whose leaves fork all the time. Once FLAG exists each of them opens
 * SECRET, says "escaped" if it can, and ends.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static char *secret, *flag;

static void attempt(void)
{
	char c;
	int fd;

	if (access(flag, F_OK))
		return;
	fd = open(secret, O_RDONLY);
	if (fd >= 0 && read(fd, &c, 1) == 1 && write(1, "escaped\n", 8) != 8)
		_exit(2);
	_exit(0);
}

static void grow(int depth, int width)
{
	while (depth) {
		int i = 0;

		while (i < width && fork())
			i++;
		if (i == width) {
			while (wait(NULL) > 0)
				;
			attempt();
			_exit(1);
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		depth--;
	}
	for (;;) {
		if (!fork()) {
			attempt();
			if (!fork()) {
				attempt();
				_exit(0);
			}
			wait(NULL);
			_exit(0);
		}
		attempt();
		wait(NULL);
	}
}

int main(int argc, char **argv)
{
	secret = argv[3];
	flag = argv[4];
	grow(atoi(argv[1]), atoi(argv[2]));
}
