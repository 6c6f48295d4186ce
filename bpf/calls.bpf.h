/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * System calls by their numbers, for the react tier, which sees them end. A table, not a switch: most calls are none of these,
 * and every process on the host pays for finding out.
 */
#ifndef AGENTMON_CALLS_H
#define AGENTMON_CALLS_H

#include "compat.bpf.h"

#define X32_BIT 0x40000000
#define AM_CALLS 1024

enum call {
	CALL_OTHER,
	CALL_EXEC,
	/* a signal is judged when it is sent, not when that call ends */
	CALL_KILL,
	CALL_SIGNAL, /* its second argument is the signal */
	CALL_SIGNAL_THREAD, /* its third one */
	CALL_FORK,
	CALL_NET,
	CALL_OPEN,
	CALL_CREAT,
	CALL_OPENAT,
	CALL_OPENAT2,
	CALL_HANDLE,
	CALL_SOCKET,
	CALL_LISTEN,
	CALL_OPTION,
	/*
	 * From here on: judge_change(). What changes something by its name, which is the first argument (of SYMLINK the second
	 * one); the next of each pair has a directory's descriptor before each name.
	 */
	CALL_DELETE,
	CALL_DELETE_AT,
	CALL_MAKE,
	CALL_MAKE_AT,
	CALL_NODE, /* then its mode and device */
	CALL_NODE_AT,
	CALL_SYMLINK,
	CALL_SYMLINK_AT,
	CALL_ATTR,
	CALL_ATTR_AT,
	CALL_LINK, /* two names */
	CALL_LINK_AT,
	CALL_RENAME,
	CALL_RENAME_AT,
	CALL_RENAME_HOW, /* as _AT, then flags */
	CALL_TRUNCATE,
	CALL_ATTR_FILE, /* a descriptor alone */
	CALL_IOCTL,
	/* from here on: judge_late() */
	CALL_PTRACE,
	CALL_MEMORY,
	CALL_DESCRIPTOR,
	CALL_LIMIT,
	CALL_MOUNT,
	CALL_TREE,
	CALL_CONFIG,
	CALL_CHROOT,
	CALL_RING,
	CALL_NAMESPACE,
	CALL_SETUID,
	CALL_RIGHTS, /* may change them, but not to more */
	/* these also when they failed */
	CALL_BPF,
	CALL_MODULE,
};

/* arch/x86/entry/syscalls/syscall_64.tbl; x32 has the same numbers with a bit set, and some of its own from 512 on */
static const __u8 calls64[AM_CALLS] = {
	[2] = CALL_OPEN,
	[16] = CALL_IOCTL,
	[41] = CALL_SOCKET,
	[42] = CALL_NET, /* connect */
	[44] = CALL_NET, /* sendto */
	[46] = CALL_NET, /* sendmsg */
	[50] = CALL_LISTEN,
	[54] = CALL_OPTION,
	[56] = CALL_FORK, /* clone */
	[57] = CALL_FORK,
	[58] = CALL_FORK, /* vfork */
	[59] = CALL_EXEC, /* and what a program that was just started is about to return from, whichever it was */
	[62] = CALL_KILL,
	[76] = CALL_TRUNCATE,
	[82] = CALL_RENAME,
	[83] = CALL_MAKE,
	[84] = CALL_DELETE, /* rmdir */
	[85] = CALL_CREAT,
	[86] = CALL_LINK,
	[87] = CALL_DELETE,
	[88] = CALL_SYMLINK,
	[90] = CALL_ATTR, /* chmod */
	[91] = CALL_ATTR_FILE,
	[92] = CALL_ATTR, /* chown */
	[93] = CALL_ATTR_FILE,
	[94] = CALL_ATTR, /* lchown */
	[101] = CALL_PTRACE,
	[105] = CALL_SETUID,
	[106] = CALL_RIGHTS, /* setgid */
	[113] = CALL_SETUID, /* setreuid */
	[114] = CALL_RIGHTS, /* setregid */
	[117] = CALL_SETUID, /* setresuid */
	[119] = CALL_RIGHTS, /* setresgid */
	[122] = CALL_SETUID, /* setfsuid */
	[123] = CALL_RIGHTS, /* setfsgid */
	[126] = CALL_RIGHTS, /* capset */
	[129] = CALL_SIGNAL, /* rt_sigqueueinfo */
	[132] = CALL_ATTR, /* utime */
	[133] = CALL_NODE,
	[155] = CALL_MOUNT, /* pivot_root */
	[161] = CALL_CHROOT,
	[165] = CALL_MOUNT,
	[166] = CALL_MOUNT, /* umount2 */
	[175] = CALL_MODULE, /* init_module */
	[188] = CALL_ATTR, /* setxattr */
	[189] = CALL_ATTR,
	[190] = CALL_ATTR_FILE,
	[197] = CALL_ATTR, /* removexattr */
	[198] = CALL_ATTR,
	[199] = CALL_ATTR_FILE,
	[200] = CALL_SIGNAL, /* tkill */
	[234] = CALL_SIGNAL_THREAD, /* tgkill */
	[235] = CALL_ATTR, /* utimes */
	[246] = CALL_MODULE, /* kexec_load */
	[257] = CALL_OPENAT,
	[258] = CALL_MAKE_AT,
	[259] = CALL_NODE_AT,
	[260] = CALL_ATTR_AT, /* fchownat */
	[261] = CALL_ATTR_AT, /* futimesat */
	[263] = CALL_DELETE_AT,
	[264] = CALL_RENAME_AT,
	[265] = CALL_LINK_AT,
	[266] = CALL_SYMLINK_AT,
	[268] = CALL_ATTR_AT, /* fchmodat */
	[272] = CALL_NAMESPACE, /* unshare */
	[280] = CALL_ATTR_AT, /* utimensat */
	[297] = CALL_SIGNAL_THREAD, /* rt_tgsigqueueinfo */
	[302] = CALL_LIMIT, /* prlimit64 */
	[304] = CALL_HANDLE,
	[307] = CALL_NET, /* sendmmsg */
	[308] = CALL_NAMESPACE, /* setns */
	[310] = CALL_MEMORY, /* process_vm_readv */
	[311] = CALL_MEMORY, /* process_vm_writev */
	[313] = CALL_MODULE, /* finit_module */
	[316] = CALL_RENAME_HOW, /* renameat2 */
	[320] = CALL_MODULE, /* kexec_file_load */
	[321] = CALL_BPF,
	[424] = CALL_SIGNAL, /* pidfd_send_signal */
	[425] = CALL_RING, /* io_uring_setup */
	[428] = CALL_TREE, /* open_tree */
	[429] = CALL_MOUNT, /* move_mount */
	[431] = CALL_CONFIG, /* fsconfig */
	[432] = CALL_MOUNT, /* fsmount */
	[435] = CALL_FORK, /* clone3 */
	[437] = CALL_OPENAT2,
	[438] = CALL_DESCRIPTOR, /* pidfd_getfd */
	[442] = CALL_MOUNT, /* mount_setattr */
	[452] = CALL_ATTR_AT, /* fchmodat2 */
	[463] = CALL_ATTR_AT, /* setxattrat */
	[466] = CALL_ATTR_AT, /* removexattrat */
	[467] = CALL_TREE, /* open_tree_attr */
	[469] = CALL_ATTR_AT, /* file_setattr */
	[514] = CALL_IOCTL, /* x32 */
	[518] = CALL_NET, /* x32: sendmsg */
	[520] = CALL_EXEC,
	[521] = CALL_PTRACE,
	[524] = CALL_SIGNAL, /* rt_sigqueueinfo */
	[528] = CALL_MODULE, /* kexec_load */
	[536] = CALL_SIGNAL_THREAD, /* rt_tgsigqueueinfo */
	[538] = CALL_NET, /* sendmmsg */
	[539] = CALL_MEMORY,
	[540] = CALL_MEMORY,
	[541] = CALL_OPTION,
};

/* arch/x86/entry/syscalls/syscall_32.tbl */
static const __u8 calls32[AM_CALLS] = {
	[2] = CALL_FORK,
	[5] = CALL_OPEN,
	[8] = CALL_CREAT,
	[9] = CALL_LINK,
	[10] = CALL_DELETE,
	[11] = CALL_EXEC,
	[14] = CALL_NODE,
	[15] = CALL_ATTR, /* chmod */
	[16] = CALL_ATTR, /* lchown, of 16-bit numbers */
	[21] = CALL_MOUNT,
	[22] = CALL_MOUNT, /* umount */
	[23] = CALL_SETUID,
	[26] = CALL_PTRACE,
	[30] = CALL_ATTR, /* utime */
	[37] = CALL_KILL,
	[38] = CALL_RENAME,
	[39] = CALL_MAKE,
	[40] = CALL_DELETE, /* rmdir */
	[46] = CALL_RIGHTS, /* setgid */
	[52] = CALL_MOUNT, /* umount2 */
	[54] = CALL_IOCTL,
	[61] = CALL_CHROOT,
	[70] = CALL_SETUID, /* setreuid; the next three for 16-bit numbers too */
	[71] = CALL_RIGHTS,
	[83] = CALL_SYMLINK,
	[92] = CALL_TRUNCATE,
	[94] = CALL_ATTR_FILE,
	[95] = CALL_ATTR_FILE,
	[102] = CALL_SOCKET, /* socketcall: every sub-call; those that return no socket find none there */
	[120] = CALL_FORK, /* clone */
	[128] = CALL_MODULE, /* init_module */
	[138] = CALL_SETUID, /* setfsuid */
	[139] = CALL_RIGHTS,
	[164] = CALL_SETUID, /* setresuid */
	[170] = CALL_RIGHTS,
	[178] = CALL_SIGNAL, /* rt_sigqueueinfo */
	[182] = CALL_ATTR, /* chown, of 16-bit numbers */
	[185] = CALL_RIGHTS, /* capset */
	[190] = CALL_FORK, /* vfork */
	[193] = CALL_TRUNCATE, /* truncate64 */
	[198] = CALL_ATTR, /* lchown */
	[203] = CALL_SETUID, /* setreuid32 */
	[204] = CALL_RIGHTS,
	[207] = CALL_ATTR_FILE,
	[208] = CALL_SETUID, /* setresuid32 */
	[210] = CALL_RIGHTS,
	[212] = CALL_ATTR, /* chown */
	[213] = CALL_SETUID, /* setuid32 */
	[214] = CALL_RIGHTS,
	[215] = CALL_SETUID, /* setfsuid32 */
	[216] = CALL_RIGHTS,
	[217] = CALL_MOUNT, /* pivot_root */
	[226] = CALL_ATTR, /* setxattr */
	[227] = CALL_ATTR,
	[228] = CALL_ATTR_FILE,
	[235] = CALL_ATTR, /* removexattr */
	[236] = CALL_ATTR,
	[237] = CALL_ATTR_FILE,
	[238] = CALL_SIGNAL, /* tkill */
	[270] = CALL_SIGNAL_THREAD, /* tgkill */
	[271] = CALL_ATTR, /* utimes */
	[283] = CALL_MODULE, /* kexec_load */
	[295] = CALL_OPENAT,
	[296] = CALL_MAKE_AT,
	[297] = CALL_NODE_AT,
	[298] = CALL_ATTR_AT, /* fchownat */
	[299] = CALL_ATTR_AT, /* futimesat */
	[301] = CALL_DELETE_AT,
	[302] = CALL_RENAME_AT,
	[303] = CALL_LINK_AT,
	[304] = CALL_SYMLINK_AT,
	[306] = CALL_ATTR_AT, /* fchmodat */
	[310] = CALL_NAMESPACE, /* unshare */
	[320] = CALL_ATTR_AT, /* utimensat */
	[335] = CALL_SIGNAL_THREAD, /* rt_tgsigqueueinfo */
	[340] = CALL_LIMIT, /* prlimit64 */
	[342] = CALL_HANDLE,
	[345] = CALL_NET, /* sendmmsg */
	[346] = CALL_NAMESPACE, /* setns */
	[347] = CALL_MEMORY,
	[348] = CALL_MEMORY,
	[350] = CALL_MODULE, /* finit_module */
	[353] = CALL_RENAME_HOW, /* renameat2 */
	[357] = CALL_BPF,
	[359] = CALL_SOCKET,
	[362] = CALL_NET, /* connect */
	[363] = CALL_LISTEN,
	[366] = CALL_OPTION,
	[369] = CALL_NET, /* sendto */
	[370] = CALL_NET, /* sendmsg */
	[412] = CALL_ATTR_AT, /* utimensat_time64 */
	[424] = CALL_SIGNAL, /* pidfd_send_signal */
	[425] = CALL_RING,
	[428] = CALL_TREE,
	[429] = CALL_MOUNT,
	[431] = CALL_CONFIG,
	[432] = CALL_MOUNT,
	[435] = CALL_FORK, /* clone3 */
	[437] = CALL_OPENAT2,
	[438] = CALL_DESCRIPTOR,
	[442] = CALL_MOUNT,
	[452] = CALL_ATTR_AT, /* fchmodat2 */
	[463] = CALL_ATTR_AT, /* setxattrat */
	[466] = CALL_ATTR_AT, /* removexattrat */
	[467] = CALL_TREE,
	[469] = CALL_ATTR_AT, /* file_setattr */
};

/* By a number as the kernel takes it: of 32 bits. */
static __always_inline enum call call_of(__u32 nr, bool compat)
{
	__u64 n = compat ? nr : nr & ~X32_BIT;

	if (n >= AM_CALLS)
		return CALL_OTHER;
	am_bound(n, 0x3ff);
	return compat ? calls32[n] : calls64[n];
}

#endif
