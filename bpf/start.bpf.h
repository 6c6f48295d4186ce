/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A program that a process outside of all steps runs: which ways to start a step it matches. Ways are exe tags of one or two
 * policies without rules, by the program's path; and by its arguments, once the new memory is there.
 */
#ifndef AGENTMON_START_H
#define AGENTMON_START_H

#include "arguments.bpf.h"
#include "plan.bpf.h"

/* Execs between two hooks, and threads whose last one failed there. */
#define AM_MAX_STARTING 1024

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
 * Which ways the program matches by its path, in job->ways. `where` is the mount of its `dentry`; without one, a name as the
 * caller gave it. Returns why nobody can tell, or 0.
 */
static __always_inline __u32 path_ways(__u32 slot, struct am_job *job, const struct am_plan *plan,
				       __u64 dentry, __u64 where)
{
	__u32 why;

	if (dentry) {
		job->dentry = dentry;
		job->mount = where - bpf_core_field_offset(struct mount, mnt);
		why = walk(slot, AM_PATH_END);
	} else {
		why = name_path(slot, job, (void *)bpf_get_current_task_btf(), (void *)where);
	}
	for (int i = 0; i < 2; i++) {
		job->ways[i] = 0;
		if (!why && plan->way_slot[i])
			job->ways[i] = match_ways(slot, plan->way_slot[i] - 1, 0, 0);
	}
	/* a memfd or a deleted file: that is judged elsewhere */
	return why == AM_PATH_UNREACHABLE ? 0 : why;
}

/*
 * Leaves those in job->ways that the arguments match, or that ask for none; the path is not needed any more. Returns whether
 * somebody asks who cannot be told: then all match, and none begins anything.
 */
static __always_inline bool word_ways(__u32 slot, struct am_job *job, const struct am_plan *plan,
				      __u64 args, __u64 words)
{
	bool unknown = false;

	for (int i = 0; i < 2; i++) {
		__u64 asked = job->ways[i] & plan->wanted[i], found;

		if (!asked)
			continue;
		found = match_ways(slot, plan->way_slot[i] - 1, args, words);
		job->ways[i] &= ~asked | found;
		if (job->ways[i] & asked && job->args.left)
			unknown = true;
	}
	return unknown;
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
	a->part = plan ? am_violation(plan, at) : AM_DENY;
	/* no answer gives time or room */
	if (a->part == AM_HOLD &&
	    (why == AM_PLAN_TIME || why == AM_PLAN_PROCS || why == AM_PLAN_BYTES))
		a->part = AM_DENY;
}

#ifdef AM_REACT

/*
 * What a process outside of all steps begins by a program: am_choice(), 0: none. `dentry` and `where` as in path_ways();
 * `args`: where its arguments lie; how many, and which are not its own, say `words`. Not inlined: see report_bare().
 */
static __noinline int find_start(const struct am_actor *a, __u64 dentry, __u64 where, __u64 args,
				 __u64 words)
{
	__u32 slot = 0, id = a->policy, why;
	struct am_plan *plan = bpf_map_lookup_elem(&plans, &id);
	struct am_job *job;

	if (!plan)
		return am_choice(AM_NO_STATE, AM_NO_WAY, 0);
	if (!plan->way_slot[0])
		return 0;
	job = claim(&slot);
	if (!job)
		return am_choice(AM_NO_SCRATCH, AM_NO_WAY, 0);
	why = path_ways(slot, job, plan, dentry, where);
	if (!why && word_ways(slot, job, plan, args, words))
		why = AM_PATH_TOO_LONG;
	dentry = job->ways[0];
	where = job->ways[1];
	release(job);
	if (why)
		return am_choice(why, AM_NO_WAY, 0);
	if (!dentry && !where)
		return 0;
	return choose_way(a->policy, a->proc.serial, dentry, where);
}

#else

/*
 * Between the two hooks of an exec that may begin a step (see waiting.bpf.h): by its path it matches these ways. What it begins
 * is only settled when it cannot fail any more.
 */
struct am_starting {
	__u64 ways[2];
	__u32 generation; /* of the policy */
	__u32 blocked; /* enum am_action: what comes of it if its arguments match no way */
	__u32 choice; /* somebody let it begin that step, whatever the plan says; 0: nobody did */
	__u32 argc; /* before an interpreter was put in front */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, AM_MAX_STARTING);
	__type(key, __u64);
	__type(value, struct am_starting);
} starting SEC(".maps");

__s64 nstarting;

static __always_inline void forget_starting(struct task_struct *t)
{
	__u64 key = (__u64)t;

	if (nstarting > 0 && !bpf_map_delete_elem(&starting, &key))
		__sync_fetch_and_add(&nstarting, -1);
}

/* Whether the file of this exec is the interpreter of a script that starts a step. */
static __always_inline bool is_starting(void)
{
	__u64 key = (__u64)bpf_get_current_task_btf();

	return nstarting > 0 && bpf_map_lookup_elem(&starting, &key);
}

/* The ways that a program matches by its path, in the job of a scratch slot, whose number is returned; -1: none, or it has none. */
static __noinline int exe_ways(const struct am_actor *a, __u64 dentry, __u64 mnt)
{
	__u32 slot = 0, id = a->policy;
	struct am_plan *plan = bpf_map_lookup_elem(&plans, &id);
	struct am_job *job;

	if (!plan || !plan->way_slot[0])
		return -1;
	job = claim(&slot);
	if (!job)
		return -1; /* nor is there one for the verdict, which is the severest then */
	if (!path_ways(slot, job, plan, dentry, mnt) && (job->ways[0] | job->ways[1]))
		return slot;
	release(job);
	return -1;
}

/* What the plan says of the job's program if it starts no step. Not inlined: see report_bare(). */
static __noinline __u32 judge_outside(const struct am_actor *a, __u32 slot, __u64 inode)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);

	if (!job)
		return AM_DENY;
	describe(job, a, 1U << AM_EXEC);
	inode_of(job, inode);
	plan_first(a, slot, job, 0, true);
	return job->plan_verdict;
}

/*
 * The program of the job matches ways: it is judged as one that starts a step, by the policy alone, or refused; what its
 * arguments have to tell is left for finish_start(). `blocked`: what the plan says if it starts none.
 */
static __noinline void keep_start(struct am_actor *a, __u32 slot, __u32 blocked, __u32 argc)
{
	__u64 key = (__u64)bpf_get_current_task_btf();
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	__u32 id = a->policy, choice;
	struct am_plan *plan = bpf_map_lookup_elem(&plans, &id);
	struct am_starting s = {.blocked = blocked, .generation = a->generation, .argc = argc};

	if (!job || !plan)
		return;
	s.ways[0] = job->ways[0];
	s.ways[1] = job->ways[1];
	choice = choose_way(id, a->proc.serial, s.ways[0], s.ways[1]);
	/* none of them may begin: refused either way, unless its arguments may make it none of them, and it may run as that */
	if (am_choice_reason(choice) && blocked < AM_HOLD && !(s.ways[0] & ~plan->wanted[0]) &&
	    !(s.ways[1] & ~plan->wanted[1]))
		choice &= 0xffff;
	judge_as_start(a, choice);
	if (am_choice_reason(choice)) /* counts if somebody lets it go on */
		s.choice = choice;
	if (!bpf_map_update_elem(&starting, &key, &s, BPF_NOEXIST)) {
		__sync_fetch_and_add(&nstarting, 1);
		return;
	}
	a->out = AM_NO_SCRATCH; /* no room */
	a->part = AM_DENY;
}

/*
 * The program is in place, and has not run: it begins its step, if its arguments say so. Returns 0, or why it has to end
 * (enum am_reason). Not inlined: see report_bare().
 */
static __noinline __u32 finish_start(struct am_actor *a, struct linux_binprm *bprm)
{
	__u64 key = (__u64)bpf_get_current_task_btf();
	struct am_starting *s = bpf_map_lookup_elem(&starting, &key);
	__u32 slot = 0, id = a->policy, choice, why, added = 0;
	struct am_plan *plan = bpf_map_lookup_elem(&plans, &id);
	struct am_job *job;

	if (!s || !plan || s->generation != a->generation)
		return AM_NO_STATE;
	choice = s->choice;
	if (!choice) {
		job = claim(&slot);
		if (!job)
			return AM_NO_SCRATCH;
		job->ways[0] = s->ways[0];
		job->ways[1] = s->ways[1];
		/* for a script, the kernel replaced its first argument by several */
		if (bprm->filename != bprm->interp)
			added = bprm->argc - s->argc;
		why = word_ways(slot, job, plan, bprm->p, am_words(bprm->argc, added + 1))
			      ? AM_PATH_TOO_LONG
			      : 0;
		if (!why && (job->ways[0] | job->ways[1]))
			choice = choose_way(id, a->proc.serial, job->ways[0], job->ways[1]);
		release(job);
		if (why)
			return why;
		if (!choice)
			return s->blocked >= AM_HOLD ? AM_PLAN_CLOSED : 0;
		if (am_choice_reason(choice)) {
			a->proc.step = am_choice_step(choice);
			return am_choice_reason(choice);
		}
	}
	a->proc.step = am_choice_step(choice);
	return enter_step(a, choice, 0);
}

#endif

#endif
