/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Between two hooks of one exec. lsm/bprm_check_security may refuse the program, but its arguments are out of reach there: they
 * lie in a memory that is nobody's yet. lsm/bprm_committed_creds can read them, and only kill. So the first hook gives
 * the verdict if that is the same whatever the arguments are; else what it found waits for the second.
 */
#ifndef AGENTMON_WAITING_H
#define AGENTMON_WAITING_H

/* In `flags` of decide_path() for exec: the number of arguments, and whether this is the interpreter of a script. */
#define AM_ARGC_SHIFT 8
#define AM_ARGC_MASK 0x3fffff
#define AM_INTERPRETER (1U << 31)

/*
 * Execs between the two hooks, and threads whose last one failed there: 1.2 MB, for more than that are never under way on a
 * host of some hundred processors. Of one session, which is not to take all: as many as make(1) runs at once.
 */
#define AM_MAX_WAITING 256
#define AM_WAITING_EACH 32

/* By thread, for two of a process may exec at once: the one that wins takes the other's place in everything else. */
struct am_waiting_key {
	__u64 task; /* struct task_struct * */
	__u64 interpreter; /* 1: of the script that was asked for */
};

/* A judged job as far as its path goes. */
struct am_waiting {
	__u64 busy;
	__u32 generation, argc, later, owner;
	char rest[__builtin_offsetof(struct am_job, room) -
		  __builtin_offsetof(struct am_job, dentry) + AM_HEAD + AM_PATH_MAX];
};

/*
 * All there at once: what cannot be put there is judged by the worse verdict, and what is there is found. The storage of
 * tasks (BPF_MAP_TYPE_TASK_STORAGE) of Linux 6.1 finds nothing while another task on the CPU is half way in it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, AM_MAX_WAITING);
	__type(key, struct am_waiting_key);
	__type(value, struct am_waiting);
} waiting SEC(".maps");

__s64 nwaiting;

/* How many are a session's, by its slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, AM_MAX_SESSIONS);
	__type(key, __u32);
	__type(value, __s64);
} waiters SEC(".maps");

static __always_inline void forget_one(struct am_waiting_key *k)
{
	struct am_waiting *w = bpf_map_lookup_elem(&waiting, k);
	__u32 owner;
	__s64 *own;

	if (!w)
		return;
	owner = w->owner;
	if (bpf_map_delete_elem(&waiting, k))
		return;
	__sync_fetch_and_add(&nwaiting, -1);
	own = bpf_map_lookup_elem(&waiters, &owner);
	if (own)
		__sync_fetch_and_add(own, -1);
}

static __always_inline void forget_waiting(struct task_struct *t)
{
	struct am_waiting_key k = {.task = (__u64)t};

	if (nwaiting <= 0)
		return;
	forget_one(&k);
	k.interpreter = 1;
	forget_one(&k);
}

/* A file of an exec is looked at: what waits of an earlier one that failed is void. */
static __always_inline void begin_exec(bool interpreter)
{
	struct am_waiting_key k = {.task = (__u64)bpf_get_current_task_btf(), .interpreter = 1};
	struct am_waiting *w;

	if (!interpreter) {
		forget_waiting((void *)bpf_get_current_task_btf());
	} else if (nwaiting > 0) {
		w = bpf_map_lookup_elem(&waiting, &k);
		if (w)
			w->later++;
	}
}

/*
 * Whether the verdict on the job, a program to run, hangs on its arguments; then it waits. If it does not, or cannot
 * wait, the job is ready for judge(). Inlined: the chain of calls from a hook to list_rule() has the eight that may be.
 */
static __always_inline bool waits_for_arguments(__u32 slot, __u32 flags)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	__u32 id, rule, worst, best, planned;
	struct am_waiting_key k = {};
	struct am_policy *p;
	__s64 *own;

	if (!job)
		return false;
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	if (!p || !p->args)
		return false;
	id = p->args;
	job->trial = 1;
	job->unsure |= id;
	worst = judge(slot, 0);
	rule = job->rule;
	job->unsure &= ~id;
	job->hoped = id;
	planned = job->plan_verdict;
	job->plan_verdict = job->plan_best;
	best = judge(slot, 0);
	job->plan_verdict = planned;
	job->trial = 0;
	/* what is held whatever they are can restart its call now */
	if (best > AM_HOLD ||
	    (best == worst && job->rule == rule && (best == AM_HOLD || !p->args_watched)))
		return false;
	job->hoped = 0;
	job->unsure |= id; /* unless it can wait */
	job->generation = p->generation;
	job->argc = flags >> AM_ARGC_SHIFT & AM_ARGC_MASK;
	job->later = 0;
	job->owner = job->session;
	id = job->session;
	own = bpf_map_lookup_elem(&waiters, &id);
	if (!own || *own >= AM_WAITING_EACH)
		return false;
	k.task = (__u64)bpf_get_current_task_btf();
	k.interpreter = !!(flags & AM_INTERPRETER);
	if (bpf_map_update_elem(&waiting, &k, job, BPF_NOEXIST))
		return false; /* no room; or the interpreter of an interpreter */
	__sync_fetch_and_add(&nwaiting, 1);
	__sync_fetch_and_add(own, 1);
	return true;
}

#endif
