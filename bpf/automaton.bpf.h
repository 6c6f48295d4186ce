/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The compiled policy, run over a path. tables.h says what the tables mean;
 * agentmon/policy/automaton.py is the same algorithm in Python, step by step.
 */
#ifndef AGENTMON_AUTOMATON_H
#define AGENTMON_AUTOMATON_H

#include "maps.bpf.h"
#include "walk.bpf.h"

/* Position of the lowest set bit: de Bruijn multiplication, BPF has no such instruction. */
static const __u8 bit_index[64] = {
	0,  1,	2,  53, 3,  7,	54, 27, 4,  38, 41, 8,	34, 55, 48, 28, 62, 5,	39, 46, 44, 42,
	22, 9,	24, 35, 59, 56, 49, 18, 29, 11, 63, 52, 6,  26, 37, 40, 33, 47, 61, 45, 43, 21,
	23, 58, 17, 10, 51, 25, 36, 32, 60, 20, 57, 16, 50, 31, 19, 15, 30, 14, 13, 12,
};

static __always_inline __u32 lowest_bit(__u64 mask)
{
	__u64 i = ((mask & -mask) * 0x022fdd63cc95386dULL) >> 58;

	am_bound(i, 0x3f);
	return bit_index[i];
}

/* A verdict in one number; the larger one wins: the more severe action, then the lower rule. -1: no entry holds. */
#define am_pack(action, rule) (((action) << 16) | (0xffff - (rule)))
#define am_packed_action(v) ((__u32)(v) >> 16)
#define am_packed_rule(v) (0xffff - ((v) & 0xffff))

/* Rules are numbered the most severe first. */
static __always_inline __u32 action_of(const struct am_policy *p, __u32 rule)
{
	for (int i = 0; i < 4; i++) {
		if (rule < p->rule_ends[i])
			return AM_KILL - i;
	}
	return AM_ALLOW;
}

/*
 * What a rule is asked for: the facts that are true, and in the upper half those that may be. A rule that blocks holds
 * if it may, one that does not block if it does for sure.
 */
#define am_asked(facts, unsure) ((__u64)((facts) | (unsure)) << 32 | (facts))

/* Any may be true: a directory that is moved stays where it is put when the hour, the user or the risk have changed. */
#define AM_WHATEVER (0xffffffffULL << 32)

/* Whether a rule that blocks, or does not, holds for what it asks of the facts. */
static __always_inline bool facts_hold(__u64 asked, __u32 need, __u32 need_not, __u32 action)
{
	__u32 yes = asked, no = asked >> 32;

	if (action >= AM_HOLD) {
		yes = asked >> 32;
		no = asked;
	}
	return !(need & ~yes) && !(need_not & no);
}

/* The first rule of list `id` (absolute) whose conditions hold, or AM_NO_RULE. */
__noinline int list_rule(__u32 id, __u64 sticky, __u64 tags, __u64 asked)
{
	struct am_list *l = bpf_map_lookup_elem(&lists, &id);

	if (!l)
		return AM_NO_RULE;
	for (__u32 i = 0; i < AM_LIST_LEN; i++) {
		struct am_entry *e = &l->e[i];

		if (i >= l->count)
			break;
		if (e->sticky_any && !(e->sticky_any & sticky))
			continue;
		if (e->sticky_not & sticky)
			continue;
		if (e->exe_any && !(e->exe_any & tags))
			continue;
		if (e->exe_not & tags)
			continue;
		if (!facts_hold(asked, e->need, e->need_not, e->action))
			continue;
		return e->rule;
	}
	return AM_NO_RULE;
}

/* Rows of the sticky bits that are set, one a step: bpf_loop, so that the verifier looks at one of 64. */
struct am_bits_ctx {
	struct am_job *job;
};

static __always_inline void take_row(struct am_job *job, __u32 id)
{
	struct am_accept *a = bpf_map_lookup_elem(&accepts, &id);
	struct am_bits *b = &job->bits;
	__u64 o = b->op;
	__u32 rule;

	am_bound(o, 15);
	if (!a)
		return;
	rule = a->rule[o];
	if (rule < b->best)
		b->best = rule;
	if (a->list[o]) {
		rule = list_rule(b->list_base + a->list[o], job->sticky, job->exe_tags, job->asked);
		if (rule < b->best)
			b->best = rule;
	}
}

static long next_row(__u32 i, struct am_bits_ctx *c)
{
	struct am_bits *b = &c->job->bits;
	__u32 id = b->accept_base + lowest_bit(b->left);

	b->left &= b->left - 1;
	take_row(c->job, id);
	return !b->left;
}

/*
 * The job's path enters a state whose accept id is `row` behind `base`; `at` is the position behind the byte that led
 * there, 0 if none did. Global, so that the verifier looks at it once. Returns 0.
 */
__noinline int enter(__u32 slot, __u32 base, __u32 row, __u32 at)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	__u32 id = base + row;
	struct am_accept *a = bpf_map_lookup_elem(&accepts, &id);

	if (!job || !a)
		return 0;
	id = base + a->enter;
	a = bpf_map_lookup_elem(&accepts, &id);
	if (!a)
		return 0;
	job->sticky |= a->sticky;
	job->tags |= a->exe_tags;
	for (int i = 0; i < AM_PATH_OPS; i++) {
		if (a->rule[i] < job->first[i])
			job->first[i] = a->rule[i];
	}
	for (int i = 0; at && i < AM_LANES; i++) {
		if (a->tail[i]) {
			job->tail[i] = a->tail[i];
			job->tail_at[i] = at;
		}
	}
	return 0;
}

/* Bytes that one callback of bpf_loop takes: more costs the verifier time in every program, fewer cost a call each. */
#define AM_CHUNK 16

/* The accept id of a state, relative. */
static __always_inline __u32 row_of(const struct am_policy *p, const __u16 *t, __u32 state)
{
	__u64 ix = (__u64)state * p->stride + p->stride - 1 + p->trans_base;

	am_mask(ix, knobs.arena_mask);
	return t[ix];
}

/* The next bytes of the job's path, in job->state. Returns 1 when it has ended, or nothing is left to match. */
__noinline int run_chunk(__u32 slot)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	__u32 zero = 0, id, state;
	struct am_policy *p;
	__u64 at, classes;
	__u16 *t;

	if (!job)
		return 1;
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	t = bpf_map_lookup_elem(&arena, &zero);
	if (!p || !t)
		return 1;
	state = job->state;
	at = job->at;
	classes = job->classes;
	for (__u32 i = 0; i < AM_CHUNK; i++) {
		__u64 ix, c;

		if (at >= AM_PATH_END)
			break;
		am_bound(at, 0xfff);
		c = (__u8)job->room[AM_HEAD + at] | classes;
		at++;
		am_bound(c, 0x1ff);
		ix = (__u64)state * p->stride + p->cls[c] + p->trans_base;
		am_mask(ix, knobs.arena_mask);
		state = t[ix];
		if (state >= p->sticky_first)
			enter(slot, p->accept_base, row_of(p, t, state), at);
	}
	job->state = state;
	job->at = at;
	return !state || at >= AM_PATH_END; /* state 0 is dead */
}

struct am_run {
	__u32 slot;
};

static long next_chunk(__u32 unused, struct am_run *r)
{
	int over = run_chunk(r->slot);

	asm volatile(
		""
		: "+r"(over)); /* clang knows that it is 0 or 1, the verifier wants to see it */
	return over ? 1 : 0;
}

struct am_compare {
	struct am_job *job;
	__u16 *t;
};

/* Without a branch per byte: the verifier would follow each in every program. */
static long compare_chunk(__u32 unused, struct am_compare *x)
{
	struct am_tail *c = &x->job->compared;
	__u64 mask = knobs.arena_mask, done = c->done, length = c->length, differs = 0, n, at, ix;

	am_forget(done, length);
	am_bound(done, 0xffff);
	n = length - done < AM_CHUNK ? length - done : AM_CHUNK;
	at = c->at + done;
	ix = c->ix + done;
	for (__u32 i = 0; i < AM_CHUNK; i++) {
		__u64 behind = n - 1 - i, a = at + i, t = ix + i;

		/* all ones from the tail's end on; else clang sees through it and branches */
		asm volatile("%0 s>>= 63" : "+r"(behind));
		am_bound(a, 0xfff);
		am_mask(t, mask);
		differs |= ((__u8)x->job->room[AM_HEAD + a] ^ x->t[t]) & ~behind;
	}
	done += n;
	c->done = done;
	c->differs = differs;
	return differs || done == length;
}

/*
 * Whether the tail of a lane is what the path goes on with; sets the lane's tail to the state behind it, and tail_at.
 * Global, so that the verifier looks at it once.
 */
__noinline int tail_fits(__u32 slot, __u32 number)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_compare x = {.job = job};
	struct am_policy *p;
	struct am_tail *c;
	__u64 lane = number, ix;
	__u32 zero = 0, id, state;

	am_bound(lane, 1);
	if (!job)
		return 0;
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	x.t = bpf_map_lookup_elem(&arena, &zero);
	if (!p || !x.t)
		return 0;
	c = &job->compared;
	ix = (__u64)p->states * p->stride + p->trans_base + p->fences * AM_FENCE_WORDS +
	     job->tail[lane];
	c->at = job->tail_at[lane];
	c->done = 0;
	c->differs = 0;
	am_mask(ix, knobs.arena_mask);
	c->length = x.t[ix];
	ix++;
	am_mask(ix, knobs.arena_mask);
	state = x.t[ix];
	c->ix = ix + 1;
	if (c->at + c->length > AM_PATH_END)
		return 0; /* the path is shorter */
	if (c->length)
		bpf_loop(AM_PATH_MAX / AM_CHUNK, compare_chunk, &x, 0);
	if (c->differs || c->done != c->length)
		return 0;
	job->tail[lane] = state;
	job->tail_at[lane] = c->at + c->length;
	return 1;
}

/*
 * The end of a run: the tags of its final state, whose row is `*row`; and one more step with a slash, for what ends in a
 * slash and two stars matches the directory itself (of arguments: none at all). Returns the state behind that.
 */
static __always_inline __u32 end_run(__u32 slot, struct am_job *job, const struct am_policy *p,
				     const __u16 *t, __u32 *row)
{
	__u64 ix = (__u64)job->state * p->stride + p->cls['/'] + p->trans_base;
	struct am_accept *a;
	__u32 below;

	*row = p->accept_base + row_of(p, t, job->state);
	a = bpf_map_lookup_elem(&accepts, row);
	if (a)
		job->tags |= a->exe_tags;
	am_mask(ix, knobs.arena_mask);
	below = t[ix];
	if (below >= p->sticky_first)
		enter(slot, p->accept_base, row_of(p, t, below), 0);
	return below;
}

/*
 * Runs the automaton over the path of the job in scratch slot `slot`: from its beginning (part 0), or from where the
 * tail of a lane was noted (part 1 + lane). Sets accept, sticky, tags, first, tail. Returns a bit per lane that has a
 * tail, or -1 if the policy or slot is gone. Global, so that the verifier looks at it once.
 */
__noinline int run_part(__u32 slot, __u32 part)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_run r = {.slot = slot};
	struct am_policy *p;
	__u32 zero = 0, id, below;
	__u16 *t;
	__u64 ix;

	if (!job || part > AM_LANES)
		return -1;
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	t = bpf_map_lookup_elem(&arena, &zero);
	if (!p || !p->generation || !t)
		return -1;
	if (!part) {
		job->state = p->start;
		job->at = job->off;
		id = p->accept_base + AM_ACCEPT_NONE;
		job->sticky = 0;
		job->tags = 0;
		for (int i = 0; i < AM_PATH_OPS; i++)
			job->first[i] = AM_NO_RULE;
		for (int i = 0; i < AM_LANES; i++) {
			job->tail[i] = 0;
			job->accept[1 + i] = id;
		}
	} else {
		__u64 lane = part - 1;

		am_bound(lane, 1);
		if (!tail_fits(slot, lane))
			return 0;
		job->state = job->tail[lane];
		job->at = job->tail_at[lane];
		if (job->state >= p->sticky_first)
			enter(slot, p->accept_base, row_of(p, t, job->state), 0);
	}
	if (job->at < AM_PATH_END)
		bpf_loop(AM_PATH_MAX / AM_CHUNK, next_chunk, &r, 0);
	below = end_run(slot, job, p, t, &id);
	if (!part)
		job->below = below;
	ix = part;
	am_bound(ix, 3);
	if (ix <= AM_LANES)
		job->accept[ix] = id;
	return !!job->tail[0] | !!job->tail[1] << 1;
}

/* Runs the policy of the job in scratch slot `slot` over its path. Returns 0, or -1 if the policy or slot is gone. */
static __always_inline int run_automaton(__u32 slot)
{
	int tails = run_part(slot, 0);

	if (tails <= 0)
		return tails;
	if (tails & 1)
		run_part(slot, 1);
	if (tails & 2)
		run_part(slot, 2);
	return 0;
}

#define AM_ENTERED 0xffffffff

/*
 * The verdict for one path operation, after run_automaton(). Packed; -1: no rule matched. `pin`: the accept id
 * (absolute) of the file's pin, alone; 0: what the path says (id 0 is never a pin's); AM_ENTERED: what was entered on
 * the way, which holds for all below as well.
 */
__noinline int path_verdict(__u32 slot, __u32 op, __u32 pin)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_bits_ctx c = {.job = job};
	struct am_policy *p;
	struct am_bits *b;
	__u64 o = op;
	__u32 id;

	if (!job)
		return -1;
	b = &job->bits;
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	if (!p)
		return -1;
	am_bound(o, 15);
	b->op = o;
	b->accept_base = p->accept_base;
	b->list_base = p->list_base;
	b->left = job->sticky;
	b->best = AM_NO_RULE;
	job->asked = pin == AM_ENTERED ? AM_WHATEVER : am_asked(job->facts, job->unsure);
	if (op == AM_EXEC) { /* who starts a program is its ancestor */
		id = job->exe_tags & p->parents;
		job->asked |= am_asked(id, 0);
		job->asked = (job->asked & ~((__u64)job->hoped << 32)) | job->hoped;
	}
	if (pin && pin != AM_ENTERED) {
		take_row(job, pin);
	} else {
		b->best = job->first[o];
		for (int i = 0; i <= AM_LANES; i++) {
			id = job->accept[i];
			if (!pin && id != b->accept_base + AM_ACCEPT_NONE)
				take_row(job, id);
		}
		if (b->left)
			bpf_loop(AM_STICKY_BITS, next_row, &c, 0);
	}
	if (b->best >= AM_NO_RULE)
		return -1;
	return am_pack(action_of(p, b->best), b->best);
}

/*
 * What holds for everything below the job's path without asking how it goes on: packed verdict, the default's with
 * AM_NO_RULE; -1: nothing that blocks.
 */
__noinline int blocked_below(__u32 slot, __u32 op)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_policy *p;
	__u64 o = op;
	__u32 id;
	int v;

	am_bound(o, 15);
	if (!job)
		return am_pack(AM_DENY, AM_NO_RULE);
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	if (!p)
		return am_pack(AM_DENY, AM_NO_RULE);
	v = path_verdict(slot, o, AM_ENTERED);
	if (v < 0)
		v = am_pack(p->default_action[o], AM_NO_RULE);
	return am_packed_action(v) >= AM_HOLD ? v : -1;
}

/* One u16 of the arena; `p`'s run. */
static __always_inline __u32 arena_at(const struct am_policy *p, __u64 ix)
{
	__u64 mask = knobs.arena_mask;
	__u32 zero = 0;
	__u16 *t = bpf_map_lookup_elem(&arena, &zero);

	ix += p->trans_base;
	am_mask(ix, mask);
	return t ? t[ix] : 0;
}

/* Of a policy with tails nobody knows what is below a directory. */
static __always_inline bool is_split(const struct am_policy *p)
{
	return p->tails > 1;
}

/*
 * The operations on files (a bit each) for which just one of two walks entered a rule. Eight numbers of am_job.first
 * each, in two words: read, write and create are in the first one, delete begins the second.
 */
static __always_inline __u32 entered_once(__u64 first, __u64 second, __u64 other, __u64 other2)
{
	__u32 ops = 0;

	if (((second & 0xffff) == AM_NO_RULE) != ((other2 & 0xffff) == AM_NO_RULE))
		ops = 1U << AM_DELETE;

	for (int o = AM_READ; o <= AM_CREATE; o++) {
		if (((first >> 16 * o & 0xffff) == AM_NO_RULE) !=
		    ((other >> 16 * o & 0xffff) == AM_NO_RULE))
			ops |= 1U << o;
	}
	return ops;
}

/*
 * Whether fences differ between two directories, in states `below` and `other` with sticky bits that differ in
 * `apart`, and operations `once` that only one of them allows for good: packed AM_DENY with the most severe rule of
 * either, -1 if not.
 */
__noinline int fence_between(__u32 policy, __u32 below, __u32 other, __u64 apart, __u32 once)
{
	struct am_policy *p = bpf_map_lookup_elem(&policies, &policy);
	__u64 at, table, holes = 0;
	__u32 number, number2, rule, rule2;

	if (!p || is_split(p))
		return am_pack(AM_DENY, AM_NO_RULE);
	for (int o = AM_READ; o <= AM_DELETE; o++) {
		/* a hole below leads to the default, on one side only */
		if (once & 1U << o && p->default_action[o] >= AM_HOLD)
			apart = ~0ULL;
	}
	number = arena_at(p, (__u64)below * p->stride + p->stride - 2);
	number2 = arena_at(p, (__u64)other * p->stride + p->stride - 2);
	table = (__u64)p->states * p->stride;
	at = table + number * AM_FENCE_WORDS;
	for (int i = 3; i >= 0; i--)
		holes = holes << 16 | arena_at(p, at + i);
	if (number == number2 && !(apart & holes))
		return -1;
	rule = arena_at(p, at + 4);
	rule2 = arena_at(p, table + number2 * AM_FENCE_WORDS + 4);
	return am_pack(AM_DENY, rule < rule2 ? rule : rule2);
}

#endif
