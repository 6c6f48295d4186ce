/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * React tier: what changes names and attributes (delete, rename, link, attr, mkdir, truncate, …), seen when it has been done.
 * It is recorded if it may not be, and the process dies.
 *
 * No hook tells the dentry: it is judged by the name that the call was given, from the true path of the directory that it
 * begins in. Another thread may have changed it since. What leads through a symbolic link may be anything: it is let pass.
 */
#ifndef AGENTMON_CHANGES_H
#define AGENTMON_CHANGES_H

#include "flags.bpf.h"
#include "late.bpf.h"
#include "leads.bpf.h"

#define AM_AT_FDCWD (-100)
#define AM_RENAME_NOREPLACE 1
#define AM_RENAME_EXCHANGE 2
#define S_IFCHR 0020000
#define S_IFBLK 0060000
/* Another name for a file carries it out of the rules on its old one: linking and moving it need all of these. */
#define AM_CARRY (1U << AM_READ | 1U << AM_WRITE)

struct am_tidy_ctx {
	struct am_job *job;
};

/* One byte, from the end on: slashes in a row, `.` and `..` go. */
static long tidy_byte(__u32 i, struct am_tidy_ctx *c)
{
	struct am_tidying *x = &c->job->tidying;
	char *path = c->job->room + AM_HEAD;
	__u64 at = x->at, to = x->to;
	char byte;

	if (at <= c->job->off || !to || to > AM_PATH_END)
		return 1;
	at--;
	x->at = at;
	am_bound(at, 0xfff);
	byte = path[at];
	if (byte == '/') {
		bool dots = !x->plain && x->length && x->length <= 2, drop = dots || x->up;

		if (x->length && drop) {
			to += x->length;
			if (!dots)
				x->up--;
			else if (x->length == 2)
				x->up++;
		}
		if (!x->length || drop) {
			x->to = to;
			x->length = x->plain = 0;
			return 0;
		}
		x->length = x->plain = 0;
	} else {
		x->length++;
		x->plain |= byte != '.';
	}
	to--;
	x->to = to;
	am_bound(to, 0xfff);
	path[to] = byte;
	return 0;
}

/*
 * The path of what a call named, in the job: the directory's true path, and the name behind it without dots. Without a name
 * (also an empty one), of what the descriptor is. Returns 0, enum am_reason why there is none, or -1: nobody can name what
 * is there. Global, so that the verifier looks at it once.
 */
__noinline int find_name(__u32 slot, __u64 fd, __u64 name)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	__u64 start = AM_PATH_MAX, at, len = 0, mnt;
	struct am_tidy_ctx c = {.job = job};
	__u32 why;
	char *path;

	if (!job)
		return AM_NO_SCRATCH;
	path = job->room + AM_HEAD;
	job->off = AM_PATH_END;
	job->leading.at = 0;
	if (name) {
		/* read behind the path area first, then once more where it ends at AM_PATH_END */
		long n = bpf_probe_read_user_str(path + start, AM_PATH_MAX, (void *)name);

		if (n <= 0)
			return AM_PATH_UNREACHABLE;
		if (n >= AM_PATH_MAX)
			return AM_PATH_TOO_LONG;
		len = n - 1;
	}
	if (len && path[start] == '/') {
		job->dentry = (__u64)t->fs->root.dentry;
		mnt = (__u64)t->fs->root.mnt;
	} else if ((int)fd == AM_AT_FDCWD) {
		job->dentry = (__u64)t->fs->pwd.dentry;
		mnt = (__u64)t->fs->pwd.mnt;
	} else {
		struct file *f = (void *)file_of(t, fd);

		if (!f)
			return AM_PATH_UNREACHABLE;
		job->dentry = (__u64)am_load(struct file, f, f_path.dentry);
		mnt = (__u64)am_load(struct file, f, f_path.mnt);
		if (!len && pseudo(mnt))
			return -1;
	}
	if (!len) {
		struct dentry *d = (void *)job->dentry;

		inode_of(job, (__u64)am_load(struct dentry, d, d_inode));
	}
	job->mount = mnt - bpf_core_field_offset(struct mount, mnt);
	if (!len)
		return walk(slot, AM_PATH_END);
	job->leading.at = start;
	am_bound(len, 0xfff);
	at = AM_PATH_END - len;
	am_bound(at, 0xfff);
	bpf_probe_read_kernel(path + at, len, path + start);
	at--;
	am_bound(at, 0xfff);
	path[at] = '/';
	why = walk(slot, at);
	if (why) {
		job->off = AM_PATH_END;
		return why;
	}
	job->tidying.at = job->tidying.to = AM_PATH_END;
	job->tidying.length = job->tidying.up = job->tidying.plain = 0;
	bpf_loop(AM_PATH_MAX, tidy_byte, &c, 0);
	at = job->tidying.to;
	if (at >= AM_PATH_END) {
		at = AM_PATH_END - 1;
		path[AM_PATH_END - 1] = '/';
	}
	job->off = at;
	return 0;
}

#include "moves.bpf.h"

/* Whether a policy has anything but plain consent to operations, or wants to know that they happened. */
static __always_inline bool has_say(__u32 policy, __u32 ops)
{
	struct am_policy *p = bpf_map_lookup_elem(&policies, &policy);

	return !p || p->marking || part_says(policy, ops);
}

/* In `flags` of judge_name(): whether there is something to write to is not known. */
#define AM_GUESSED (1U << 28)
#define AM_NOT_SURE 2

/*
 * One name. Returns 1 if the process is killed for it, AM_NOT_SURE: it may not write there, but no rule says so. Not inlined:
 * see report_bare().
 */
static __noinline int judge_name(__u32 ops, __u64 fd, __u64 name, __u32 flags)
{
	struct am_actor a = {};
	struct am_job *job;
	__u32 slot = 0, verdict;
	int who = identify(&a), why;

	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		kill_current();
		return 1;
	}
	if (!a.doomed && !a.out && !has_say(a.policy, ops) && !(a.part && has_say(a.part - 1, ops)))
		return 0;
	count(AM_C_DECISIONS);
	why = a.doomed ? AM_NO_STATE : find_tags(&a);
	job = why ? NULL : claim(&slot);
	if (!job) {
		verdict = fallback(&a, ops, a.doomed ? AM_KILL : AM_ALLOW,
				   why ? why : AM_NO_SCRATCH, AM_F_KILLED);
		return carry_out(verdict) >= AM_HOLD;
	}
	describe(job, &a, ops);
	inode_of(job, 0);
	why = find_name(slot, fd, name);
	if (why < 0) {
		release(job);
		return 0;
	}
	count_reason(why);
	if (!why && flags & AM_F_DEVICE)
		why = AM_DEVICE;
	plan_first(&a, slot, job, why, false);
	if (!why && run_automaton(slot))
		why = AM_NO_STATE;
	verdict = judge(slot, why);
	if (verdict >= AM_HOLD && !why && leads_through_link(slot)) {
		release(job);
		return 0;
	}
	if (verdict >= AM_HOLD && flags & AM_GUESSED && job->op == AM_WRITE &&
	    (job->reason == AM_BY_DEFAULT || job->reason == AM_PLAN_CLOSED)) {
		release(job);
		return AM_NOT_SURE;
	}
	/* what may be is not told: under most policies it is not even looked at */
	if (verdict > AM_ALLOW)
		report(slot, &a, flags | (verdict >= AM_HOLD ? AM_F_KILLED : 0));
	release(job);
	return carry_out(verdict) >= AM_HOLD;
}

/* Two names of a call, each with the descriptor before it. */
struct am_pair {
	__u64 old_fd, old, fd, name;
};

/*
 * The first name is another one now. If something was there, it was written; whether, is not known: who may make a name, and
 * may write there by no rule, may do that.
 */
static __always_inline bool judge_renamed(const struct am_pair *p, __u32 how)
{
	__u32 write = how & AM_RENAME_NOREPLACE ? 0 : 1U << AM_WRITE;
	int over;

	if (judge_name(AM_CARRY | 1U << AM_RENAME, p->old_fd, p->old, 0))
		return true;
	over = judge_name(1U << AM_CREATE | write, p->fd, p->name,
			  how & AM_RENAME_EXCHANGE ? 0 : AM_GUESSED);
	if (over == AM_NOT_SURE)
		over = judge_name(1U << AM_CREATE, p->fd, p->name, 0);
	return over || judge_away(p->old_fd, p->old, p->fd, p->name, AM_BY_POLICY) ||
	       judge_away(p->old_fd, p->old, p->fd, p->name, AM_BY_PLAN);
}

/* A call that has changed something. Not inlined: see judge_open(). */
static __noinline void judge_change(struct task_struct *t, const struct pt_regs *r, enum call c)
{
	bool compat = t->thread_info.status & TS_COMPAT;
	__u64 a0 = compat ? (__u32)r->bx : r->di, a1 = compat ? (__u32)r->cx : r->si;
	__u64 a2 = compat ? (__u32)r->dx : r->dx, a3 = compat ? (__u32)r->si : r->r10;
	__u64 a4 = compat ? (__u32)r->di : r->r8;
	struct am_pair p = {.old_fd = AM_AT_FDCWD, .old = a0, .fd = AM_AT_FDCWD, .name = a1};
	__u32 kind;

	if ((c == CALL_IOCTL && !sets_flags(a1)) || !is_listed(t))
		return;
	if (c == CALL_LINK_AT || c == CALL_RENAME_AT || c == CALL_RENAME_HOW) {
		p.old_fd = a0;
		p.old = a1;
		p.fd = a2;
		p.name = a3;
	}
	switch (c) {
	case CALL_DELETE:
		judge_name(1U << AM_DELETE, AM_AT_FDCWD, a0, 0);
		break;
	case CALL_DELETE_AT:
		judge_name(1U << AM_DELETE, a0, a1, 0);
		break;
	case CALL_MAKE:
		judge_name(1U << AM_CREATE, AM_AT_FDCWD, a0, 0);
		break;
	case CALL_MAKE_AT:
		judge_name(1U << AM_CREATE, a0, a1, 0);
		break;
	case CALL_NODE:
	case CALL_NODE_AT:
		if (c == CALL_NODE) {
			a3 = a2;
			a2 = a1;
			a1 = a0;
			a0 = AM_AT_FDCWD;
		}
		kind = a2 & S_IFMT;
		judge_name(1U << AM_CREATE, a0, a1,
			   (__u32)a3 && (kind == S_IFCHR || kind == S_IFBLK) ? AM_F_DEVICE : 0);
		break;
	case CALL_SYMLINK:
		judge_name(1U << AM_CREATE, AM_AT_FDCWD, a1, 0);
		break;
	case CALL_SYMLINK_AT:
		judge_name(1U << AM_CREATE, a1, a2, 0);
		break;
	case CALL_TRUNCATE:
		judge_name(1U << AM_WRITE, AM_AT_FDCWD, a0, 0);
		break;
	case CALL_ATTR:
		judge_name(1U << AM_ATTR, AM_AT_FDCWD, a0, 0);
		break;
	case CALL_ATTR_AT:
		judge_name(1U << AM_ATTR, a0, a1, 0);
		break;
	case CALL_ATTR_FILE:
	case CALL_IOCTL:
		judge_name(1U << AM_ATTR, (__u32)a0, 0, 0);
		break;
	case CALL_LINK:
	case CALL_LINK_AT:
		if (!judge_name(AM_CARRY | 1U << AM_LINK, p.old_fd, p.old, 0))
			judge_name(1U << AM_CREATE, p.fd, p.name, 0);
		break;
	default: /* CALL_RENAME, _AT, _HOW */
		if (c != CALL_RENAME_HOW)
			a4 = 0;
		if (!judge_renamed(&p, a4) && a4 & AM_RENAME_EXCHANGE) {
			struct am_pair back = {p.fd, p.name, p.old_fd, p.old};

			judge_renamed(&back, AM_RENAME_EXCHANGE);
		}
	}
}

#endif
