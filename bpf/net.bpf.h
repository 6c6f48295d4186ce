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

static __always_inline void fold4(struct am_address *to, __u32 addr_be)
{
	if (!addr_be)
		addr_be = bpf_htonl(0x7f000001); /* the kernel connects 0.0.0.0 to loopback */
	__builtin_memset(to->addr, 0, 10);
	to->addr[10] = to->addr[11] = 0xff;
	__builtin_memcpy(to->addr + 12, &addr_be, 4);
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

static __always_inline void report_net(const struct am_actor *a, const struct am_address *to,
				       __u32 op, __u32 verdict, __u32 rule, __u32 reason,
				       __u32 flags)
{
	struct am_net_record r = {};
	__u64 low, high;

	__builtin_memcpy(&high, to->addr, 8);
	__builtin_memcpy(&low, to->addr + 8, 8);
	if (verdict == AM_ALLOW && seen_before(a, low ^ (high << 1), to->port, (op << 16) | rule))
		return;
	fill(&r.d, a, sizeof(*to));
	r.d.op = op;
	r.d.verdict = verdict;
	r.d.rule = rule;
	r.d.reason = reason;
	r.d.flags = flags;
	r.to = *to;
	send_record(&r, sizeof(r), verdict > AM_ALLOW);
}

static __always_inline void kill_from_net_hook(const struct am_actor *a)
{
#ifdef AM_REACT
	condemn(&a->key);
#else
	kill_current();
#endif
}

/* Decides connect or send. Returns the verdict; SIGKILL is sent for kill. */
static __always_inline __u32 decide_net(struct am_actor *a, __u32 op, const struct am_address *to,
					__u32 flags)
{
	struct am_net_key k = {.prefixlen = 32 + 128, .policy = bpf_htonl(a->policy)};
	__u32 id = a->policy, verdict, rule = AM_NO_RULE, reason = AM_BY_DEFAULT;
	struct am_policy *p = bpf_map_lookup_elem(&policies, &id);
	struct am_net_list *l;

	count(AM_C_DECISIONS);
	__builtin_memcpy(k.addr, to->addr, 16);
	l = bpf_map_lookup_elem(&net, &k);
	verdict = p ? p->default_action[op] : AM_DENY;
	if (a->doomed) {
		verdict = AM_KILL;
		reason = AM_NO_STATE;
	} else if (l) {
		for (__u32 i = 0; i < AM_NET_LEN; i++) {
			struct am_net_entry *e = &l->e[i];

			if (i >= l->count)
				break;
			if (to->port < e->port_lo || to->port > e->port_hi)
				continue;
			if (!(e->ops & (1U << (op - AM_CONNECT))))
				continue;
			if (e->exe_any && !(e->exe_any & a->proc.exe_tags))
				continue;
			if (e->exe_not & a->proc.exe_tags)
				continue;
			verdict = e->action;
			rule = e->rule;
			reason = AM_BY_RULE;
			break;
		}
	}
	if (verdict == AM_KILL)
		flags |= AM_F_KILLED;
	if (verdict >= AM_HOLD)
		count(AM_C_BLOCKED);
	report_net(a, to, op, verdict, rule, reason, flags);
	if (verdict == AM_KILL)
		kill_from_net_hook(a);
	return verdict;
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

/* A socket that cannot be judged gets the severest verdict of connect. Not inlined: see report_bare(). */
static __noinline __u32 decide_family(struct am_actor *a, int family, int protocol, bool stop)
{
	struct am_address to = {.family = family, .protocol = protocol};
	__u32 id = a->policy;
	struct am_policy *p = bpf_map_lookup_elem(&policies, &id);
	__u32 verdict = p ? p->severest[AM_CONNECT] : AM_DENY;
	bool dies;

	count(AM_C_DECISIONS);
	if (a->doomed)
		verdict = AM_KILL;
	dies = verdict == AM_KILL || (stop && verdict >= AM_HOLD);
	if (verdict >= AM_HOLD)
		count(AM_C_BLOCKED);
	report_net(a, &to, AM_CONNECT, verdict, AM_NO_RULE, AM_BAD_FAMILY, dies ? AM_F_KILLED : 0);
	if (dies)
		kill_from_net_hook(a);
	return verdict;
}

#endif
