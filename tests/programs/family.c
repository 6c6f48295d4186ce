// SPDX-License-Identifier: Apache-2.0
/* family COUNT: has so many children, all of whom wait for ever; says so. */
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	pid_t parent = getpid();

	for (int i = atoi(argv[1]); i > 0; i--) {
		pid_t pid = fork();

		if (pid < 0)
			return 1;
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (getppid() == parent) /* else it was killed already */
				pause();
			_exit(0);
		}
	}
	if (write(1, "!", 1) != 1)
		return 1;
	pause();
	return 0;
}
