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
	[85] = CALL_CREAT,
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
	[155] = CALL_MOUNT, /* pivot_root */
	[161] = CALL_CHROOT,
	[165] = CALL_MOUNT,
	[166] = CALL_MOUNT, /* umount2 */
	[175] = CALL_MODULE, /* init_module */
	[200] = CALL_SIGNAL, /* tkill */
	[234] = CALL_SIGNAL_THREAD, /* tgkill */
	[246] = CALL_MODULE, /* kexec_load */
	[257] = CALL_OPENAT,
	[272] = CALL_NAMESPACE, /* unshare */
	[297] = CALL_SIGNAL_THREAD, /* rt_tgsigqueueinfo */
	[302] = CALL_LIMIT, /* prlimit64 */
	[304] = CALL_HANDLE,
	[307] = CALL_NET, /* sendmmsg */
	[308] = CALL_NAMESPACE, /* setns */
	[310] = CALL_MEMORY, /* process_vm_readv */
	[311] = CALL_MEMORY, /* process_vm_writev */
	[313] = CALL_MODULE, /* finit_module */
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
	[467] = CALL_TREE, /* open_tree_attr */
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
	[11] = CALL_EXEC,
	[21] = CALL_MOUNT,
	[22] = CALL_MOUNT, /* umount */
	[23] = CALL_SETUID,
	[26] = CALL_PTRACE,
	[37] = CALL_KILL,
	[46] = CALL_RIGHTS, /* setgid */
	[52] = CALL_MOUNT, /* umount2 */
	[61] = CALL_CHROOT,
	[70] = CALL_SETUID, /* setreuid; the next three for 16-bit numbers too */
	[71] = CALL_RIGHTS,
	[102] = CALL_SOCKET, /* socketcall: every sub-call; those that return no socket find none there */
	[120] = CALL_FORK, /* clone */
	[128] = CALL_MODULE, /* init_module */
	[138] = CALL_SETUID, /* setfsuid */
	[139] = CALL_RIGHTS,
	[164] = CALL_SETUID, /* setresuid */
	[170] = CALL_RIGHTS,
	[178] = CALL_SIGNAL, /* rt_sigqueueinfo */
	[185] = CALL_RIGHTS, /* capset */
	[190] = CALL_FORK, /* vfork */
	[203] = CALL_SETUID, /* setreuid32 */
	[204] = CALL_RIGHTS,
	[208] = CALL_SETUID, /* setresuid32 */
	[210] = CALL_RIGHTS,
	[213] = CALL_SETUID, /* setuid32 */
	[214] = CALL_RIGHTS,
	[215] = CALL_SETUID, /* setfsuid32 */
	[216] = CALL_RIGHTS,
	[217] = CALL_MOUNT, /* pivot_root */
	[238] = CALL_SIGNAL, /* tkill */
	[270] = CALL_SIGNAL_THREAD, /* tgkill */
	[283] = CALL_MODULE, /* kexec_load */
	[295] = CALL_OPENAT,
	[310] = CALL_NAMESPACE, /* unshare */
	[335] = CALL_SIGNAL_THREAD, /* rt_tgsigqueueinfo */
	[340] = CALL_LIMIT, /* prlimit64 */
	[342] = CALL_HANDLE,
	[345] = CALL_NET, /* sendmmsg */
	[346] = CALL_NAMESPACE, /* setns */
	[347] = CALL_MEMORY,
	[348] = CALL_MEMORY,
	[350] = CALL_MODULE, /* finit_module */
	[357] = CALL_BPF,
	[359] = CALL_SOCKET,
	[362] = CALL_NET, /* connect */
	[363] = CALL_LISTEN,
	[366] = CALL_OPTION,
	[369] = CALL_NET, /* sendto */
	[370] = CALL_NET, /* sendmsg */
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
	[467] = CALL_TREE,
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
