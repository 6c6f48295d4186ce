// SPDX-License-Identifier: Apache-2.0
/* initrd: PID 1 of an initial RAM disk. Loads /modules in the order of their names, goes on in the guests' root disk. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	struct dirent **found;
	char path[300];
	int i, n, fd;

	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	n = scandir("/modules", &found, NULL, alphasort);
	for (i = 0; i < n; i++) {
		if (found[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/modules/%s", found[i]->d_name);
		fd = open(path, O_RDONLY);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			perror(path);
		close(fd);
	}
	/* two disks come in any order; only that of the root has a partition */
	for (i = 0; i < 600; i++) {
		snprintf(path, sizeof(path), "/dev/nvme%dn1p1", i % 2);
		if (!mount(path, "/root", "ext4", 0, NULL))
			break;
		usleep(50000);
	}
	umount("/dev");
	if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		perror("the root disk");
	execl("/usr/local/lib/agentmon-vm/boot", "boot", NULL);
	perror("boot");
	return 1;
}
