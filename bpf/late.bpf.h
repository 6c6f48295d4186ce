/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * React tier: the guarded operations, seen when they have been done. What leads to more later (a ring, a root, rights, a
 * program) is never used: the process dies first. What has its effect at once (a signal, a mount, …) has had it: it
 * is recorded, and the process dies.
 */
#ifndef AGENTMON_LATE_H
#define AGENTMON_LATE_H

#include "bare.bpf.h"
#include "calls.bpf.h"

#define PTRACE_ATTACH 16
#define PTRACE_SEIZE 0x4206
#define OPEN_TREE_CLONE 1
#define FSCONFIG_CMD_RECONFIGURE 7
#define PF_EXITING 4
#define SIGCONT 18 /* SIGSTOP, SIGTSTP, SIGTTIN are between them */
#define SIGTTOU 22
#define ENOSYS 38
#define CAP_SYS_MODULE 16
#define XA_DEPTH 6 /* of six bits each: more than a process id has */

/* Nearly nobody is listed: then nothing more need be looked at. */
static __always_inline bool is_listed(struct task_struct *t)
{
	struct am_proc_key k = {};

	k.tgid = t->tgid;
	k.start_ns = t->group_leader->start_boottime;
	return bpf_map_lookup_elem(&procs, &k) || is_condemned(&k);
}

/* The address of the task of a struct pid, 0 if it has ended. */
static __always_inline __u64 task_of(__u64 pid)
{
	__u64 link = 0;

	bpf_probe_read_kernel(&link, sizeof(link),
			      (void *)(pid + bpf_core_field_offset(struct pid, tasks)));
	return link ? link - bpf_core_field_offset(struct task_struct, pid_links) : 0;
}

/*
 * The task that a number means to the caller: Linux 6.1 has nothing that looks it up. The numbers of a PID namespace are
 * in a tree (lib/xarray.c); an entry that ends in binary 10 is a node.
 */
static __always_inline __u64 task_by_number(struct task_struct *t, __u32 number)
{
	__u64 pid = 0, upid, ns = 0, at, head;

	/* read so, it is a number, see gains_group() */
	bpf_core_read(&pid, sizeof(pid), &t->thread_pid);
	upid = pid + bpf_core_field_offset(struct pid, numbers) +
	       am_load(struct pid, (struct pid *)pid, level) * bpf_core_type_size(struct upid);
	bpf_probe_read_kernel(&ns, sizeof(ns),
			      (void *)(upid + bpf_core_field_offset(struct upid, ns)));
	head = ns + bpf_core_field_offset(struct pid_namespace, idr.idr_rt.xa_head);
	bpf_probe_read_kernel(&at, sizeof(at), (void *)head);
	for (int i = 0; i < XA_DEPTH && (at & 3) == 2; i++) {
		__u8 shift = 0;

		at -= 2;
		bpf_probe_read_kernel(&shift, 1,
				      (void *)(at + bpf_core_field_offset(struct xa_node, shift)));
		at += bpf_core_field_offset(struct xa_node, slots) +
		      (number >> (shift & 31) & 63) * sizeof(__u64);
		bpf_probe_read_kernel(&at, sizeof(at), (void *)at);
	}
	return at && !(at & 3) ? task_of(at) : 0;
}

/* The task that a descriptor of a process means. */
static __always_inline __u64 task_by_descriptor(struct task_struct *t, __u32 fd)
{
	struct file *f = (void *)file_of(t, fd);
	struct inode *i;
	__u64 pid;

	if (!f)
		return 0;
	pid = (__u64)am_load(struct file, f, private_data);
	i = am_load(struct file, f, f_inode);
	/* since Linux 6.9 it is a file of a file system of its own */
	if (!pid)
		pid = (__u64)am_load(struct inode, i, i_private);
	return pid ? task_of(pid) : 0;
}

/* Whether a task is of the session of the caller. One that is not found any more is taken for somebody else's. */
static __always_inline bool is_own(__u64 task, bool step)
{
	return task && same_place(task, step);
}

/* What there is to judge: 0, or an operation and why it takes the severest verdict. */
#define am_late(op, why) ((op) | (why) << 8)

/* After a call that may have given rights to the current process: whether they are more is told by those it had. */
static __always_inline __u32 judge_rights(struct task_struct *t, enum call c)
{
	struct am_rights now = {}, *had;
	struct am_proc_key k = {};

	k.tgid = t->tgid;
	k.start_ns = t->group_leader->start_boottime;
	read_rights(&now, t->cred);
	had = bpf_map_lookup_elem(&rights, &k);
	if (c == CALL_NAMESPACE && (!had || had->user_ns != now.user_ns))
		return am_late(AM_NAMESPACE, had ? 0 : AM_NO_STATE);
	if (c == CALL_SETUID && had && gains(&now, had))
		return AM_SETID;
	if (c == CALL_SETUID && !had && (!now.euid || !now.fsuid))
		return am_late(AM_SETID, AM_NO_STATE);
	return 0;
}

/* A process id, a descriptor and a flag are of 32 bits. Not inlined: see judge_open(). */
static __noinline __u32 find_late(struct task_struct *t, enum call c, __u64 first, __u64 second,
				  __u64 third)
{
	switch (c) {
	case CALL_NAMESPACE:
	case CALL_SETUID:
		return judge_rights(t, c);
	case CALL_PTRACE:
		if (first != PTRACE_ATTACH && first != PTRACE_SEIZE)
			return 0;
		return is_own(task_by_number(t, second), true) ? 0 : AM_PTRACE;
	case CALL_MEMORY:
		return is_own(task_by_number(t, first), true) ? 0 : AM_PTRACE;
	case CALL_DESCRIPTOR:
		return is_own(task_by_descriptor(t, first), true) ? 0 : AM_PTRACE;
	case CALL_LIMIT: /* 0 is the caller; asked for only, no limit is changed */
		if (!(__u32)first || !third)
			return 0;
		return is_own(task_by_number(t, first), false) ? 0 : AM_SIGNAL;
	case CALL_TREE:
		return third & OPEN_TREE_CLONE ? AM_MOUNT : 0;
	case CALL_CONFIG:
		return (__u32)second == FSCONFIG_CMD_RECONFIGURE ? AM_MOUNT : 0;
	case CALL_MOUNT:
		return AM_MOUNT;
	case CALL_CHROOT:
		return AM_CHROOT;
	case CALL_RING:
		return AM_IO_URING;
	case CALL_BPF:
		return AM_BPF;
	case CALL_MODULE:
		return AM_MODULE;
	default:
		return 0;
	}
}

/* A call that opens nothing. */
static __always_inline void judge_late(struct task_struct *t, enum call c, __u64 first,
				       __u64 second, __u64 third)
{
	__u32 what;

	if (!is_listed(t))
		return;
	what = find_late(t, c, first, second, third);
	if (what && guard_for(what & 0xff, what >> 8))
		return;
	if (c >= CALL_NAMESPACE && c <= CALL_RIGHTS)
		keep_own_rights(t);
}

/*
 * Whether a call that returned so can have done nothing. One that failed has not, but a batch of bpf(2) has up to where
 * it failed, and so has a module whose own code says no, with whichever number; unless the kernel refused even to look.
 */
static __always_inline bool harmless(struct task_struct *t, enum call c, long err)
{
	__u64 caps = 0;

	if (!err)
		return c == CALL_MEMORY; /* no byte of it */
	if (c < CALL_BPF || err == -ENOSYS)
		return true;
	if (err != -EPERM)
		return false;
	bpf_core_read(&caps, sizeof(caps), &t->cred->cap_effective);
	return c == CALL_BPF || !(caps & 1ULL << CAP_SYS_MODULE);
}

/*
 * A program was started: whether it gives rights, and whether it is a file that has a name. By itself: there is no stack
 * left in process_exec, which judges the name.
 */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(rights_exec, struct task_struct *t)
{
	struct am_rights now = {}, *had;
	struct am_proc_key k = {};

	k.tgid = t->tgid;
	k.start_ns = t->group_leader->start_boottime;
	if (!is_listed(t))
		return 0;
	read_rights(&now, t->cred);
	had = bpf_map_lookup_elem(&rights, &k);
	if ((!had || gains_by_exec(&now, had, t->cred)) &&
	    guard_for(AM_SETID, had ? 0 : AM_NO_STATE))
		return 0;
	bpf_map_update_elem(&rights, &k, &now, BPF_ANY);
	/* a memfd, or a file that was deleted: nobody can look at what ran */
	if (!t->mm->exe_file->f_inode->i_nlink)
		guard(AM_ANON_EXEC);
	return 0;
}

/* A child that is born into a user namespace of its own. A program by itself: there is no stack left in process_fork. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(namespace_fork, struct task_struct *parent, struct task_struct *child)
{
	struct am_proc_key k = {};

	if (child->cred->user_ns == parent->cred->user_ns || !is_listed(parent) ||
	    !guard(AM_NAMESPACE))
		return 0;
	k.tgid = child->tgid;
	k.start_ns = child->start_boottime;
	condemn(&k); /* it dies at the end of its first system call, this one */
	return 0;
}

/* Whether the current system call sends this signal, to somebody who may be outside. */
static __always_inline bool sends(struct task_struct *t, int sig)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(t);
	bool compat = t->thread_info.status & TS_COMPAT;
	int first = compat ? regs->bx : regs->di, second = compat ? regs->cx : regs->si;

	switch (call_of(regs->orig_ax, compat)) {
	case CALL_KILL:
		/* an editor that stops its process group stops `agentmon run` too, which is there for that */
		return second == sig && (first || sig < SIGCONT || sig > SIGTTOU);
	case CALL_SIGNAL:
		return second == sig;
	case CALL_SIGNAL_THREAD:
		return (int)regs->dx == sig;
	default:
		return false;
	}
}

/*
 * A signal is sent, by the current system call or not: timers expire, and children end, whoever happens to run. To who
 * has ended, and waits to be reaped, nothing happens any more.
 */
SEC("tp_btf/signal_generate")
int BPF_PROG(signal_sent, int sig, void *info, struct task_struct *to)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();

	if (t->tgid == to->tgid || t->flags & PF_EXITING || !is_listed(t))
		return 0;
	if (to->signal->live.counter > 0 && sends(t, sig) && !same_session((__u64)to))
		guard(AM_SIGNAL);
	return 0;
}

#endif
