/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A program that is held at its start (halt.bpf.h): nobody but who answers lets it run.
 *
 * In the LSM tier both of these are attached only while a policy in force has rules on arguments and holds programs, as the
 * whole host pays for them (Monitor._attach_wanted()). A program that is missed by the first, or with the first alone missing,
 * runs into the second, and is killed.
 *
 *   tp_btf/sched_process_exec      LSM: what bprm_committed_creds found is told and stopped now that the arguments can be
 *                                  shown, and no exec can fail any more
 *   tp_btf/x86_fpu_regs_activated  on the way to the first instruction
 */
#ifndef AGENTMON_RESUME_H
#define AGENTMON_RESUME_H

#include "exec.bpf.h"

/* Of a process that was halted and goes on without having been let. Not inlined: see report_bare(). */
static __noinline void report_woken(const struct am_actor *a, __u64 held, __u32 reason)
{
	struct am_decision d = {};

	fill(&d, a, 0);
	d.op = AM_EXEC;
	d.verdict = AM_DENY;
	d.rule = AM_NO_RULE;
	d.reason = reason;
	d.flags = AM_F_KILLED;
	d.held = held;
	send_record(&d, sizeof(d), true);
}

/* Kills the current process if it was halted, and nobody let it go on. */
static __noinline void check_halted(struct task_struct *t)
{
	struct am_proc_key key = {};
	struct am_hold_key k = {};
	struct am_actor a = {};
	__u64 now = bpf_ktime_get_boot_ns();
	struct am_answer *answer;
	struct am_halted *h;
	__u32 reason = 0;
	int who;

	key.tgid = t->tgid;
	key.start_ns = t->group_leader->start_boottime;
	h = bpf_map_lookup_elem(&halted, &key);
	if (!h || h->released)
		return;
	k.start_ns = key.start_ns;
	k.tgid = key.tgid;
	k.tid = key.tgid;
	for (int i = 0; i < 2; i++) {
		k.object = h->object[i];
		if (!k.object || (!i && h->any))
			continue;
		answer = bpf_map_lookup_elem(&answers, &k);
		if (answer && answer->verdict == AM_ALLOW && now < answer->until_ns)
			continue;
		reason = answer && answer->verdict == AM_DENY ? AM_REFUSED : AM_WOKEN;
		break;
	}
	who = identify(&a);
	if (!who || !reason) { /* its session was released, or it was let */
		h->released = 1;
		__sync_fetch_and_add(&nhalted, -1);
		set_marks(h->session, h->generation, h->marks);
		if (AM_TIER == AM_TIER_LSM || (!h->script && !h->any))
			bpf_map_delete_elem(&halted, &key);
		return;
	}
	kill_current();
	if (h->told)
		return;
	h->told = 1;
	count(AM_C_BLOCKED);
	report_woken(&a, k.object, reason);
}

/*
 * On the way to user space, with the registers of a process that another one had in between: a new program never had
 * them, so this is before its first instruction, behind all that could stop it. Interrupts are off here, so the signal is
 * sent by one of our own, which comes as soon as they are on: upon that instruction.
 */
SEC("tp_btf/x86_fpu_regs_activated")
int BPF_PROG(resumes)
{
	if (nhalted > 0)
		check_halted((void *)bpf_get_current_task_btf());
	return 0;
}

#ifndef AM_REACT

/* What waits of the current exec, by one of its keys. Not inlined: see report_bare(). */
static __noinline void stop_one(struct am_actor *a, __u64 interpreter)
{
	struct am_waiting_key k = {.interpreter = interpreter};
	struct am_proc_key key = a->key;
	struct am_halted *h = bpf_map_lookup_elem(&halted, &key);
	struct am_waiting *w;
	struct am_job *job;
	__u32 slot = 0;

	k.task = (__u64)bpf_get_current_task_btf();
	w = bpf_map_lookup_elem(&waiting, &k);
	if (!w)
		return;
	job = claim(&slot);
	if (job && !bpf_probe_read_kernel(job, sizeof(*w), w)) {
		a->facts = job->facts;
		a->proc.unsure = job->unsure;
		a->proc.exe_tags = job->exe_tags;
		if (bpf_send_signal(AM_SIGSTOP))
			count(AM_C_SIGNAL_FAILED);
		report(slot, a, AM_F_KILLED | (h && h->script && !interpreter ? AM_F_SCRIPT : 0));
	}
	if (job)
		release(job);
	forget_one(&k);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(halts)
{
	struct am_actor a = {};

	if (nhalted <= 0 || nwaiting <= 0 || identify(&a) != 1)
		return 0;
	stop_one(&a, 0);
	stop_one(&a, 1);
	return 0;
}

#endif

#endif
