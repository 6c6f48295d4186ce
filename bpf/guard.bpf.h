/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The guarded operations: what could take the fence away, or have somebody outside of it act. They have no object that
 * a rule could name; what a session does to its own processes is none of them.
 */
#ifndef AGENTMON_GUARD_H
#define AGENTMON_GUARD_H

#include "decide.bpf.h"

#define PTRACE_MODE_NOAUDIT 4 /* include/linux/ptrace.h */

/* Judges an operation without an object. */
static __noinline int guard(__u32 op)
{
	struct am_actor a = {};
	struct am_policy *p;
	__u32 id, verdict, why, rule = AM_NO_RULE, reason = AM_BY_DEFAULT;
	__u64 o = op;
	int who = identify(&a);

	am_bound(o, 31);
	if (!who || o >= AM_OPS)
		return 0;
	count(who < 0 ? AM_C_NO_STATE : AM_C_DECISIONS);
	id = a.policy;
	p = who < 0 ? NULL : bpf_map_lookup_elem(&policies, &id);
	if (!p || a.doomed) {
		verdict = p ? AM_KILL : AM_DENY;
		reason = AM_NO_STATE;
	} else if ((why = find_tags(&a))) {
		verdict = p->severest[o];
		reason = why;
	} else {
		if (p->bare[o])
			rule = list_rule(p->list_base + p->bare[o], 0, a.proc.exe_tags,
					 am_asked(a.facts, a.proc.unsure));
		verdict = p->default_action[o];
		if (rule != AM_NO_RULE) {
			verdict = action_of(p, rule);
			reason = AM_BY_RULE;
		}
		if (p->marking)
			let_through(&a, verdict, rule);
		if (verdict == AM_ALLOW && seen_before(&a, 0, 0, (o << 16) | rule))
			return 0;
	}
	report_bare(&a, o, verdict, am_by(rule, reason), verdict == AM_KILL ? AM_F_KILLED : 0);
	if (verdict < AM_HOLD)
		return 0;
	count(AM_C_BLOCKED);
	if (verdict == AM_KILL)
		kill_current();
	return -EPERM;
}

/* Whether a task is of the current process's own session. */
static __always_inline bool same_session(struct task_struct *t)
{
	struct task_struct *me = (void *)bpf_get_current_task_btf();
	struct am_proc_key mine = {}, theirs = {};
	struct am_proc *m, *p;
	__u64 address = (__u64)t->group_leader;

	mine.tgid = me->tgid;
	mine.start_ns = me->group_leader->start_boottime;
	theirs.tgid = t->tgid;
	theirs.start_ns = t->group_leader->start_boottime;
	m = bpf_map_lookup_elem(&procs, &mine);
	p = bpf_map_lookup_elem(&procs, &theirs);
	if (!p)
		p = bpf_map_lookup_elem(&newborn, &address);
	return m && p && m->session == p->session && m->serial == p->serial;
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(ptrace_check, struct task_struct *child, unsigned int mode)
{
	/* reading too: /proc/PID/fd leads into the pipes of others; without audit it is only asked how much to tell */
	if (mode & PTRACE_MODE_NOAUDIT || same_session(child))
		return 0;
	return guard(AM_PTRACE);
}

SEC("lsm/task_kill")
int BPF_PROG(signal_check, struct task_struct *t, void *info, int sig)
{
	/* 0 only asks whether there is somebody; to who has ended, and waits to be reaped, nothing happens any more */
	return !sig || same_session(t) || t->signal->live.counter <= 0 ? 0 : guard(AM_SIGNAL);
}

/* RLIMIT_CPU of another process kills it as well */
SEC("lsm/task_setrlimit")
int BPF_PROG(limit_check, struct task_struct *t)
{
	return same_session(t) ? 0 : guard(AM_SIGNAL);
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

/* Whether credentials can do more than before. */
static __always_inline bool gains(const struct cred *to, const struct cred *from)
{
	__u64 now = 0, before = 0;

	if ((from->euid.val && !to->euid.val) || (from->fsuid.val && !to->fsuid.val))
		return true;
	/* kernel_cap_t: two u32 up to Linux 6.2, one u64 since */
	bpf_core_read(&now, sizeof(now), &to->cap_permitted);
	bpf_core_read(&before, sizeof(before), &from->cap_permitted);
	return now & ~before;
}

SEC("lsm/task_fix_setuid")
int BPF_PROG(setuid_check, struct cred *to, const struct cred *from)
{
	return gains(to, from) ? guard(AM_SETID) : 0;
}

struct am_groups {
	__u64 gids;
	__u32 wanted, found, count;
};

static long next_group(__u32 i, struct am_groups *g)
{
	__u32 gid = 0;

	if (i >= g->count)
		return 1;
	bpf_probe_read_kernel(&gid, sizeof(gid), (void *)(g->gids + i * sizeof(gid)));
	if (gid != g->wanted)
		return 0;
	g->found = 1;
	return 1;
}

/* Supplementary groups that are looked at (NGROUPS_MAX is 65536); of a process in more, the rest count as foreign. */
#define AM_GROUPS 1024

#define CAP_SETGID 6

/*
 * Whether a program brings a group that the process has not, and could not take by setgid(2) either. Not one that gives no
 * rights: ssh-agent has such a group only so that nobody looks into its memory.
 */
static __always_inline bool gains_group(const struct cred *to, const struct cred *from)
{
	struct am_groups g = {.wanted = to->egid.val};
	__u64 caps = 0, info = 0;

	if (g.wanted == from->egid.val || g.wanted == from->gid.val || g.wanted == from->fsgid.val)
		return false;
	if (g.wanted && (g.wanted == knobs.idle_gid[0] || g.wanted == knobs.idle_gid[1]))
		return false;
	bpf_core_read(&caps, sizeof(caps), &from->cap_effective);
	if (caps & 1ULL << CAP_SETGID)
		return false;
	/* read so, it is a number: to a pointer of its own the verifier lets nobody add what it does not know */
	bpf_core_read(&info, sizeof(info), &from->group_info);
	g.gids = info + bpf_core_field_offset(struct group_info, gid);
	g.count = am_load(struct group_info, (struct group_info *)info, ngroups);
	bpf_loop(AM_GROUPS, next_group, &g, 0);
	return !g.found;
}

SEC("lsm/bprm_creds_from_file")
int BPF_PROG(setid_exec_check, struct linux_binprm *bprm)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();

	/* to whoever the program belongs, not to root alone */
	return gains(bprm->cred, t->cred) || bprm->cred->euid.val != t->cred->euid.val ||
			       gains_group(bprm->cred, t->cred)
		       ? guard(AM_SETID)
		       : 0;
}

#endif
