/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Marks: a process says itself that it begins or ends a step. The daemon asks for it, once it knows who says so; whether it may
 * is decided here, as for programs.
 */
#ifndef AGENTMON_MARK_H
#define AGENTMON_MARK_H

#include "plan.bpf.h"

/* Why a process may not enter a step by a mark (enum am_reason), or 0. */
static __always_inline __u32 why_no_mark(const struct am_proc *p, const struct am_plan *plan,
					 const struct am_steps *state, __u64 at)
{
	__u64 bit = 1ULL << at;

	if (p->step || !(plan->marks & bit))
		return AM_PLAN_MARK;
	if (!may_begin(plan, state, at) && !(state->step[at].alive && plan->repeat & bit))
		return why_not(plan, state, at);
	return why_full(plan, state, at);
}

/* Returns 0, or why not (enum am_reason). */
SEC("syscall")
int mark_step(struct am_mark *m)
{
	struct am_proc_key key = {};
	struct am_actor a = {};
	struct am_steps *state;
	struct am_session *s;
	struct am_policy *pol;
	struct am_plan *plan;
	struct am_proc *p;
	__u64 serial, at;
	__u32 id, why, was;

	key.start_ns = m->start_ns;
	key.tgid = m->tgid;
	p = bpf_map_lookup_elem(&procs, &key);
	if (!p)
		return AM_NO_STATE;
	a.key = key;
	copy_proc(&a.proc, p);
	id = a.proc.session;
	s = bpf_map_lookup_elem(&sessions, &id);
	if (!s || s->serial != a.proc.serial || !(s->flags & AM_S_LIVE))
		return AM_NO_STATE;
	id = s->policy;
	a.policy = id;
	serial = s->serial;
	pol = bpf_map_lookup_elem(&policies, &id);
	plan = bpf_map_lookup_elem(&plans, &id);
	state = bpf_map_lookup_elem(&steps, &serial);
	if (!pol || !plan || !state)
		return AM_NO_STATE;
	a.generation = pol->generation;
	at = m->step;
	if (at >= AM_STEPS)
		return AM_PLAN_MARK;
	am_bound(at, 63);
	if (m->ends) {
		was = step_word(p);
		if (am_word_step(was) != at + 1 || !(was >> 24 & AM_MARKED) ||
		    !change_step(p, was, was & 0xffff))
			return AM_PLAN_MARK;
		a.proc.step = at + 1;
		a.proc.stepping = was >> 24;
		leave_step(&a.proc, &key, m->status);
		return 0;
	}
	why = why_no_mark(&a.proc, plan, state, at);
	return why ? why : enter_step(&a, am_choice(0, AM_NO_WAY, (__u32)at), 1);
}

#endif
