/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which ioctl sets flags of a file and the like (chattr).
 */
#ifndef AGENTMON_FLAGS_H
#define AGENTMON_FLAGS_H

#include "compat.bpf.h"

/* What sets flags and the like, by type and number: the size is another one for 32-bit programs (include/uapi/linux/fs.h). */
static __always_inline bool sets_flags(unsigned int command)
{
	if (!(command & 1U << 30)) /* _IOW */
		return false;
	switch (command & 0xffff) {
	case 0x6602: /* FS_IOC_SETFLAGS */
	case 0x5820: /* FS_IOC_FSSETXATTR */
	case 0x7602: /* FS_IOC_SETVERSION: the generation, which pins go by */
	case 0x6604: /* EXT4_IOC_SETVERSION */
	case 0x6685: /* FS_IOC_ENABLE_VERITY: never to be written again */
	case 0x7211: /* FAT_IOCTL_SET_ATTRIBUTES */
	case 0x941a: /* BTRFS_IOC_SUBVOL_SETFLAGS */
		return true;
	}
	return false;
}

#endif
