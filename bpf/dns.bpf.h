/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Names of hosts (docs/design/0003-names.md): what sends a session's questions to its resolver, keeps everyone
 * else away from it, and lets the session reach the addresses that it got for a name. sock.bpf.h redirects.
 */
#ifndef AGENTMON_DNS_H
#define AGENTMON_DNS_H

#include "automaton.bpf.h"
#include "decide.bpf.h"

#define AM_DNS_PORT 53
#define AM_ASKS 2

/*
 * Whether the plan lets the process ask for names: a step without network has no use for them, and a question can carry
 * something out. Global, so that the verifier looks at it once.
 */
__noinline int may_ask(const struct am_actor *a)
{
	struct am_plan *plan;
	__u64 at = AM_STEPS;
	__u32 id;

	if (!a || !a->part)
		return 1;
	if (a->out)
		return 0;
	id = a->policy;
	plan = bpf_map_lookup_elem(&plans, &id);
	if (!plan)
		return 0;
	if (a->proc.step)
		at = a->proc.step - 1;
	am_bound(at, 127);
	return at <= AM_STEPS && plan->on_violation[at] & AM_MAY_ASK;
}

/*
 * Whether this goes to the session's resolver instead of where it says. Only protocols that the cgroup's hooks see
 * (not UDP-Lite, nor MPTCP, whose own connect has none).
 */
static __always_inline bool asks(const struct am_actor *a, const struct am_address *to)
{
	return a->dns_port && to->port == AM_DNS_PORT &&
	       (to->protocol == AM_IPPROTO_UDP || to->protocol == AM_IPPROTO_TCP) && may_ask(a);
}

/* Whether the address is one on which resolvers listen: 127.0.0.1 or ::1. */
static __always_inline bool on_loopback(const struct am_address *to)
{
	__u32 a[4];

	__builtin_memcpy(a, to->addr, 16);
	if (a[0] || a[1])
		return false;
	return a[2] ? a[2] == bpf_htonl(0xffff) && a[3] == bpf_htonl(0x7f000001)
		    : a[3] == bpf_htonl(1);
}

static __always_inline bool is_own_door(const struct am_actor *a, const struct am_address *to)
{
	return a->dns_port && to->port == a->dns_port && !a->doomed && on_loopback(to) &&
	       may_ask(a);
}

/* Whether a resolver listens there. Else an agent could ask as another session, by that one's names. */
static __always_inline bool is_door(const struct am_address *to)
{
	__u32 port = to->port;

	return on_loopback(to) && bpf_map_lookup_elem(&doors, &port);
}

/* Of grant_for(): bpf_loop, so that the verifier looks at one grant of all. */
struct am_grants_ctx {
	const struct am_actor *a;
	const struct am_address *to;
	struct am_granted *g;
	__u64 now;
	__u32 wanted;
	int best;
};

static long next_grant(__u32 i, struct am_grants_ctx *c)
{
	const struct am_actor *a = c->a;
	struct am_grant *one;
	int packed;

	if (i >= AM_GRANT_LEN || i >= c->g->count)
		return 1;
	one = &c->g->g[i];
	if (one->expires_ns <= c->now || c->to->port < one->e.port_lo ||
	    c->to->port > one->e.port_hi)
		return 0;
	if (!(one->e.ops & c->wanted))
		return 0;
	if (one->e.exe_any && !(one->e.exe_any & a->proc.exe_tags))
		return 0;
	if (one->e.exe_not & a->proc.exe_tags)
		return 0;
	if (!facts_hold(am_asked(a->facts, a->proc.unsure), one->e.need, one->e.need_not,
			one->e.action))
		return 0;
	packed = am_pack(one->e.action, one->e.rule);
	if (packed > c->best)
		c->best = packed;
	return 0;
}

/*
 * The most severe grant that holds, packed as am_pack() does, or -1. Only of one policy (or part
 * of a plan): rule numbers of another one mean something else. Global, so that the verifier looks at it once.
 */
__noinline int grant_for(const struct am_actor *a, __u32 op, const struct am_address *to,
			 __u32 generation)
{
	struct am_grants_ctx c = {.a = a, .to = to, .best = -1};
	struct am_granted_key k = {};

	if (!a || !to)
		return -1;
	k.serial = a->proc.serial;
	k.generation = generation;
	__builtin_memcpy(k.addr, to->addr, 16);
	c.g = bpf_map_lookup_elem(&granted, &k);
	if (!c.g)
		return -1;
	c.now = bpf_ktime_get_boot_ns();
	c.wanted = 1U << (op - AM_CONNECT);
	bpf_loop(AM_GRANT_LEN, next_grant, &c, 0);
	return c.best;
}

#endif
