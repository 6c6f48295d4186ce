/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The steps of a plan in a session: which may begin, who is in one, what becomes of it. agentmon/plan/track.py is the same in
 * Python. Nothing here takes a lock, which tracing programs may not: `alive` goes from 0 to 1 by compare-and-swap, and who
 * does that begins the run; it goes to AM_ENDING so too, and who does that settles the run.
 */
#ifndef AGENTMON_PLAN_H
#define AGENTMON_PLAN_H

#include "decide.bpf.h"

#define AM_TRIES 64 /* of a compare-and-swap: each that fails has another CPU succeed */
#define AM_OVERTIME_STATUS 124 /* as timeout(1) has it */

/* What is chosen, or why nothing is, in one number. 0: no way leads there. */
#define am_choice(reason, way, step) ((reason) << 16 | (way) << 8 | ((step) + 1))
#define am_choice_reason(c) ((c) >> 16 & 0xff)
#define am_choice_way(c) ((c) >> 8 & 0xff)
#define am_choice_step(c) ((c) & 0xff) /* plus 1 */
#define AM_NO_WAY 0xff /* of a mark */
#define AM_LEFT 0xff /* no enum am_reason */
#define AM_UNDO 0x100 /* besides one: it was counted, and has to be counted out */

static __always_inline bool is_ready(const struct am_plan *plan, const struct am_steps *state,
				     __u64 at)
{
	return !(plan->needs[at] & ~state->done) && !(plan->after[at] & ~state->ended);
}

/* Whether a step may begin a run of its own. */
static __always_inline bool may_begin(const struct am_plan *plan, const struct am_steps *state,
				      __u64 at)
{
	__u64 bit = 1ULL << at;

	if (state->step[at].alive || !is_ready(plan, state, at))
		return false;
	return !(state->begun & plan->once & bit) && (!(state->done & bit) || plan->repeat & bit);
}

static __always_inline __u32 why_not(const struct am_plan *plan, const struct am_steps *state,
				     __u64 at)
{
	__u64 bit = 1ULL << at;

	if (state->step[at].alive)
		return AM_PLAN_RUNNING;
	return (state->done | (state->begun & plan->once)) & bit ? AM_PLAN_DONE : AM_PLAN_ORDER;
}

/* Why a step that may begin, or be joined, can take nobody more; 0: it can. */
static __always_inline __u32 why_full(const struct am_plan *plan, const struct am_steps *state,
				      __u64 at)
{
	if (overtime(plan, state, at))
		return AM_PLAN_TIME;
	if (overspent(plan, state, at))
		return AM_PLAN_BYTES;
	return state->step[at].alive >= plan->max_procs[at] ? AM_PLAN_PROCS : 0;
}

struct am_choosing {
	struct am_plan *plan;
	struct am_steps *state;
	__u64 matched[2];
	__u32 fresh; /* only what begins a step that is not done */
	__u32 first, chosen; /* ways; AM_WAYS: none */
};

static long choose_one(__u32 i, struct am_choosing *c)
{
	__u64 way = i, at, word = i >> 6, bit;
	bool begins;

	am_bound(way, 127);
	am_bound(word, 1);
	bit = 1ULL << (i & 63);
	if (!(c->matched[word] & bit))
		return 0;
	at = c->plan->way_step[way];
	am_bound(at, 63);
	if (c->first == AM_WAYS)
		c->first = i;
	begins = may_begin(c->plan, c->state, at);
	if (c->fresh) {
		if (!begins || c->state->done & 1ULL << at)
			return 0;
	} else if (!begins && (!c->state->step[at].alive ||
			       (c->state->used[word] & bit && !(c->plan->repeat & 1ULL << at)))) {
		return 0;
	}
	c->chosen = i;
	return 1;
}

/* Of the ways that a program matches, the one that it takes: am_choice(). Global, so that the verifier looks at it once. */
__noinline int choose_way(__u32 policy, __u64 serial, __u64 low, __u64 high)
{
	struct am_choosing c = {.matched = {low, high}, .fresh = 1, .first = AM_WAYS};
	__u64 at, way;
	__u32 why;

	c.plan = bpf_map_lookup_elem(&plans, &policy);
	c.state = bpf_map_lookup_elem(&steps, &serial);
	c.chosen = AM_WAYS;
	if (!c.plan || !c.state)
		return am_choice(AM_NO_STATE, AM_NO_WAY, 0);
	bpf_loop(AM_WAYS, choose_one, &c, 0);
	c.fresh = 0;
	if (c.chosen == AM_WAYS)
		bpf_loop(AM_WAYS, choose_one, &c, 0);
	way = c.chosen;
	if (way == AM_WAYS)
		way = c.first;
	if (way >= AM_WAYS)
		return 0;
	am_bound(way, 127);
	at = c.plan->way_step[way];
	am_bound(at, 63);
	why = c.chosen == AM_WAYS ? why_not(c.plan, c.state, at) : why_full(c.plan, c.state, at);
	return am_choice(why, (__u32)way, (__u32)at);
}

/*
 * Session, step and `stepping` of a process, as one number: who leaves a step and who ends it by a mark, or two that begin one
 * for the same process, may do so at the same moment. Who changes it has it.
 */
static __always_inline __u32 step_word(const struct am_proc *p)
{
	return *(const volatile __u32 *)p;
}

#define am_word_step(w) ((w) >> 16 & 0xff)
#define am_stepped(session, step, how) ((session) | (__u32)(step) << 16 | (__u32)(how) << 24)

static __always_inline bool change_step(struct am_proc *p, __u32 from, __u32 to)
{
	return __sync_val_compare_and_swap((__u32 *)p, from, to) == from;
}

struct am_counting {
	struct am_step *step;
	__u32 most; /* processes */
	__u32 least; /* else nothing is counted */
	__u32 from; /* what it was before; with AM_ENDING: nothing was changed */
};

/* One process more. */
static long count_in(__u32 unused, struct am_counting *c)
{
	__u32 alive = *(volatile __u32 *)&c->step->alive;

	c->from = alive;
	if (alive & AM_ENDING || alive >= c->most || alive < c->least) {
		c->from = alive | AM_ENDING;
		return 1;
	}
	return __sync_val_compare_and_swap(&c->step->alive, alive, alive + 1) == alive;
}

/* One less; the last one leaves AM_ENDING there. */
static long count_out(__u32 unused, struct am_counting *c)
{
	__u32 alive = *(volatile __u32 *)&c->step->alive;

	c->from = alive;
	if (!alive || alive & AM_ENDING)
		return 1;
	return __sync_val_compare_and_swap(&c->step->alive, alive,
					   alive == 1 ? AM_ENDING : alive - 1) == alive;
}

/* Not inlined: see report_bare(). */
static __noinline void send_stepped(const struct am_proc_key *k, __u32 session, __u32 generation,
				    __u32 what, __u32 status)
{
	struct am_stepped e = {};

	e.h.version = AM_WIRE_VERSION;
	e.h.kind = AM_STEP;
	e.h.size = sizeof(e);
	e.h.ktime_ns = bpf_ktime_get_boot_ns();
	e.h.tgid = e.h.tid = k->tgid;
	e.h.start_ns = k->start_ns;
	e.h.session = session;
	e.h.generation = generation;
	e.what = what;
	e.step = what >> 8;
	e.reason = what >> 16;
	e.status = status;
	send_record(&e, sizeof(e), (what & 0xff) == AM_STEP_REFUSED);
}

/* Whose step, for leave_step(). */
static __always_inline __u32 policy_of(__u32 session)
{
	struct am_session *s = bpf_map_lookup_elem(&sessions, &session);

	return s ? s->policy : AM_MAX_POLICIES;
}

/*
 * A process is out of its step. `status`: as a shell has it; counts of who began it. Returns 0. Global, so that the verifier
 * looks at it once: neither pointer is ever NULL, but it does not know that.
 */
__noinline int leave_step(const struct am_proc *p, const struct am_proc_key *k, __u32 status)
{
	struct am_counting c = {};
	struct am_steps *state;
	struct am_policy *policy;
	struct am_plan *plan;
	__u64 at, serial, word;
	__u32 id, bad;

	if (!p || !k || !p->step)
		return 0;
	at = p->step - 1;
	am_bound(at, 63);
	serial = p->serial;
	id = policy_of(p->session);
	plan = bpf_map_lookup_elem(&plans, &id);
	state = bpf_map_lookup_elem(&steps, &serial);
	if (!plan || !state)
		return 0;
	c.step = &state->step[at];
	status &= 0xff;
	word = status >> 6;
	am_bound(word, 3);
	if (p->stepping & AM_ROOT && !(plan->exits[at][word] >> (status & 63) & 1))
		__sync_val_compare_and_swap(&c.step->bad, 0, status + 1);
	bpf_loop(AM_TRIES, count_out, &c, 0);
	if (c.from != 1)
		return 0;
	if (overtime(plan, state, at))
		__sync_val_compare_and_swap(&c.step->bad, 0, AM_OVERTIME_STATUS + 1);
	bad = c.step->bad;
	if (!bad)
		__sync_fetch_and_or(&state->done, 1ULL << at);
	__sync_fetch_and_or(&state->ended, 1ULL << at);
	c.step->began_ns = 0;
	__sync_lock_test_and_set(&c.step->alive, 0);
	policy = bpf_map_lookup_elem(&policies, &id);
	send_stepped(k, p->session, policy ? policy->generation : 0,
		     (bad ? AM_STEP_FAILED : AM_STEP_DONE) | (__u32)(at + 1) << 8,
		     bad ? bad - 1 : 0);
	return 0;
}

/*
 * A process enters the step that it chose. `choice` is am_choice(); with a reason: somebody let it go on all the same.
 * Returns 0, or why it may not after all (enum am_reason), maybe with AM_UNDO. Global, so that the verifier looks at it once.
 */
__noinline int try_step(const struct am_actor *a, __u32 choice, __u32 marked)
{
	struct am_counting c = {};
	struct am_proc_key key;
	struct am_steps *state;
	struct am_plan *plan;
	__u64 at, word, bit, serial;
	struct am_proc *p;
	bool forced;
	__u32 id, was, is;

	if (!a)
		return AM_NO_STATE;
	id = a->policy;
	serial = a->proc.serial;
	key = a->key;
	plan = bpf_map_lookup_elem(&plans, &id);
	state = bpf_map_lookup_elem(&steps, &serial);
	p = bpf_map_lookup_elem(&procs, &key);
	at = am_choice_step(choice);
	if (!plan || !state || !p || !at)
		return AM_NO_STATE;
	forced = am_choice_reason(choice);
	at--;
	am_bound(at, 63);
	word = am_choice_way(choice) >> 6;
	bit = word > 1 ? 0 : 1ULL << (am_choice_way(choice) & 63);
	am_bound(word, 1);
	c.step = &state->step[at];
	c.most = forced ? AM_ENDING - 1 : plan->max_procs[at];
	if (!forced && !c.step->alive && !may_begin(plan, state, at))
		return why_not(plan, state, at);
	was = step_word(p);
	is = am_stepped(was & 0xffff, at + 1, AM_ROOT | (marked ? AM_MARKED : 0));
	if (am_word_step(was) || !change_step(p, was, is))
		return AM_PLAN_MARK; /* another thread, or a mark, was faster */
	bpf_loop(AM_TRIES, count_in, &c, 0);
	if (c.from & AM_ENDING) {
		change_step(p, is, was);
		return c.step->alive & AM_ENDING ? AM_PLAN_RUNNING : AM_PLAN_PROCS;
	}
	if (!c.from && !forced &&
	    ((state->begun & plan->once) | (state->done & ~plan->repeat)) & 1ULL << at) {
		/* another run began and ended meanwhile */
		__sync_lock_test_and_set(&c.step->alive, 0);
		change_step(p, is, was);
		return AM_PLAN_DONE;
	}
	if (!c.from) {
		__sync_fetch_and_and(&state->used[0], ~plan->ways[at][0]);
		__sync_fetch_and_and(&state->used[1], ~plan->ways[at][1]);
		__sync_fetch_and_or(&state->used[word], bit);
		__sync_fetch_and_or(&state->begun, 1ULL << at);
		c.step->bad = 0;
		__sync_lock_test_and_set(&c.step->began_ns, bpf_ktime_get_boot_ns());
	} else if (!forced && !(plan->repeat & 1ULL << at)) {
		/* it joins: not before the run is settled, and by each way once */
		if (!c.step->began_ns || !bit ||
		    __sync_fetch_and_or(&state->used[word], bit) & bit) {
			return AM_UNDO | AM_PLAN_RUNNING;
		}
	}
	send_stepped(&key, a->proc.session, a->generation,
		     (c.from ? AM_STEP_JOINED : AM_STEP_BEGAN) | (__u32)(at + 1) << 8, 0);
	return 0;
}

/* Takes back what try_step() did: the others may have left meanwhile, then it is the last; and no root. Global, as others are. */
__noinline int undo_step(const struct am_actor *a)
{
	struct am_proc_key key;
	struct am_proc *p;
	__u32 is, plain;

	if (!a)
		return 0;
	key = a->key;
	p = bpf_map_lookup_elem(&procs, &key);
	if (!p)
		return 0;
	is = step_word(p);
	plain = is & 0xffffff;
	if (change_step(p, is, plain)) {
		leave_step(p, &key, 0);
		change_step(p, plain, is & 0xffff);
	}
	return 0;
}

/* The frames of both in one chain would not fit into the 512 bytes of Linux 6.1. Returns as try_step() does, without AM_UNDO. */
static __always_inline int enter_step(const struct am_actor *a, __u32 choice, __u32 marked)
{
	int why = try_step(a, choice, marked);

	if (why & AM_UNDO)
		undo_step(a);
	return why & 0xff;
}

/*
 * A child of a process in a step is in it too. Returns 0, or why not (enum am_reason); AM_LEFT: its parent has ended the step
 * by a mark meanwhile, and nobody is in it. Global, as others are.
 */
__noinline int fork_step(const struct am_proc *p, const struct am_proc_key *k)
{
	struct am_counting c = {};
	struct am_steps *state;
	struct am_plan *plan;
	__u64 at, serial;
	__u32 id, why = 0;

	if (!p || !k || !p->step)
		return 0;
	at = p->step - 1;
	am_bound(at, 63);
	serial = p->serial;
	id = policy_of(p->session);
	plan = bpf_map_lookup_elem(&plans, &id);
	state = bpf_map_lookup_elem(&steps, &serial);
	if (!plan || !state)
		return AM_NO_STATE;
	c.step = &state->step[at];
	c.most = plan->max_procs[at];
	if (overtime(plan, state, at)) {
		why = AM_PLAN_TIME;
	} else if (overspent(plan, state, at)) {
		why = AM_PLAN_BYTES;
	} else {
		c.least = 1;
		bpf_loop(AM_TRIES, count_in, &c, 0);
		if (c.from == AM_ENDING)
			return AM_LEFT;
		if (c.from & AM_ENDING)
			why = AM_PLAN_PROCS;
	}
	if (why)
		send_stepped(k, p->session, 0, AM_STEP_REFUSED | (__u32)(at + 1) << 8 | why << 16,
			     0);
	return why;
}

#endif
