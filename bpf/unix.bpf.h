/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Unix sockets: who is reached is said by the true path that the other end is bound to, whatever name led there, or by
 * `@` and the abstract name.
 */
#ifndef AGENTMON_UNIX_H
#define AGENTMON_UNIX_H

#include "decide.bpf.h"

#define AM_UNIX_NAME_MAX 107 /* sizeof(sun_path) without the NUL that makes a name abstract */
#define AM_UNIX_NAME_WORDS 14
#define AM_PIDTYPE_TGID 1 /* include/linux/pid_types.h */

/*
 * Whether a socket is served by the session itself: its peer credentials, which are of the process that called listen()
 * (init_peercred() in net/unix/af_unix.c), are those of a live process of the session.
 */
static __always_inline bool served_by_own(const struct am_actor *a, __u64 sk)
{
	__u64 pid = (__u64)am_load(struct sock, sk, sk_peer_pid), link = 0, task, leader;
	struct am_proc_key k = {};
	struct am_proc *p;

	if (!pid)
		return false;
	bpf_probe_read_kernel(&link, sizeof(link),
			      (void *)(pid + bpf_core_field_offset(struct pid, tasks) +
				       AM_PIDTYPE_TGID * sizeof(__u64)));
	if (!link)
		return false; /* it has ended */
	task = link - bpf_core_field_offset(struct task_struct, pid_links) -
	       AM_PIDTYPE_TGID * 2 * sizeof(__u64);
	leader = (__u64)am_load(struct task_struct, task, group_leader);
	k.tgid = am_load(struct task_struct, task, tgid);
	k.start_ns = am_load(struct task_struct, leader, start_boottime);
	p = bpf_map_lookup_elem(&procs, &k);
	return p && p->session == a->proc.session && p->serial == a->proc.serial;
}

/* Decides on an abstract name (struct unix_address). Returns the verdict. */
static __always_inline __u32 decide_abstract(struct am_actor *a, __u64 address)
{
	__u64 len, at, name, print = 0, *w;
	__u32 slot = 0, verdict, flags = 0, why = a->doomed ? AM_NO_STATE : find_tags(a);
	struct am_job *job = why ? NULL : claim(&slot);

	count(AM_C_DECISIONS);
	if (!job) {
		verdict = fallback(a, 1U << AM_UNIX, a->doomed ? AM_KILL : AM_ALLOW,
				   why ? why : AM_NO_SCRATCH, 0);
		goto out;
	}
	len = am_load(struct unix_address, address, len) - sizeof(unsigned short) - 1;
	if (len > AM_UNIX_NAME_MAX)
		len = AM_UNIX_NAME_MAX;
	am_bound(len, 0x7f);
	name = address + bpf_core_field_offset(struct unix_address, name) + sizeof(unsigned short) +
	       1;
	/* a number for the name, made behind the path area */
	w = (void *)(job->room + AM_HEAD + AM_PATH_MAX);
	for (int i = 0; i < AM_UNIX_NAME_WORDS; i++)
		w[i] = 0;
	bpf_probe_read_kernel(w, len, (void *)name);
	for (int i = 0; i < AM_UNIX_NAME_WORDS; i++)
		print = mix(print + w[i]);
	at = AM_PATH_END - 1 - len;
	am_bound(at, 0xfff);
	job->room[AM_HEAD + at] = '@';
	bpf_probe_read_kernel(job->room + AM_HEAD + at + 1, len, (void *)name);
	job->off = at;
	describe(job, a, 1U << AM_UNIX);
	inode_of(job, 0);
	plan_first(a, slot, job, 0, false);
	verdict = judge(slot, run_automaton(slot) ? AM_NO_STATE : 0);
	if (verdict == AM_KILL || (AM_STOPS && verdict >= AM_HOLD))
		flags = AM_F_KILLED;
	if (verdict != AM_ALLOW || !seen_before(a, print + len, AM_UNIX, AM_UNIX << 16 | job->rule))
		report(slot, a, flags);
	release(job);
out:
	if (verdict >= AM_HOLD)
		count(AM_C_BLOCKED);
	if (verdict == AM_KILL || (AM_STOPS && verdict >= AM_HOLD))
		kill_current();
	return verdict;
}

#ifdef AM_REACT
#define AM_SERVICE_MAX 48

/* Whether the name begins as one of those by which libc's modules reach name services, with the NUL. */
#define am_is(name, text) (!__builtin_memcmp((name), text, sizeof(text)))

static __always_inline __u64 service_name(const char *name)
{
	if (am_is(name, "/var/run/nscd/socket"))
		return sizeof("/var/run/nscd/socket") - 1;
	if (am_is(name, "/run/nscd/socket"))
		return sizeof("/run/nscd/socket") - 1;
	if (am_is(name, "/run/systemd/resolve/io.systemd.Resolve"))
		return sizeof("/run/systemd/resolve/io.systemd.Resolve") - 1;
	if (am_is(name, "/var/run/avahi-daemon/socket"))
		return sizeof("/var/run/avahi-daemon/socket") - 1;
	if (am_is(name, "/run/avahi-daemon/socket"))
		return sizeof("/run/avahi-daemon/socket") - 1;
	return 0;
}

/*
 * Who looks up a name tries these first: to be killed for it once it is connected, as for any other socket, would leave
 * nobody who asks for names alive. So it is refused, by the name as it was given; what else leads there is still judged
 * by its true path, when it is connected. Returns: 1 go on, 0 the call fails with EPERM.
 */
static __always_inline int judge_service(struct bpf_sock_addr *ctx)
{
	char name[AM_SERVICE_MAX] __attribute__((aligned(8))) = {};
	struct am_actor a = {};
	struct sockaddr_un *to = NULL;
	__u32 slot = 0, verdict = AM_ALLOW;
	struct am_job *job;
	__u64 len, at;
	int who = identify(&a);

	if (!who)
		return 1;
	if (who < 0) {
		count(AM_C_NO_STATE);
		return 0;
	}
	bpf_core_read(&to, sizeof(to), &((struct bpf_sock_addr_kern *)ctx)->uaddr);
	bpf_probe_read_kernel_str(name, sizeof(name), to->sun_path);
	len = service_name(name);
	if (!len || a.doomed || find_tags(&a))
		return 1; /* judged when it is connected */
	job = claim(&slot);
	if (!job)
		return 1;
	at = AM_PATH_END - len;
	am_bound(at, 0xfff);
	bpf_probe_read_kernel(job->room + AM_HEAD + at, len, name);
	job->off = at;
	describe(job, &a, 1U << AM_UNIX);
	inode_of(job, 0);
	/* nothing is marked or counted by a name that may lead elsewhere */
	job->trial = 1;
	plan_first(&a, slot, job, 0, false);
	if (!run_automaton(slot))
		verdict = judge(slot, 0);
	job->trial = 0;
	if (verdict == AM_DENY) {
		count(AM_C_DECISIONS);
		count(AM_C_BLOCKED);
		report(slot, &a, 0);
	}
	release(job);
	return verdict != AM_DENY;
}
#endif

#endif
