/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Internet addresses: one longest-prefix trie over IPv6, IPv4 folded in as ::ffff:a.b.c.d. Each prefix's list already
 * holds the rules of every prefix that covers it, most severe first.
 */
#ifndef AGENTMON_NET_H
#define AGENTMON_NET_H

#include <bpf/bpf_endian.h>
#include "decide.bpf.h"

#define AM_AF_UNSPEC 0
#define AM_AF_UNIX 1
#define AM_AF_INET 2
#define AM_AF_INET6 10
#define AM_AF_NETLINK 16
#define AM_AF_ALG 38
#define AM_SOCK_STREAM 1
#define AM_SOCK_DGRAM 2
#define AM_SOCK_TYPE_MASK 0xf
#define AM_IPPROTO_TCP 6
#define AM_IPPROTO_UDP 17
#define AM_IPPROTO_UDPLITE 136
#define AM_IPPROTO_MPTCP 262

#include "dns.bpf.h"

static __always_inline void map4(struct am_address *to, __u32 addr_be)
{
	__builtin_memset(to->addr, 0, 10);
	to->addr[10] = to->addr[11] = 0xff;
	__builtin_memcpy(to->addr + 12, &addr_be, 4);
}

/* An address to reach: the kernel connects 0.0.0.0 to loopback. One to bind to is any of the host's: map4(). */
static __always_inline void fold4(struct am_address *to, __u32 addr_be)
{
	map4(to, addr_be ? addr_be : bpf_htonl(0x7f000001));
}

static __always_inline void fold6(struct am_address *to, const __u32 a[4])
{
	__u32 last = a[3];

	if (!a[0] && !a[1] && !a[3] && (!a[2] || a[2] == bpf_htonl(0xffff)))
		last = a[2] ? bpf_htonl(0x7f000001)
			    : bpf_htonl(1); /* :: and ::ffff:0.0.0.0 are loopback too */
	__builtin_memcpy(to->addr, a, 12);
	__builtin_memcpy(to->addr + 12, &last, 4);
}

/* One struct for the record, so that it leaves in one piece. */
struct am_net_record {
	struct am_decision d;
	struct am_address to;
};

/* What was decided, as one argument of five. */
#define am_did(op, verdict, flags) ((__u32)(op) << 16 | (verdict) << 8 | (flags))

/* What an answer is about: the rule, the operation and the address. */
static __always_inline __u64 net_print(const struct am_actor *a, const struct am_address *to,
				       __u32 op, __u32 rule)
{
	__u64 low, high;

	__builtin_memcpy(&high, to->addr, 8);
	__builtin_memcpy(&low, to->addr + 8, 8);
	return mix(mix(mix(low + knobs.key) + high) +
		   ((__u64)a->generation << 32 | (__u32)to->port << 16 | rule) +
		   ((__u64)to->protocol << 56 | (__u64)op << 48)) |
	       1;
}

/* `held`: what is asked about, or 0. Not inlined: see report_bare(). Returns 0. */
__noinline int send_net(const struct am_actor *a, const struct am_address *to, __u32 did, __u32 by,
			__u64 held)
{
	__u32 verdict = did >> 8 & 0xff;
	struct am_net_record r = {};

	if (!a || !to)
		return 0;
	fill(&r.d, a, sizeof(*to));
	r.d.op = did >> 16;
	r.d.verdict = verdict;
	r.d.rule = by >> 16;
	r.d.reason = by & 0xffff;
	r.d.flags = (did & 0xff) | unsure_flag(a);
	r.d.held = held;
	r.d.same = held;
	r.to = *to;
	send_record(&r, sizeof(r), verdict > AM_ALLOW || held);
	return 0;
}

/* Sends the record unless it is a repeated plain allow. Global, so that the verifier looks at it once. Returns 0. */
__noinline int report_net(const struct am_actor *a, const struct am_address *to, __u32 did,
			  __u32 by)
{
	__u32 op = did >> 16, verdict = did >> 8 & 0xff;
	__u64 low, high, held = 0;

	if (!a || !to)
		return 0;
	__builtin_memcpy(&high, to->addr, 8);
	__builtin_memcpy(&low, to->addr + 8, 8);
	if (verdict == AM_HOLD || (by & 0xffff) >= AM_APPROVED)
		held = net_print(a, to, op, by >> 16);
	else if (verdict == AM_ALLOW &&
		 seen_before(a, low ^ (high << 1), to->port, (op << 16) | by >> 16))
		return 0;
	return send_net(a, to, did, by, held);
}

static __always_inline void kill_from_net_hook(const struct am_actor *a)
{
#ifdef AM_REACT
	struct am_proc_key k = a->key; /* Linux 6.1 takes no key but from the stack */

	condemn(&k);
#else
	kill_current();
#endif
}

#define AM_BY_SEND (1 << 24) /* above what am_pack() takes */

/* Of net_rule(): bpf_loop, so that the verifier looks at one entry of all. */
struct am_net_ctx {
	const struct am_actor *a;
	const struct am_address *to;
	struct am_net_list *l;
	__u32 wanted, connected;
	int found;
};

static long next_entry(__u32 i, struct am_net_ctx *c)
{
	const struct am_actor *a = c->a;
	struct am_net_entry *e;

	if (i >= AM_NET_LEN || i >= c->l->count)
		return 1;
	e = &c->l->e[i];
	if (c->to->port < e->port_lo || c->to->port > e->port_hi)
		return 0;
	if (!(e->ops & c->wanted) &&
	    !(c->connected && e->action >= AM_HOLD && e->ops & 1U << (AM_SEND - AM_CONNECT)))
		return 0;
	if (e->exe_any && !(e->exe_any & a->proc.exe_tags))
		return 0;
	if (e->exe_not & a->proc.exe_tags)
		return 0;
	if (!facts_hold(am_asked(a->facts, a->proc.unsure), e->need, e->need_not, e->action))
		return 0;
	c->found = am_pack(e->action, e->rule) | (e->ops & c->wanted ? 0 : AM_BY_SEND);
	return 1;
}

/*
 * The first rule that holds for an address, packed as am_pack() does, or -1. What goes out on a connection (`op` is
 * connect) is blocked by rules on send as well: then AM_BY_SEND is in it. Global, like decide_net().
 */
__noinline int net_rule(const struct am_actor *a, __u32 op, const struct am_address *to,
			__u32 connected, __u32 policy)
{
	struct am_net_ctx c = {.a = a, .to = to, .connected = connected, .found = -1};
	struct am_net_key k = {.prefixlen = 32 + 128};

	if (!a || !to)
		return -1;
	k.policy = bpf_htonl(policy);
	__builtin_memcpy(k.addr, to->addr, 16);
	c.wanted = 1U << (op - AM_CONNECT);
	c.l = bpf_map_lookup_elem(&net, &k);
	if (c.l)
		bpf_loop(AM_NET_LEN, next_entry, &c, 0);
	return c.found;
}

/* What the plan says, packed as am_pack() does; also what no rule says. Global, like decide_net(). */
__noinline int net_part(const struct am_actor *a, __u32 op, const struct am_address *to,
			__u32 connected)
{
	struct am_policy *p;
	__u64 o = op;
	__u32 id;
	int v, g;

	if (!a || !to || !a->part)
		return am_pack(AM_ALLOW, AM_NO_RULE);
	if (a->out)
		return am_pack(a->part, AM_NO_RULE);
	id = a->part - 1;
	p = bpf_map_lookup_elem(&policies, &id);
	if (!p)
		return am_pack(AM_DENY, AM_NO_RULE);
	am_bound(o, 15);
	v = net_rule(a, op, to, connected, id);
	g = a->dns_port ? grant_for(a, op, to, p->generation) : -1;
	if (v >= 0)
		v &= ~AM_BY_SEND;
	if (g >= 0 && (v < 0 || am_packed_rule(g) < am_packed_rule(v)))
		v = g;
	return v < 0 ? am_pack(p->default_action[o], AM_NO_RULE) : v;
}

/*
 * Decides a network operation. Returns the verdict; SIGKILL is sent for kill. Global, so that the verifier looks at it
 * once: neither pointer is ever NULL, but it does not know that. decide_address() comes before it: together their
 * frames would not fit into 512 bytes.
 */
__noinline int decide_net(const struct am_actor *a, __u32 op, const struct am_address *to,
			  __u32 flags)
{
	__u32 id, verdict, rule = AM_NO_RULE, reason = AM_BY_DEFAULT;
	__u64 o = op;
	struct am_policy *p;

	if (!a || !to)
		return AM_DENY;
	id = a->policy;
	am_bound(o, 15);
	p = bpf_map_lookup_elem(&policies, &id);
	if (flags & AM_F_CONNECTED && is_own_door(a, to))
		return AM_ALLOW; /* a question by TCP, or on a connected socket: redirected when it was connected */
	count(AM_C_DECISIONS);
	verdict = p ? p->default_action[o] : AM_DENY;
	if (a->doomed) {
		verdict = AM_KILL;
		reason = AM_NO_STATE;
	} else if (a->proc.generation != a->generation) {
		verdict = p ? p->severest[o] : AM_DENY;
		reason = AM_NO_STATE;
	} else {
		int v = net_rule(a, op, to, flags & AM_F_CONNECTED, id);
		int g = a->dns_port ? grant_for(a, op, to, a->generation) : -1;

		if (v >= 0 && v & AM_BY_SEND) {
			v &= ~AM_BY_SEND;
			op = AM_SEND;
		}
		if (v >= 0) {
			verdict = am_packed_action(v);
			rule = am_packed_rule(v);
			reason = AM_BY_RULE;
		}
		/* a name lifts the default, never a rule that is more severe: the lower number */
		if (g >= 0 && am_packed_rule(g) < rule) {
			verdict = am_packed_action(g);
			rule = am_packed_rule(g);
			reason = AM_BY_RULE;
		}
		if (a->part) {
			v = net_part(a, o, to, flags & AM_F_CONNECTED);
			if (am_packed_action(v) > verdict) {
				verdict = am_packed_action(v);
				rule = am_packed_rule(v);
				reason = a->out		      ? a->out
					 : rule == AM_NO_RULE ? AM_PLAN_CLOSED
							      : AM_PLAN_RULE;
			}
		}
	}
	/* nor may it answer for this host at port 53 */
	if (verdict < AM_HOLD && (is_door(to) || (op == AM_BIND && to->port == AM_DNS_PORT))) {
		verdict = AM_DENY;
		rule = AM_NO_RULE;
		reason = AM_RESOLVER;
	}
	if (verdict == AM_HOLD && flags & AM_PASSES) {
		verdict = AM_ALLOW;
	} else if (verdict == AM_HOLD && (reason <= AM_BY_DEFAULT || reason >= AM_PLAN_RULE) &&
		   (AM_TIER == AM_TIER_LSM || op == AM_CONNECT || op == AM_SEND)) {
		__u64 print = net_print(a, to, op, rule);
		int said = ask(a, print, print);

		verdict = said & 0xff;
		if (verdict == AM_HOLD) {
			if (said & AM_ASK_NEW)
				report_net(a, to, am_did(op, verdict, flags), am_by(rule, reason));
			return AM_WAITS;
		}
		if (am_ask_reason(said))
			reason = am_ask_reason(said);
	}
	flags &= 0xff;
	if (verdict == AM_KILL ||
	    (AM_TIER == AM_TIER_REACT && op == AM_LISTEN && verdict >= AM_HOLD))
		flags |= AM_F_KILLED;
	if (verdict >= AM_HOLD)
		count(AM_C_BLOCKED);
	report_net(a, to, am_did(op, verdict, flags), am_by(rule, reason));
	if (!(flags & AM_F_CONNECTED))
		let_through(a, verdict, rule);
	if (verdict == AM_KILL)
		kill_from_net_hook(a);
	return reason == AM_APPROVED ? AM_LET : verdict;
}

static __always_inline __u32 decide_address(struct am_actor *a, __u32 op,
					    const struct am_address *to, __u32 flags)
{
	find_tags(a);
	return decide_net(a, op, to, flags);
}

/* Families and types whose traffic no address rule can judge: raw, packet, vsock, SCTP, … */
static __always_inline bool judgeable(int family, int type, int protocol)
{
	type &= AM_SOCK_TYPE_MASK;
	if (family == AM_AF_UNIX || family == AM_AF_NETLINK || family == AM_AF_ALG)
		return true;
	if (family != AM_AF_INET && family != AM_AF_INET6)
		return false;
	if (type == AM_SOCK_STREAM)
		return protocol == 0 || protocol == AM_IPPROTO_TCP || protocol == AM_IPPROTO_MPTCP;
	if (type != AM_SOCK_DGRAM)
		return false;
#ifndef AM_REACT
	/* UDP-Lite has no pre_connect (net/ipv4/udplite.c): the cgroup's connect hooks never see it */
	if (protocol == AM_IPPROTO_UDPLITE)
		return true;
#endif
	return protocol == 0 || protocol == AM_IPPROTO_UDP;
}

/* Where a socket listens. False: not an internet socket. */
static __always_inline bool read_local(struct am_address *to, struct sock *sk)
{
	__u32 v6[4];

	to->family = am_load(struct sock, sk, __sk_common.skc_family);
	to->port = am_load(struct sock, sk, __sk_common.skc_num);
	to->protocol = am_load(struct sock, sk, sk_protocol);
	if (to->family == AM_AF_INET) {
		map4(to, am_load(struct sock, sk, __sk_common.skc_rcv_saddr));
		return true;
	}
	if (to->family != AM_AF_INET6)
		return false;
	bpf_core_read(v6, sizeof(v6), &sk->__sk_common.skc_v6_rcv_saddr);
	__builtin_memcpy(to->addr, v6, 16);
	return true;
}

#define AM_SOL_IP 0
#define AM_SOL_IPV6 41

/* Options by which a packet visits another host first: the address that is judged is only the last one. */
static __always_inline bool routes(int level, int name)
{
	if (level == AM_SOL_IP)
		return name == 4 || name == 7; /* IP_OPTIONS, IP_RETOPTS */
	return level == AM_SOL_IPV6 &&
	       (name == 5 || name == 6 || name == 57); /* IPV6_2292RTHDR, _2292PKTOPTIONS, _RTHDR */
}

/* The severest verdict of an operation, of policy and plan. */
static __noinline __u32 severest_of(const struct am_actor *a, __u32 op)
{
	__u32 id = a->policy, part, verdict = AM_DENY;
	struct am_policy *p = bpf_map_lookup_elem(&policies, &id);
	__u64 o = op;

	am_bound(o, 15);
	if (p)
		verdict = p->severest[o];
	if (a->doomed)
		return AM_KILL;
	if (a->out)
		return a->part > verdict ? a->part : verdict;
	if (a->part) {
		part = a->part - 1;
		p = bpf_map_lookup_elem(&policies, &part);
		if (!p)
			return AM_DENY;
		if (p->severest[o] > verdict)
			verdict = p->severest[o];
	}
	return verdict;
}

/* Such an option gets the severest verdict of send or connect. Returns it. Not inlined: see report_bare(). */
static __noinline __u32 decide_route(struct am_actor *a)
{
	struct am_address to = {};
	__u32 verdict = severest_of(a, AM_SEND), other = severest_of(a, AM_CONNECT);

	count(AM_C_DECISIONS);
	if (other > verdict)
		verdict = other;
	if (verdict >= AM_HOLD)
		count(AM_C_BLOCKED);
	report_net(a, &to,
		   am_did(AM_SEND, verdict,
			  verdict == AM_KILL || (AM_STOPS && verdict >= AM_HOLD) ? AM_F_KILLED : 0),
		   am_by(AM_NO_RULE, AM_ROUTED));
	if (verdict == AM_KILL)
		kill_current();
	return verdict;
}

/* A socket that cannot be judged gets the severest verdict of connect. Not inlined: see report_bare(). */
static __noinline __u32 decide_family(struct am_actor *a, int family, int protocol, bool stop)
{
	struct am_address to = {.family = family, .protocol = protocol};
	__u32 verdict = severest_of(a, AM_CONNECT);
	bool dies;

	count(AM_C_DECISIONS);
	dies = verdict == AM_KILL || (stop && verdict >= AM_HOLD);
	if (verdict >= AM_HOLD)
		count(AM_C_BLOCKED);
	report_net(a, &to, am_did(AM_CONNECT, verdict, dies ? AM_F_KILLED : 0),
		   am_by(AM_NO_RULE, AM_BAD_FAMILY));
	if (dies)
		kill_from_net_hook(a);
	return verdict;
}

#endif
