/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * `attr` beside mode and owner: extended attributes and ACLs, times, and flags (chattr).
 */
#ifndef AGENTMON_ATTR_H
#define AGENTMON_ATTR_H

#include "flags.bpf.h"
#include "names.bpf.h"

/* include/linux/fs.h: utimensat(2) and its kind; not what a read or a write does to the times by the way */
#define ATTR_TIMES_SET (1 << 16)
#define ATTR_TOUCH (1 << 17)

/*
 * Whether overlayfs is at work on one of its layers, for who was judged by the merged file: then it has the credentials
 * of who mounted it, and not the task's. Else only a ring's worker comes here with others (personalities): it is judged.
 */
static __always_inline bool on_behalf(void)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();

	return t->cred != t->real_cred && !(t->flags & PF_IO_WORKER);
}

/* Not inlined: its frame is that of judge_path(). */
static __noinline int judge_dentry(__u64 dentry)
{
	__u64 sb = (__u64)am_load(struct dentry, dentry, d_sb);
	struct am_actor a = {};
	int who;

	if (am_load(struct super_block, sb, s_flags) & AM_SB_NOUSER || on_behalf())
		return 0;
	who = identify(&a);
	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		report_bare(&a, AM_ATTR, AM_DENY, am_by(AM_NO_RULE, AM_NO_STATE), 0);
		return -EPERM;
	}
	return answer(decide_names(&a, 1U << AM_ATTR, dentry));
}

/* ACLs too, before Linux 6.2; the first argument was a user namespace before 6.3 */
SEC("lsm/inode_setxattr")
int BPF_PROG(setxattr_check, void *idmap, struct dentry *d)
{
	return judge_dentry((__u64)d);
}

SEC("lsm/inode_removexattr")
int BPF_PROG(removexattr_check, void *idmap, struct dentry *d)
{
	return judge_dentry((__u64)d);
}

SEC("lsm/inode_set_acl")
int BPF_PROG(set_acl_check, void *idmap, struct dentry *d)
{
	return judge_dentry((__u64)d);
}

SEC("lsm/inode_remove_acl")
int BPF_PROG(remove_acl_check, void *idmap, struct dentry *d)
{
	return judge_dentry((__u64)d);
}

/* Dentry and attributes are the last two arguments; what is before them differs: the hook of Linux 6.1 has nothing there. */
SEC("lsm/inode_setattr")
int times_check(unsigned long long *ctx)
{
	__u64 dentry = 0, attr = 0, arguments = bpf_get_func_arg_cnt(ctx);

	if (bpf_get_func_arg(ctx, arguments - 1, &attr) ||
	    bpf_get_func_arg(ctx, arguments - 2, &dentry))
		return -EPERM;
	if (!(am_load(struct iattr, attr, ia_valid) & (ATTR_TIMES_SET | ATTR_TOUCH)))
		return 0;
	return judge_dentry(dentry);
}

/* file_setattr(2); and once more what flags_check() has judged */
SEC("lsm/inode_file_setattr")
int BPF_PROG(file_setattr_check, struct dentry *d)
{
	return judge_dentry((__u64)d);
}

SEC("lsm/file_ioctl")
int BPF_PROG(flags_check, struct file *f, unsigned int command)
{
	return sets_flags(command) ? judge_attr(&f->f_path) : 0;
}

SEC("lsm/file_ioctl_compat")
int BPF_PROG(flags_compat_check, struct file *f, unsigned int command)
{
	return sets_flags(command) ? judge_attr(&f->f_path) : 0;
}

#endif
