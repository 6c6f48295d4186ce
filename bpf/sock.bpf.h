/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The cgroup's hooks on socket addresses. The one who includes this has judge_address().
 *
 *   cgroup/connect4, connect6, sendmsg4, sendmsg6   questions for port 53 go to the session's resolver; in the react
 *                                                   tier everything else is judged here too
 *   cgroup/recvmsg4, recvmsg6, getpeername4, getpeername6   its answers come from where was asked
 *
 * An IPv6 socket that talks to an IPv4 address is connect6's, sendmsg4's and recvmsg6's business.
 */
#ifndef AGENTMON_SOCK_H
#define AGENTMON_SOCK_H

#include "net.bpf.h"

#define AM_MAPPED bpf_htonl(0xffff)
#define AM_LOOPBACK4 bpf_htonl(0x7f000001)

/* What this socket asked, if the address in ctx is that of the resolver it was led to. Costs others a comparison. */
static __always_inline struct am_asked *asked_here(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct am_asked *was = bpf_map_lookup_elem(&asked, &cookie);

	return was && was->port == ctx->user_port ? was : NULL;
}

static __always_inline void remember(struct bpf_sock_addr *ctx, const struct am_asked *what)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);

	bpf_map_update_elem(&asked, &cookie, what, BPF_ANY); /* never full: the oldest goes */
}

static __always_inline int address4(struct bpf_sock_addr *ctx, __u32 op)
{
	struct am_address to = {.family = AM_AF_INET, .protocol = ctx->protocol};
	struct am_asked what = {};
	struct am_actor a = {};
	__u32 flags = 0;
	int way;

	to.port = bpf_ntohs(ctx->user_port);
	fold4(&to, ctx->user_ip4);
	/* a connected IPv6 socket sends to its IPv4 peer as if it named it */
	if (op == AM_SEND && ctx->user_ip4 == AM_LOOPBACK4 && asked_here(ctx))
		flags = AM_F_CONNECTED;
	way = judge_address(&a, &to, op, flags);
	if (way != AM_ASKS)
		return way;
	what.ip6[2] = AM_MAPPED;
	what.ip6[3] = ctx->user_ip4;
	what.port = bpf_htons(a.dns_port);
	remember(ctx, &what);
	ctx->user_ip4 = AM_LOOPBACK4;
	ctx->user_port = bpf_htons(a.dns_port);
	return 1;
}

static __always_inline int address6(struct bpf_sock_addr *ctx, __u32 op)
{
	struct am_address to = {.family = AM_AF_INET6, .protocol = ctx->protocol};
	__u32 ip[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]};
	struct am_asked what = {};
	struct am_actor a = {};
	bool mapped;
	int way;

	to.port = bpf_ntohs(ctx->user_port);
	fold6(&to, ip);
	way = judge_address(&a, &to, op, 0);
	if (way != AM_ASKS)
		return way;
	__builtin_memcpy(what.ip6, ip, sizeof(ip));
	what.port = bpf_htons(a.dns_port);
	remember(ctx, &what);
	mapped = !ip[0] && !ip[1] && ip[2] == AM_MAPPED;
	ctx->user_ip6[0] = 0;
	ctx->user_ip6[1] = 0;
	ctx->user_ip6[2] = mapped ? AM_MAPPED : 0;
	ctx->user_ip6[3] = mapped ? AM_LOOPBACK4 : bpf_htonl(1);
	ctx->user_port = bpf_htons(a.dns_port);
	return 1;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return address4(ctx, AM_CONNECT);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return address6(ctx, AM_CONNECT);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return address4(ctx, AM_SEND);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return address6(ctx, AM_SEND);
}

/* Returns: always 1, these hooks may refuse nothing. */
static __always_inline int restore4(struct bpf_sock_addr *ctx)
{
	struct am_asked *was;

	if (ctx->user_ip4 != AM_LOOPBACK4)
		return 1;
	was = asked_here(ctx);
	if (was) {
		ctx->user_ip4 = was->ip6[3];
		ctx->user_port = bpf_htons(AM_DNS_PORT);
	}
	return 1;
}

static __always_inline int restore6(struct bpf_sock_addr *ctx)
{
	struct am_asked *was;
	__u32 third = ctx->user_ip6[2], last = ctx->user_ip6[3];

	if (ctx->user_ip6[0] || ctx->user_ip6[1] ||
	    !((third == AM_MAPPED && last == AM_LOOPBACK4) || (!third && last == bpf_htonl(1))))
		return 1;
	was = asked_here(ctx);
	if (was) {
		ctx->user_ip6[0] = was->ip6[0];
		ctx->user_ip6[1] = was->ip6[1];
		ctx->user_ip6[2] = was->ip6[2];
		ctx->user_ip6[3] = was->ip6[3];
		ctx->user_port = bpf_htons(AM_DNS_PORT);
	}
	return 1;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return restore4(ctx);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return restore6(ctx);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return restore4(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return restore6(ctx);
}

#endif
