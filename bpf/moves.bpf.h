/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What is moved: a name that goes away is deleted, and a directory takes along all that is below it.
 */
#ifndef AGENTMON_MOVES_H
#define AGENTMON_MOVES_H

#include "decide.bpf.h"

#ifdef AM_REACT
/* A name is a descriptor of its directory, and a string: see changes.bpf.h. A denial is death. */
#define inode_behind(name) 0
#define answer(verdict) ((verdict) >= AM_HOLD)
#else
static __always_inline __u64 inode_behind(__u64 dentry)
{
	return (__u64)am_load(struct dentry, (struct dentry *)dentry, d_inode);
}
#endif

/* The automaton over the path of a name; 0, or enum am_reason why there is none. */
static __always_inline __u32 follow(__u32 slot, struct am_job *job, __u64 mnt, __u64 dentry)
{
	__u32 why;

#ifdef AM_REACT
	why = find_name(slot, mnt, dentry);
#else
	job->dentry = dentry;
	job->mount = mnt - bpf_core_field_offset(struct mount, mnt);
	why = walk(slot, AM_PATH_END);
#endif
	if (!why && run_automaton(slot))
		why = AM_NO_STATE;
	return why;
}

/* `by`: what judges. */
#define AM_BY_POLICY 0
#define AM_BY_PLAN 1

/*
 * Whether a name may go away by being moved, which is deleting it: it is asked where another rule (or the default, on
 * one side only) says what may be deleted under the new name. agentmon/policy/evaluate.py, leaving(), is the same in
 * Python. A pin holds for the old name: of the new one the path alone counts. The old name comes last: it is the one
 * in the record.
 */
static __noinline int judge_away(__u64 old_mnt, __u64 old, __u64 mnt, __u64 dentry, __u32 by)
{
	struct am_actor a = {};
	struct am_job *job;
	__u32 slot = 0, why, there, verdict;

	if (identify(&a) != 1)
		return 0; /* judged before: not enrolled any more */
	if (by == AM_BY_PLAN && (!a.part || a.out))
		return 0;
	if (AM_STOPS && !part_says(by == AM_BY_PLAN ? a.part - 1 : a.policy, 1U << AM_DELETE))
		return 0;
	why = find_tags(&a);
	job = why ? NULL : claim(&slot);
	if (!job)
		return answer(
			fallback(&a, 1U << AM_DELETE, AM_ALLOW, why ? why : AM_NO_SCRATCH, 0));
	describe(job, &a, 1U << AM_DELETE);
	if (by == AM_BY_PLAN)
		job->policy = a.part - 1;
	inode_of(job, 0);
	why = follow(slot, job, mnt, dentry);
	if (!why) {
		job->verdict = AM_ALLOW;
		judge_one(slot, AM_DELETE, 0);
		why = follow(slot, job, old_mnt, old);
	}
	there = job->ruled[AM_DELETE];
	inode_of(job, inode_behind(old));
	if (why)
		job->off = AM_PATH_END;
	job->verdict = AM_ALLOW;
	judge_one(slot, AM_DELETE, why);
	verdict = job->verdict;
	if (verdict == AM_ALLOW || (!why && job->ruled[AM_DELETE] == there)) {
		release(job);
		return 0;
	}
#ifdef AM_REACT
	if (!why && verdict >= AM_HOLD) {
		bool unknown = leads_through_link(slot) || find_name(slot, mnt, dentry) ||
			       leads_through_link(slot);

		if (unknown || find_name(slot, old_mnt, old)) {
			release(job);
			return 0;
		}
	}
#endif
	if (by == AM_BY_PLAN)
		job->reason = in_plan(job->reason);
	report(slot, &a, verdict == AM_KILL || (AM_STOPS && verdict >= AM_HOLD) ? AM_F_KILLED : 0);
	release(job);
	return answer(carry_out(verdict));
}

#ifndef AM_REACT

/*
 * Whether a directory may take all that is below it along; its own names were judged before. agentmon/policy/walk.py,
 * run_move(), is the same in Python. The old name comes last: it is the one in the record.
 */
static __noinline int judge_move(__u64 old_mnt, __u64 old, __u64 mnt, __u64 dentry, __u32 by)
{
	struct am_actor a = {};
	struct am_job *job;
	__u64 sticky, first, second, *rules;
	__u32 slot = 0, why, below, unix_rule;
	int v = -1, w;

	if (identify(&a) != 1)
		return 0; /* judged before: not enrolled any more */
	if (by == AM_BY_PLAN && (!a.part || a.out))
		return 0;
	why = find_tags(&a);
	job = why ? NULL : claim(&slot);
	if (!job)
		return answer(fallback(&a, 1U << AM_RENAME, AM_DENY, why ? why : AM_NO_SCRATCH, 0));
	describe(job, &a, 1U << AM_RENAME);
	if (by == AM_BY_PLAN)
		job->policy = a.part - 1;
	why = follow(slot, job, mnt, dentry);
	below = job->below;
	sticky = job->sticky;
	rules = (void *)job->first;
	first = rules[0];
	second = rules[1];
	unix_rule = job->first[AM_UNIX];
	if (!why) {
		v = blocked_below(slot, AM_WRITE);
		w = blocked_below(slot, AM_CREATE);
		v = w > v ? w : v;
		why = follow(slot, job, old_mnt, old);
	}
	inode_of(job, inode_behind(old));
	if (why) {
		job->off = AM_PATH_END;
		judge(slot, why);
		job->verdict = AM_DENY;
	} else if (below == job->below && sticky == job->sticky && first == rules[0] &&
		   second == rules[1] && unix_rule == job->first[AM_UNIX] &&
		   fence_between(job->policy, below, below, 0, 0) < 0) {
		release(job);
		return 0;
	} else {
		w = blocked_below(slot, AM_READ);
		v = w > v ? w : v;
		w = blocked_below(slot, AM_WRITE);
		v = w > v ? w : v;
		w = blocked_below(slot, AM_DELETE);
		v = w > v ? w : v;
		w = path_verdict(slot, AM_UNIX, AM_ENTERED);
		if (w >= 0 && am_packed_action(w) >= AM_HOLD)
			v = w > v ? w : v;
		w = fence_between(job->policy, job->below, below, job->sticky ^ sticky,
				  entered_once(first, second, rules[0], rules[1]));
		v = w > v ? w : v;
		if (v < 0) {
			release(job);
			return 0;
		}
		job->op = AM_RENAME;
		job->verdict = AM_DENY;
		job->rule = am_packed_rule(v);
		job->reason = AM_CONTENTS;
		job->pinned = 0;
	}
	report(slot, &a, 0);
	release(job);
	count(AM_C_BLOCKED);
	return answer(AM_DENY);
}

/* `old` comes to be called as `d` is. */
static __always_inline int judge_rename(struct path *old_dir, struct dentry *old, struct path *dir,
					struct dentry *d)
{
	__u64 target = (__u64)d->d_inode;
	int err = judge_path(carry(old) | 1U << AM_RENAME, (__u64)old_dir->mnt, (__u64)old,
			     (__u64)old->d_inode, 0);

	/* what is there under the new name is lost: that is a write */
	if (!err)
		err = judge_path(1U << AM_CREATE | (target ? 1U << AM_WRITE : 0), (__u64)dir->mnt,
				 (__u64)d, target, target ? 0 : AM_RENAMES);
	/* once by the policy, once by the plan */
	for (__u32 by = AM_BY_POLICY; by <= AM_BY_PLAN; by++) {
		if (!err)
			err = judge_away((__u64)old_dir->mnt, (__u64)old, (__u64)dir->mnt, (__u64)d,
					 by);
		if (!err && is_a(old, S_IFDIR))
			err = judge_move((__u64)old_dir->mnt, (__u64)old, (__u64)dir->mnt, (__u64)d,
					 by);
	}
	return err;
}

#endif

#endif
