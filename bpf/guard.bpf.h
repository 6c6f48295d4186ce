/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * LSM tier: the hooks of the guarded operations.
 */
#ifndef AGENTMON_GUARD_H
#define AGENTMON_GUARD_H

#include "bare.bpf.h"

#define PTRACE_MODE_ATTACH 2
#define PTRACE_MODE_NOAUDIT 4 /* include/linux/ptrace.h */

SEC("lsm/ptrace_access_check")
int BPF_PROG(ptrace_check, struct task_struct *child, unsigned int mode)
{
	/* reading too: /proc/PID/fd leads into the pipes of others; without audit it is only asked how much to tell */
	if (mode & PTRACE_MODE_NOAUDIT || same_place((__u64)child, mode & PTRACE_MODE_ATTACH))
		return 0;
	return guard(AM_PTRACE);
}

SEC("lsm/task_kill")
int BPF_PROG(signal_check, struct task_struct *t, void *info, int sig)
{
	/* 0 only asks whether there is somebody; to who has ended, and waits to be reaped, nothing happens any more */
	return !sig || same_session((__u64)t) || t->signal->live.counter <= 0 ? 0
									      : guard(AM_SIGNAL);
}

/* RLIMIT_CPU of another process kills it as well */
SEC("lsm/task_setrlimit")
int BPF_PROG(limit_check, struct task_struct *t)
{
	return same_session((__u64)t) ? 0 : guard(AM_SIGNAL);
}

SEC("lsm/sb_mount")
int BPF_PROG(mount_check)
{
	return guard(AM_MOUNT);
}

SEC("lsm/move_mount")
int BPF_PROG(move_mount_check)
{
	return guard(AM_MOUNT);
}

SEC("lsm/sb_umount")
int BPF_PROG(umount_check)
{
	return guard(AM_MOUNT);
}

SEC("lsm/sb_remount")
int BPF_PROG(remount_check)
{
	return guard(AM_MOUNT);
}

SEC("lsm/sb_pivotroot")
int BPF_PROG(pivot_check)
{
	return guard(AM_MOUNT);
}

SEC("lsm/path_chroot")
int BPF_PROG(chroot_check)
{
	return guard(AM_CHROOT);
}

SEC("lsm/userns_create")
int BPF_PROG(userns_check)
{
	return guard(AM_NAMESPACE);
}

SEC("lsm/bpf")
int BPF_PROG(bpf_check)
{
	return guard(AM_BPF);
}

/* include/uapi/asm-generic/ioctls.h */
#define AM_TIOCSTI 0x5412
#define AM_TIOCLINUX 0x541c

/*
 * What types into a terminal tells whoever reads from it, a shell outside, what to do. TIOCLINUX pastes, among others:
 * what it is to do is in the caller's memory, and may be another thing when it is read again.
 */
static __always_inline int judge_ioctl(unsigned int command)
{
	return command == AM_TIOCSTI || command == AM_TIOCLINUX ? guard(AM_PTRACE) : 0;
}

SEC("lsm/file_ioctl")
int BPF_PROG(ioctl_check, struct file *f, unsigned int command)
{
	return judge_ioctl(command);
}

/* of 32-bit programs; a kernel without this hook calls the other one for them too */
SEC("lsm/file_ioctl_compat")
int BPF_PROG(ioctl_compat_check, struct file *f, unsigned int command)
{
	return judge_ioctl(command);
}

/* "[io_uring]" (io_uring/io_uring.c); other anonymous inodes are harmless */
SEC("lsm/inode_init_security_anon")
int BPF_PROG(ring_check, struct inode *inode, const struct qstr *name)
{
	char text[12] = {};

	bpf_probe_read_kernel_str(text, sizeof(text), name->name);
	return __builtin_memcmp(text, "[io_uring]", 11) ? 0 : guard(AM_IO_URING);
}

/* READING_FIRMWARE (include/linux/kernel_read_file.h): the kernel's own doing. The rest is modules, kexec and policies. */
#define AM_FIRMWARE 1

SEC("lsm/kernel_load_data")
int BPF_PROG(module_data_check, int id)
{
	return id == AM_FIRMWARE ? 0 : guard(AM_MODULE);
}

SEC("lsm/kernel_read_file")
int BPF_PROG(module_file_check, struct file *f, int id)
{
	return id == AM_FIRMWARE ? 0 : guard(AM_MODULE);
}

SEC("lsm/task_fix_setuid")
int BPF_PROG(setuid_check, struct cred *to, const struct cred *from)
{
	struct am_rights now = {}, before = {};

	read_rights(&now, to);
	read_rights(&before, from);
	return gains(&now, &before) ? guard(AM_SETID) : 0;
}

SEC("lsm/bprm_creds_from_file")
int BPF_PROG(setid_exec_check, struct linux_binprm *bprm)
{
	const struct cred *from = ((struct task_struct *)bpf_get_current_task_btf())->cred;
	struct am_rights now = {}, before = {};

	read_rights(&now, bprm->cred);
	read_rights(&before, from);
	return gains_by_exec(&now, &before, from) ? guard(AM_SETID) : 0;
}

#endif
