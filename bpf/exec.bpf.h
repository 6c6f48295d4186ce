/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Running a program: the verdict, and the exe tags that the process carries from then on.
 */
#ifndef AGENTMON_EXEC_H
#define AGENTMON_EXEC_H

#include "arguments.bpf.h"
#include "process.bpf.h"
#include "start.bpf.h"

/* Not inlined: see report_bare(). */
static __noinline void send_execed(const struct am_actor *a)
{
	send_process(AM_EXECED, &a->key, &a->proc, (void *)bpf_get_current_task_btf(), a->ppid, 0,
		     0);
}

/*
 * The tags of its new program; those of the one before, `before`, are an ancestor's from now on. Whoever asks next finds
 * them out if that fails now. No other thread is left.
 */
static __always_inline void retag(struct am_actor *a, __u64 before)
{
	struct am_proc_key key = a->key;
	struct am_proc *p = bpf_map_lookup_elem(&procs, &key);

	if (!p)
		return;
	if (a->proc.kin) {
		a->proc.parents |= before;
		if (!a->proc.generation)
			a->proc.unsure = ~0U;
	}
	a->proc.kin = a->generation;
	a->proc.exe_tags = 0;
	a->proc.generation = 0;
	keep_tags(a, *(volatile __u32 *)&p->generation);
	renew_tags(a);
}

#ifndef AM_REACT

/* What waited, of judge_waited(). */
#define AM_OF_PROGRAM 0
#define AM_OF_INTERPRETER 1
#define AM_OF_SCRIPT 2

/*
 * The verdict on what waited, now that the facts of `a` say what the arguments do. What is held waits on, for the next hook
 * (resume.bpf.h). Global, as others are. Returns 0.
 */
__noinline int judge_waited(struct am_actor *a, __u32 which)
{
	struct am_waiting_key k = {.interpreter = which == AM_OF_INTERPRETER};
	struct am_waiting *w;
	__u32 slot = 0, id, why = AM_NO_STATE, verdict;
	struct am_job *job = NULL;
	struct am_policy *p;

	if (!a)
		return 0;
	k.task = (__u64)bpf_get_current_task_btf();
	w = bpf_map_lookup_elem(&waiting, &k);
	id = a->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	if (w && p && w->generation == a->generation) {
		why = AM_NO_SCRATCH;
		job = claim(&slot);
	}
	if (!job || bpf_probe_read_kernel(job, sizeof(*w), w)) {
		/* another policy is in force by now: what waited was judged by tables that may be gone */
		if (job)
			release(job);
		fallback(a, 1U << AM_EXEC, AM_DENY, why, AM_F_KILLED);
		count(AM_C_BLOCKED);
		kill_current();
		forget_one(&k);
		return 0;
	}
	/* who acts is who began the exec; what is counted is counted now, not when many may have begun */
	id = p->args | p->wants;
	a->facts = (job->facts & ~id) | (a->facts & id);
	job->facts = a->facts;
	job->unsure = a->proc.unsure;
	job->plan_verdict = AM_ALLOW;
	why = 0;
	if (a->part) {
		plan_first(a, slot, job, 0, false);
		if (run_automaton(slot))
			why = AM_NO_STATE;
	}
	verdict = judge(slot, why);
	if (verdict == AM_HOLD) {
		if (which == AM_OF_SCRIPT)
			job->inode = 0; /* it is closed already: user space looks what is in it */
		halt_job(a, slot, which == AM_OF_SCRIPT);
		verdict = job->verdict;
	}
	if (verdict == AM_HOLD) {
		if (!bpf_map_update_elem(&waiting, &k, job, BPF_EXIST)) {
			release(job);
			return 0;
		}
		job->verdict = verdict = AM_DENY;
	}
	if (verdict >= AM_HOLD) {
		report(slot, a, AM_F_KILLED);
		count(AM_C_BLOCKED);
		kill_current();
	} else {
		report(slot, a, 0);
	}
	release(job);
	forget_one(&k);
	return 0;
}

/* Judges what waits for the arguments. The new memory is in place, and no instruction of the program has run. */
static __always_inline void judge_waiting(struct am_actor *a, struct linux_binprm *bprm)
{
	struct am_waiting_key k = {.task = (__u64)bpf_get_current_task_btf()};
	__u32 argc = bprm->argc, unsure = a->proc.unsure;
	struct am_waiting *w;

	if (nwaiting <= 0)
		return;
	w = bpf_map_lookup_elem(&waiting, &k);
	if (w) {
		/* for a script, the kernel replaced its first argument by several */
		__u32 added = bprm->filename != bprm->interp ? argc - w->argc : 0;

		read_arguments(a, bprm->p, argc, added + 1);
		judge_waited(a, bprm->filename != bprm->interp ? AM_OF_SCRIPT : AM_OF_PROGRAM);
	}
	k.interpreter = 1;
	w = bpf_map_lookup_elem(&waiting, &k);
	if (w) {
		read_arguments(a, bprm->p, argc, w->later ? 0 : 1);
		judge_waited(a, AM_OF_INTERPRETER);
	}
	a->proc.unsure = unsure;
}

#endif

#endif
