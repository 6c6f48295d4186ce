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
 * Whether this goes to the session's resolver instead of where it says. Only protocols that the cgroup's hooks see
 * (not UDP-Lite, nor MPTCP, whose own connect has none).
 */
static __always_inline bool asks(const struct am_actor *a, const struct am_address *to)
{
	return a->dns_port && to->port == AM_DNS_PORT &&
	       (to->protocol == AM_IPPROTO_UDP || to->protocol == AM_IPPROTO_TCP);
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
	return a->dns_port && to->port == a->dns_port && !a->doomed && on_loopback(to);
}

/* Whether a resolver listens there. Else an agent could ask as another session, by that one's names. */
static __always_inline bool is_door(const struct am_address *to)
{
	__u32 port = to->port;

	return on_loopback(to) && bpf_map_lookup_elem(&doors, &port);
}

/*
 * The most severe grant that holds, packed as am_pack() does, or -1. Only of the session's live policy: rule numbers
 * of another one mean something else. Global, so that the verifier looks at it once.
 */
__noinline int grant_for(const struct am_actor *a, __u32 op, const struct am_address *to)
{
	struct am_granted_key k = {};
	struct am_granted *g;
	int best = -1;
	__u64 now;

	if (!a || !to)
		return -1;
	k.serial = a->proc.serial;
	k.generation = a->generation;
	__builtin_memcpy(k.addr, to->addr, 16);
	g = bpf_map_lookup_elem(&granted, &k);
	if (!g)
		return -1;
	now = bpf_ktime_get_boot_ns();
	for (__u32 i = 0; i < AM_GRANT_LEN; i++) {
		struct am_grant *one = &g->g[i];
		int packed = am_pack(one->e.action, one->e.rule);

		if (i >= g->count)
			break;
		if (one->expires_ns <= now || to->port < one->e.port_lo ||
		    to->port > one->e.port_hi)
			continue;
		if (!(one->e.ops & (1U << (op - AM_CONNECT))))
			continue;
		if (one->e.exe_any && !(one->e.exe_any & a->proc.exe_tags))
			continue;
		if (one->e.exe_not & a->proc.exe_tags)
			continue;
		if (!facts_hold(am_asked(a->facts, a->proc.unsure), one->e.need, one->e.need_not,
				one->e.action))
			continue;
		if (packed > best)
			best = packed;
	}
	return best;
}

#endif
