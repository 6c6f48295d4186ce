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

/* The first entry of list `id` (absolute) whose conditions hold; most severe, as the list is sorted. */
__noinline int list_verdict(__u32 id, __u64 sticky, __u64 tags)
{
	struct am_list *l = bpf_map_lookup_elem(&lists, &id);

	if (!l)
		return -1;
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
		return am_pack(e->action, e->rule);
	}
	return -1;
}

/* The sticky bits that are set, one a step: bpf_loop, so that the verifier looks at one of 64. */
struct am_bits {
	__u64 left;
	__u64 sticky, exe_tags;
	__u64 tags;
	__u64 op;
	__u32 accept_base, list_base;
	int best;
};

static __always_inline struct am_accept *next_row(struct am_bits *b)
{
	__u32 id = b->accept_base + lowest_bit(b->left);

	b->left &= b->left - 1;
	return bpf_map_lookup_elem(&accepts, &id);
}

static long next_tags(__u32 i, struct am_bits *b)
{
	struct am_accept *a = next_row(b);

	if (a)
		b->tags |= a->exe_tags;
	return !b->left;
}

static long next_verdict(__u32 i, struct am_bits *b)
{
	struct am_accept *a = next_row(b);
	__u64 o = b->op;
	int v;

	am_bound(o, 7);
	if (a && a->list[o]) {
		v = list_verdict(b->list_base + a->list[o], b->sticky, b->exe_tags);
		if (v > b->best)
			b->best = v;
	}
	return !b->left;
}

/* Bytes that one callback of bpf_loop takes: more costs the verifier time in every program, fewer cost a call each. */
#define AM_CHUNK 16

struct am_run {
	struct am_job *job;
	struct am_policy *p;
	__u16 *t;
	__u64 at;
	__u64 sticky;
	__u32 state;
};

static long run_chunk(__u32 unused, struct am_run *r)
{
	struct am_policy *p = r->p;
	__u32 state = r->state, stride = p->stride, base = p->trans_base, first = p->sticky_first;
	__u64 mask = knobs.arena_mask, at = r->at;

	for (__u32 i = 0; i < AM_CHUNK; i++) {
		__u64 ix, c;

		if (at >= AM_PATH_END) {
			r->state = state;
			return 1;
		}
		am_bound(at, 0xfff);
		c = (__u8)r->job->room[AM_HEAD + at];
		at++;
		am_bound(c, 0xff);
		ix = (__u64)state * stride + p->cls[c] + base;
		am_mask(ix, mask);
		state = r->t[ix];
		if (state >= first) {
			struct am_accept *a;
			__u32 id;

			ix = (__u64)state * stride + stride - 1 + base;
			am_mask(ix, mask);
			id = p->accept_base + r->t[ix];
			a = bpf_map_lookup_elem(&accepts, &id);
			if (a)
				r->sticky |= a->sticky;
		}
	}
	r->state = state;
	r->at = at;
	return 0;
}

/*
 * Runs the policy of the job in scratch slot `slot` over its path; sets accept (absolute), sticky and tags.
 * Returns 0, or -1 if the policy or slot is gone. Global, so that the verifier looks at it once.
 */
__noinline int run_automaton(__u32 slot)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_run r = {.job = job};
	struct am_accept *a;
	__u64 mask = knobs.arena_mask, ix, sticky, tags = 0;
	__u32 zero = 0, id;

	if (!job)
		return -1;
	id = job->policy;
	r.p = bpf_map_lookup_elem(&policies, &id);
	r.t = bpf_map_lookup_elem(&arena, &zero);
	if (!r.p || !r.p->generation || !r.t)
		return -1;
	r.state = r.p->start;
	r.at = job->off;
	bpf_loop(AM_PATH_MAX / AM_CHUNK, run_chunk, &r, 0);
	ix = (__u64)r.state * r.p->stride + r.p->stride - 1 + r.p->trans_base;
	am_mask(ix, mask);
	id = r.p->accept_base + r.t[ix];
	job->accept = id;
	/* one more step with a slash: what ends in a slash and two stars matches the directory itself */
	ix = (__u64)r.state * r.p->stride + r.p->cls['/'] + r.p->trans_base;
	am_mask(ix, mask);
	r.state = r.t[ix];
	job->below = r.state;
	if (r.state >= r.p->sticky_first) {
		__u32 last;

		ix = (__u64)r.state * r.p->stride + r.p->stride - 1 + r.p->trans_base;
		am_mask(ix, mask);
		last = r.p->accept_base + r.t[ix];
		a = bpf_map_lookup_elem(&accepts, &last);
		if (a)
			r.sticky |= a->sticky;
	}
	job->sticky = sticky = r.sticky;
	a = bpf_map_lookup_elem(&accepts, &id);
	if (a)
		tags = a->exe_tags;
	if (sticky) {
		struct am_bits b = {.accept_base = r.p->accept_base, .left = sticky};

		bpf_loop(AM_STICKY_BITS, next_tags, &b, 0);
		tags |= b.tags;
	}
	job->tags = tags;
	return 0;
}

/* The verdict for one path operation, after run_automaton(). Packed; -1: no rule matched. */
__noinline int path_verdict(__u32 slot, __u32 op, __u32 accept)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_policy *p;
	struct am_accept *a;
	__u64 o = op;
	__u32 id;
	int best = -1;

	am_bound(o, 7);
	if (!job)
		return -1;
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	if (!p)
		return -1;
	a = bpf_map_lookup_elem(&accepts, &accept);
	if (a && a->list[o])
		best = list_verdict(p->list_base + a->list[o], job->sticky, job->exe_tags);
	if (job->sticky) {
		struct am_bits b = {
			.accept_base = p->accept_base,
			.list_base = p->list_base,
			.left = job->sticky,
			.sticky = job->sticky,
			.exe_tags = job->exe_tags,
			.op = o,
			.best = best,
		};

		bpf_loop(AM_STICKY_BITS, next_verdict, &b, 0);
		best = b.best;
	}
	return best;
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

	am_bound(o, 7);
	if (!job)
		return am_pack(AM_DENY, AM_NO_RULE);
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	if (!p)
		return am_pack(AM_DENY, AM_NO_RULE);
	v = path_verdict(slot, o, p->accept_base + AM_ACCEPT_NONE);
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

/*
 * Whether fences differ between two directories, in states `below` and `other` with sticky bits that differ in
 * `apart`: packed AM_DENY with the most severe rule of either, -1 if not.
 */
__noinline int fence_between(__u32 policy, __u32 below, __u32 other, __u64 apart)
{
	struct am_policy *p = bpf_map_lookup_elem(&policies, &policy);
	__u64 at, table, holes = 0;
	__u32 number, number2, rule, rule2;

	if (!p)
		return am_pack(AM_DENY, AM_NO_RULE);
	number = arena_at(p, (__u64)below * p->stride + p->stride - 2);
	number2 = arena_at(p, (__u64)other * p->stride + p->stride - 2);
	table = (__u64)p->states * p->stride;
	at = table + number * AM_FENCE_WORDS;
	for (int i = 3; i >= 0; i--)
		holes = holes << 16 | arena_at(p, at + i);
	if (number == number2 && !(apart && holes))
		return -1;
	rule = arena_at(p, at + 4);
	rule2 = arena_at(p, table + number2 * AM_FENCE_WORDS + 4);
	return am_pack(AM_DENY, rule < rule2 ? rule : rule2);
}

#endif
