/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who acts: the current process, its session, and the facts that rules ask for.
 */
#ifndef AGENTMON_ACTOR_H
#define AGENTMON_ACTOR_H

#include "automaton.bpf.h"

/* Who acts: all zero, then filled by identify(). */
struct am_actor {
	struct am_proc_key key;
	struct am_proc proc;
	__u32 policy;
	__u32 generation;
	__u32 ppid;
	__u16 dns_port;
	__u8 doomed;
	__u8 out; /* the plan lets it do nothing now, and this is why: enum am_reason */
	__u32 part; /* slot, plus 1, of what the plan says of it; 0: it has none. With `out`: enum am_action */
	__u32 facts;
};

/* What a thread may be writing tags to at this moment: a mixture counts as unknown. */
static __always_inline void copy_proc(struct am_proc *to, const struct am_proc *p)
{
	__u32 generation = *(const volatile __u32 *)&p->generation;

	barrier();
	*to = *p;
	barrier();
	if (generation == AM_TAGGING || to->generation != generation ||
	    *(const volatile __u32 *)&p->generation != generation) {
		to->generation = 0;
		to->kin = AM_TAGGING; /* of no policy */
	}
}

/* Before it is handed on to a child: what it runs is run by an ancestor. Who began a step is one, not its children. */
static __always_inline void add_parent(struct am_proc *p)
{
	p->stepping = 0;
	if (!p->kin)
		return; /* enrolled, and nothing more: what it runs is not the session's */
	if (p->generation == p->kin)
		p->parents |= p->exe_tags;
	else
		p->unsure = ~0U;
}

#ifndef AM_REACT
static __always_inline void no_newborn(struct task_struct *t)
{
	__u64 address = (__u64)t;

	if (nnewborn > 0 && !bpf_map_delete_elem(&newborn, &address))
		__sync_fetch_and_add(&nnewborn, -1);
}

/* In which step task_alloc counted a child. */
static __always_inline __u8 newborn_step(struct task_struct *t)
{
	__u64 address = (__u64)t;
	struct am_proc *b = bpf_map_lookup_elem(&newborn, &address);

	return b ? b->step : 0;
}

/* Whether the current process was born into a live session that it is not listed in; lists it then, if there is room. */
static __always_inline bool born_enrolled(const struct am_proc_key *k, struct task_struct *t)
{
	struct task_struct *leader = t->group_leader;
	__u64 address = (__u64)leader;
	struct am_session *s;
	struct am_proc *b, copy;
	__u32 id;

	if (nnewborn <= 0)
		return false;
	b = bpf_map_lookup_elem(&newborn, &address);
	if (!b)
		return false;
	copy_proc(&copy, b);
	id = copy.session;
	s = bpf_map_lookup_elem(&sessions, &id);
	if (!s || s->serial != copy.serial || !(s->flags & AM_S_LIVE))
		return false; /* released since */
	if (!bpf_map_update_elem(&procs, k, &copy, BPF_NOEXIST)) {
		b->step = 0; /* it counts in its step by the other entry from now on */
		__sync_fetch_and_add(&nprocs, 1);
		count(AM_C_FORK_REPAIRED);
	}
	return true;
}
#endif

/* Whether a step's run has had its time. */
static __always_inline bool overtime(const struct am_plan *plan, const struct am_steps *state,
				     __u64 at)
{
	__u64 limit = plan->timeout_ns[at], began = state->step[at].began_ns;

	return limit != ~0ULL && began && bpf_ktime_get_boot_ns() - began > limit;
}

/*
 * Whether a step has written more than it may. In the react tier alone, where that has happened when it is seen: then the step
 * may nothing any more, or each child that it makes could write too much once.
 */
static __always_inline bool overspent(const struct am_plan *plan, const struct am_steps *state,
				      __u64 at)
{
	return AM_TIER == AM_TIER_REACT && state->step[at].written > plan->max_write[at];
}

/* What becomes of what a step forbids and nobody can let go on. */
static __always_inline __u32 sure_action(const struct am_plan *plan, __u64 at)
{
	__u32 action = am_violation(plan, at);

	return action == AM_HOLD ? AM_DENY : action;
}

struct am_kin {
	struct am_lineage *old, *new;
	__u64 exe, parents, known;
	__u32 unsure; /* under the old policy */
	__u32 run, ran, sure; /* under the new one: exe, parents, known */
};

/* One set of programs of the old policy against one of the new. */
static long match_sets(__u32 i, struct am_kin *k)
{
	__u64 o = i, n = i >> 5;

	am_bound(o, 31);
	am_bound(n, 31);
	if (k->new->set[n] && k->new->set[n] == k->old->set[o]) {
		k->run |= (k->exe >> o & 1) << n;
		k->ran |= (k->parents >> o & 1) << n;
		k->sure |= (k->known >> o & 1) << n;
	}
	return 0;
}

/*
 * What is known of the ancestors of a process, and of what it runs, in the numbers of the policy in force: they were
 * found out under another. Sets of programs that both policies name are the same ones; whether an ancestor ran one of
 * a set that only the new one names, nobody knows any more. Global, so that the verifier looks at it once. Returns 0.
 */
__noinline int kin_of(struct am_actor *a)
{
	struct am_policy *p;
	struct am_kin k = {};
	__u32 id;

	if (!a)
		return 0;
	id = a->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	if (!p)
		return 0;
	if (p->parents) {
		id = a->proc.kin;
		k.old = bpf_map_lookup_elem(&lineages, &id);
		id = a->generation;
		k.new = bpf_map_lookup_elem(&lineages, &id);
		k.exe = a->proc.exe_tags;
		k.parents = a->proc.parents;
		k.known = ~a->proc.unsure;
		/* what it runs is not known, and may not be asked for later */
		if (k.old && k.new && a->proc.generation == a->proc.kin)
			bpf_loop(AM_FACTS * AM_FACTS, match_sets, &k, 0);
	}
	a->proc.exe_tags = k.run;
	a->proc.parents = k.ran;
	a->proc.unsure = p->parents & ~(k.sure | k.ran);
	a->proc.kin = a->generation;
	return 0;
}

/* What the time says. Global, so that the verifier looks at it once. */
__noinline int clock_facts(__u32 policy, __u32 unclocked)
{
	struct am_clock *c = bpf_map_lookup_elem(&clocks, &policy);
	__u64 now = bpf_ktime_get_boot_ns();

	if (!c)
		return unclocked;
	for (int i = 0; i < AM_SPANS; i++) {
		if (now < c->span[i].until_ns)
			return c->span[i].facts;
	}
	return unclocked;
}

struct am_wanting {
	struct am_wants *wants;
	struct am_marks *marks;
	__u64 facts, now;
};

static long want_one(__u32 i, struct am_wanting *a)
{
	__u64 n = i, mark, since;

	am_bound(n, 15);
	mark = a->wants->want[n].mark;
	since = a->wants->want[n].since;
	am_bound(mark, 15);
	if (since > AM_MARKS)
		since = AM_MARKS;
	if (a->marks->at[mark] > a->marks->at[since])
		a->facts |= a->wants->want[n].fact;
	return !a->wants->want[n].fact;
}

static long exceed_one(__u32 i, struct am_wanting *a)
{
	__u64 n = i;

	am_bound(n, 7);
	if (!a->marks || a->marks->due[n] > a->now + a->wants->rate[n].slack_ns)
		a->facts |= a->wants->rate[n].fact;
	return !a->wants->rate[n].fact;
}

/* What the marks of a session say, and its rates. Global, so that the verifier looks at it once. */
__noinline int mark_facts(__u32 policy, __u32 session, __u32 generation)
{
	struct am_marked_key k = {.session = session, .generation = generation};
	struct am_wanting a = {};

	a.wants = bpf_map_lookup_elem(&wants, &policy);
	a.marks = bpf_map_lookup_elem(&marked, &k);
	if (!a.wants)
		return 0;
	if (a.marks)
		bpf_loop(AM_WANTS, want_one, &a, 0);
	a.now = bpf_ktime_get_boot_ns();
	bpf_loop(AM_RATES, exceed_one, &a, 0);
	return a.facts;
}

/* The marks that a rule of a policy sets. Global, so that the verifier looks at it once. */
__noinline int marks_of(__u32 policy, __u32 rule)
{
	struct am_effect_key k = {.policy = policy, .rule = rule};
	__u32 *found = bpf_map_lookup_elem(&effects, &k);

	return found ? *found : 0;
}

struct am_setting {
	struct am_marks *marks;
	__u64 now, left;
};

static long set_one(__u32 i, struct am_setting *s)
{
	__u64 mark = lowest_bit(s->left);

	if (mark < AM_MARKS) {
		am_bound(mark, 15);
		s->marks->at[mark] = s->now;
	} else {
		__u64 due;

		am_bound(mark, 7);
		due = s->marks->due[mark];
		if (due < s->now)
			__sync_val_compare_and_swap(&s->marks->due[mark], due, s->now);
		__sync_fetch_and_add(&s->marks->due[mark], s->marks->interval_ns[mark]);
	}
	s->left &= s->left - 1;
	return !s->left;
}

/* Something was let through by rules that set these marks. Inlined: each call in a chain costs 32 bytes of stack. */
static __always_inline void set_marks(__u32 session, __u32 generation, __u32 marks)
{
	struct am_marked_key k = {.session = session, .generation = generation};
	struct am_setting s = {.left = marks};

	s.marks = bpf_map_lookup_elem(&marked, &k);
	s.now = bpf_ktime_get_boot_ns();
	if (s.marks && marks)
		bpf_loop(AM_MARKS + AM_RATES, set_one, &s, 0);
}

/* A rule (or none) gave this verdict: what it marks is marked. Global, so that the verifier looks at it once. Returns 0. */
__noinline int let_through(const struct am_actor *a, __u32 verdict, __u32 rule)
{
	struct am_policy *p;
	__u32 policy;

	if (!a || verdict >= AM_HOLD || rule == AM_NO_RULE)
		return 0;
	policy = a->policy;
	p = bpf_map_lookup_elem(&policies, &policy);
	if (p && p->marking)
		set_marks(a->proc.session, p->generation, marks_of(policy, rule));
	return 0;
}

/*
 * The facts of a policy that are true of the current process, whose ancestors carry `parents`, in `session` at
 * `risk`. Global, so that the verifier looks at it once.
 */
__noinline int facts_of(__u32 policy, __u64 parents, __u64 risk, __u32 session)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct am_policy *p = bpf_map_lookup_elem(&policies, &policy);
	__u32 facts, *known;

	if (!p)
		return 0;
	am_bound(risk, 3);
	facts = (parents & p->parents) | p->at_risk[risk];
	if (p->users) {
		/*
		 * By whose rights files are opened: the effective user, unless setfsuid(2) says otherwise. Of the
		 * real credentials: overlayfs puts on those of who mounted it.
		 */
		struct am_user_key k = {.policy = policy, .uid = t->real_cred->fsuid.val};

		known = bpf_map_lookup_elem(&users, &k);
		if (known)
			facts |= *known;
	}
	if (p->clock)
		facts |= clock_facts(policy, p->unclocked);
	if (p->wants)
		facts |= mark_facts(policy, session, p->generation);
	return facts;
}

/*
 * What the plan of a session says of what its process does now. Returns -1 if it is not known. Global, so that the verifier
 * looks at it once.
 */
__noinline int plan_of(struct am_actor *a)
{
	struct am_parts *parts_of;
	struct am_steps *state;
	struct am_plan *plan;
	__u64 serial, at;
	__u32 id;

	if (!a)
		return -1;
	id = a->policy;
	serial = a->proc.serial;
	parts_of = bpf_map_lookup_elem(&parts, &id);
	state = bpf_map_lookup_elem(&steps, &serial);
	if (!parts_of || !parts_of->known || !state)
		return -1;
	if (!a->proc.step) {
		a->part = parts_of->part[AM_STEPS];
		return 0;
	}
	at = a->proc.step - 1;
	am_bound(at, 63);
	a->part = parts_of->part[at];
	if (!(parts_of->timed >> at & 1))
		return 0;
	plan = bpf_map_lookup_elem(&plans, &id);
	if (!plan)
		return -1;
	if (overtime(plan, state, at)) {
		a->part = sure_action(plan, at);
		a->out = AM_PLAN_TIME;
	} else if (overspent(plan, state, at)) {
		a->part = sure_action(plan, at);
		a->out = AM_PLAN_BYTES;
	}
	return 0;
}

/*
 * Returns: 0 the current process is not enrolled (or released); 1 it is, *a is filled;
 * -1 it is, but its session is not known any more, or it could not be added: deny.
 * Global, so that the verifier looks at it once: `a` is never NULL, but it does not know that.
 */
__noinline int identify(struct am_actor *a)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct am_proc_key k = {}; /* Linux 6.1 takes no key but from the stack */
	struct am_proc *p;
	struct am_session *s;
	struct am_policy *pol;
	__u32 id;

	if (!a)
		return -1;
	k.tgid = t->tgid;
	k.start_ns = t->group_leader->start_boottime;
	a->key = k;
	p = bpf_map_lookup_elem(&procs, &k);
#ifndef AM_REACT
	if (!p && born_enrolled(&k, t)) {
		p = bpf_map_lookup_elem(&procs, &k);
		if (!p)
			return -1; /* the table is full */
	}
#endif
	if (!p)
		return is_condemned(&k) ? -1 : 0;
	copy_proc(&a->proc, p);
	a->ppid = t->real_parent->tgid;
	id = a->proc.session;
	s = bpf_map_lookup_elem(&sessions, &id);
	if (!s)
		return -1;
	if (s->serial != a->proc.serial)
		return -1;
	if (!(s->flags & AM_S_LIVE))
		return 0;
	if (s->flags & AM_S_DOOMED)
		a->doomed = 1;
	id = s->policy;
	a->policy = id;
	a->dns_port = s->dns_port;
	pol = bpf_map_lookup_elem(&policies, &id);
	if (!pol || !pol->generation)
		return -1;
	a->generation = pol->generation;
	if (a->proc.kin && a->proc.kin != a->generation)
		kin_of(a);
	a->proc.unsure &= pol->parents;
	if (pol->plan && plan_of(a) < 0)
		return -1;
	if (pol->facts)
		a->facts = facts_of(a->policy, a->proc.parents, s->risk, a->proc.session);
	return 1;
}

#endif
