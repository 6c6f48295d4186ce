/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A program that a process outside of all steps runs: which ways to start a step it matches. Ways are exe tags of one or two
 * policies without rules, by the program's path; and by its arguments, once the new memory is there.
 */
#ifndef AGENTMON_START_H
#define AGENTMON_START_H

#include "arguments.bpf.h"
#include "plan.bpf.h"

/* Of arguments: how many, and from which one on they are the program's own; 0: nobody knows. */
#define am_words(argc, skip) ((__u64)(skip) << 32 | (__u32)(argc))
#define am_skipped(words) ((__u32)((words) >> 32))

/*
 * The path of what a caller named: a plain absolute or relative name. What it led to (links, dots, descriptors) is not looked
 * at. Returns 0, or why there is none. Not inlined: see report_bare().
 */
static __noinline __u32 name_path(__u32 slot, struct am_job *job, struct task_struct *t,
				  const char *name)
{
	char *path = job->room + AM_HEAD;
	__u64 start = AM_PATH_MAX, at, len;
	struct fs_struct *fs;
	long n;

	/* read behind the path area first, then move it to where it ends at AM_PATH_END */
	n = bpf_probe_read_kernel_str(path + start, AM_PATH_MAX, name);
	if (n <= 1 || n >= AM_PATH_MAX) {
		job->off = AM_PATH_END;
		return AM_PATH_TOO_LONG;
	}
	len = n - 1;
	if (len > 2 && path[start] == '.' && path[start + 1] == '/') {
		start += 2;
		len -= 2;
		name += 2;
	}
	at = AM_PATH_END - len;
	am_bound(at, 0xfff);
	am_bound(len, 0xfff);
	bpf_probe_read_kernel(path + at, len, name);
	job->off = at;
	if (path[start] == '/')
		return 0;
	fs = t->fs;
	at--;
	am_bound(at, 0xfff);
	path[at] = '/';
	job->dentry = (__u64)fs->pwd.dentry;
	job->mount = (__u64)fs->pwd.mnt - bpf_core_field_offset(struct mount, mnt);
	return walk(slot, at);
}

/*
 * One of the policies that know ways. Returns those that the job's path matches; with `args`, which are `words` (am_words()),
 * those that these match. Global, so that the verifier looks at it once.
 */
__noinline __u64 match_ways(__u32 slot, __u32 policy, __u64 args, __u64 words)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_policy *p = bpf_map_lookup_elem(&policies, &policy);
	__u32 zero = 0;
	__u16 *t = bpf_map_lookup_elem(&arena, &zero);

	if (!job || !p || !t)
		return 0;
	job->policy = policy;
	if (!args)
		return run_automaton(slot) ? 0 : job->tags;
	job->args.left = 1; /* nobody knows */
	if (!p->args || !am_skipped(words) ||
	    run_words(slot, job, p, t, args, (__u32)words, am_skipped(words)))
		return ~0ULL;
	return job->tags;
}

/*
 * What a process outside of all steps begins by a program: am_choice(), 0: none. Of a program by its `dentry`, `where` is its
 * mount; without, a name as the caller gave it. `args`: where its arguments lie, 0: out of reach yet; how many, and which are
 * not its own, say `words`. Not inlined: see report_bare().
 */
static __noinline int find_start(const struct am_actor *a, __u64 dentry, __u64 where, __u64 args,
				 __u64 words)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	__u32 slot = 0, id, why, unknown = 0;
	struct am_plan *plan;
	struct am_job *job;

	if (!a)
		return am_choice(AM_NO_STATE, AM_NO_WAY, 0);
	id = a->policy;
	plan = bpf_map_lookup_elem(&plans, &id);
	if (!plan)
		return am_choice(AM_NO_STATE, AM_NO_WAY, 0);
	if (!plan->way_slot[0])
		return 0;
	job = claim(&slot);
	if (!job)
		return am_choice(AM_NO_SCRATCH, AM_NO_WAY, 0);
	if (dentry) {
		job->dentry = dentry;
		job->mount = where - bpf_core_field_offset(struct mount, mnt);
		why = walk(slot, AM_PATH_END);
	} else {
		why = name_path(slot, job, t, (void *)where);
	}
	for (int i = 0; i < 2; i++) {
		job->ways[i] = 0;
		if (!why && plan->way_slot[i])
			job->ways[i] = match_ways(slot, plan->way_slot[i] - 1, 0, 0);
	}
	for (int i = 0; i < 2 && args; i++) {
		__u64 asked = job->ways[i] & plan->wanted[i], found;

		if (!asked)
			continue;
		/* the arguments may take the path's place now */
		found = match_ways(slot, plan->way_slot[i] - 1, args, words);
		job->ways[i] &= ~asked | found;
		/* those that are not known match all, and begin nothing */
		if (job->ways[i] & plan->wanted[i] && job->args.left)
			unknown = 1;
	}
	dentry = job->ways[0];
	where = job->ways[1];
	release(job);
	if (why == AM_PATH_UNREACHABLE) /* a memfd or a deleted file: that is judged elsewhere */
		return 0;
	if (why || unknown)
		return am_choice(why ? why : AM_PATH_TOO_LONG, AM_NO_WAY, 0);
	if (!dentry && !where)
		return 0;
	return choose_way(a->policy, a->proc.serial, dentry, where);
}

/*
 * The program of the current process is judged as one that begins a step (`choice`), and by the policy alone; or is refused,
 * as the step says.
 */
static __always_inline void judge_as_start(struct am_actor *a, __u32 choice)
{
	__u32 id = a->policy, why = am_choice_reason(choice);
	struct am_plan *plan = bpf_map_lookup_elem(&plans, &id);
	__u64 at = am_choice_step(choice) - 1;

	a->part = 0;
	a->proc.step = am_choice_step(choice);
	am_bound(at, 63);
	if (!why)
		return;
	a->out = why;
	a->part = plan ? plan->on_violation[at] & ~AM_PAUSES : AM_DENY;
	/* no answer gives time or room */
	if (a->part == AM_HOLD && (why == AM_PLAN_TIME || why == AM_PLAN_PROCS))
		a->part = AM_DENY;
}

#endif
