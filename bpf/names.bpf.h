/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The verdict on a file of which a hook tells the dentry alone, not by which mount it was come by.
 *
 * So it is judged by each name that it has in the process's mount namespace, and the severest verdict counts. The file
 * system lists its mounts. Nobody frees one that this walk stands on (a grace period away), and the one in use is not taken
 * off the list. A neighbour that is taken off leads nowhere: then the walk begins anew.
 */
#ifndef AGENTMON_NAMES_H
#define AGENTMON_NAMES_H

#include "decide.bpf.h"

#define AM_MNT_READONLY 0x40 /* include/linux/mount.h */
/* Of the walk over all mounts of one file system, and in this namespace up from the dentry to their roots. */
#define AM_NAME_STEPS 65536

/*
 * Since Linux 6.18 mounts of a file system are a list that ends by NULL; before, it ended where it began. Not inlined: clang
 * would take the offset of what this kernel does not have before the question whether it has it.
 */
#define am_single() bpf_core_field_exists(((struct mount___single *)0)->mnt_next_for_sb)

static __noinline void first_single(struct am_names *n, __u64 sb)
{
	n->node = (__u64)am_load(struct super_block___single, sb, s_mounts);
	n->end = 0;
}

static __noinline void first_listed(struct am_names *n, __u64 sb)
{
	n->node = (__u64)am_load(struct super_block, sb, s_mounts.next);
	n->end = sb + bpf_core_field_offset(struct super_block, s_mounts);
}

static __noinline void next_single(struct am_names *n)
{
	__u64 m = n->node;

	n->mount = m;
	n->node = (__u64)am_load(struct mount___single, m, mnt_next_for_sb);
}

static __noinline void next_listed(struct am_names *n)
{
	__u64 at = n->node;

	n->mount = at - bpf_core_field_offset(struct mount, mnt_instance);
	n->node = (__u64)am_load(struct list_head, at, next);
}

/*
 * Whether the mount that comes next may be the one: nobody came to change something by one that is read-only; nor can it
 * become so meanwhile (mnt_hold_writers).
 */
static __always_inline bool next_mount(struct am_names *n)
{
	__u64 m;

	if (am_single())
		next_single(n);
	else
		next_listed(n);
	m = n->mount;
	n->root = (__u64)am_load(struct mount, m, mnt.mnt_root);
	return (__u64)am_load(struct mount, m, mnt_ns) == n->ns &&
	       !(am_load(struct mount, m, mnt.mnt_flags) & AM_MNT_READONLY);
}

struct am_names_ctx {
	struct am_job *job;
};

static long name_step(__u32 i, struct am_names_ctx *c)
{
	struct am_job *job = c->job;
	struct am_names *n = &job->names;
	__u64 found = n->found, at = n->at, parent;

	if (!at) {
		n->done = n->node == n->end;
		if (n->done || !n->node)
			return 1;
		n->at = next_mount(n) ? job->dentry : 0;
		return 0;
	}
	if (at != n->root) {
		parent = (__u64)am_load(struct dentry, at, d_parent);
		n->at = parent == at ? 0 : parent;
		return 0;
	}
	if (found >= AM_NAMES)
		return 1;
	am_bound(found, 31);
	n->mounts[found] = n->mount;
	n->found = found + 1;
	n->at = 0;
	return 0;
}

/*
 * Lists the mounts of the process's namespace that show job->dentry. Returns how many; -1: they could not all be found.
 * Global, so that the verifier looks at it once.
 */
__noinline int list_names(__u32 slot)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct am_names_ctx c = {.job = job};
	struct am_names *n;
	__u64 dentry, sb, nsproxy;

	if (!job)
		return -1;
	n = &job->names;
	nsproxy = (__u64)am_load(struct task_struct, t, nsproxy);
	n->ns = nsproxy ? (__u64)am_load(struct nsproxy, nsproxy, mnt_ns) : 0;
	if (!n->ns)
		return -1;
	dentry = job->dentry; /* what am_load() takes must be a plain variable */
	sb = (__u64)am_load(struct dentry, dentry, d_sb);
	for (int i = 0; i < AM_WALKS; i++) {
		n->at = n->found = n->done = 0;
		if (am_single())
			first_single(n, sb);
		else
			first_listed(n, sb);
		bpf_loop(AM_NAME_STEPS, name_step, &c, 0);
		if (n->done)
			return n->found;
		if (n->found >= AM_NAMES)
			return -1;
		count(AM_C_PATH_RETRIED);
	}
	return -1;
}

/*
 * Sets job->mount to the one by which job->dentry has the name with the severest verdict. Returns 0, or enum am_reason why
 * there is none. Global, as others are.
 */
__noinline int worst_name(__u32 slot)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	int known = list_names(slot), verdict, worst = -1;
	__u64 mount = 0;
	__u32 why;

	if (!job || known <= 0)
		return AM_PATH_UNREACHABLE;
	if (known == 1) {
		job->mount = job->names.mounts[0];
		return 0;
	}
	job->trial = 1;
	for (int i = 0; i < AM_NAMES; i++) {
		if (i >= known)
			break;
		job->mount = job->names.mounts[i];
		why = walk(slot, AM_PATH_END);
		if (!why && run_automaton(slot))
			why = AM_NO_STATE;
		verdict = judge(slot, why);
		if (verdict > worst) {
			worst = verdict;
			mount = job->mount;
		}
	}
	job->trial = 0;
	job->mount = mount;
	return 0;
}

/* As decide_path(), by the severest of its names. */
static __always_inline __u32 decide_names(struct am_actor *a, __u32 ops, __u64 dentry)
{
	struct am_job *job;
	__u32 slot = 0, why;

	count(AM_C_DECISIONS);
	if (a->doomed) {
		kill_current();
		count(AM_C_BLOCKED);
		return fallback(a, ops, AM_KILL, AM_NO_STATE, AM_F_KILLED);
	}
	why = find_tags(a);
	job = why ? NULL : claim(&slot);
	if (job) {
		describe(job, a, ops);
		inode_of(job, (__u64)am_load(struct dentry, dentry, d_inode));
		job->dentry = dentry;
		why = worst_name(slot);
		count_reason(why);
		if (why)
			release(job);
	} else if (!why) {
		why = AM_NO_SCRATCH;
	}
	return carry_out(why ? fallback(a, ops, AM_ALLOW, why, 0) : decide_job(a, slot, 0));
}

#endif
