/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What records of decisions have in common; and which need none, or no judging, because they were made before.
 */
#ifndef AGENTMON_RECORD_H
#define AGENTMON_RECORD_H

#include "actor.bpf.h"

static __always_inline void fill(struct am_decision *d, const struct am_actor *a, __u32 object_size)
{
	d->h.version = AM_WIRE_VERSION;
	d->h.kind = AM_DECISION;
	d->h.size = sizeof(*d) + object_size;
	d->h.ktime_ns = bpf_ktime_get_boot_ns();
	d->h.tgid = a->key.tgid;
	d->h.tid = bpf_get_current_pid_tgid();
	d->h.start_ns = a->key.start_ns;
	d->h.session = a->proc.session;
	d->h.generation = a->generation;
	d->ppid = a->ppid;
	d->uid = bpf_get_current_uid_gid();
	d->exe_tags = a->proc.exe_tags;
	d->object_size = object_size;
	d->facts = a->facts;
	d->tier = AM_TIER;
	d->step = a->proc.step;
	bpf_get_current_comm(d->comm, sizeof(d->comm));
}

static __always_inline __u32 unsure_flag(const struct am_actor *a)
{
	return a->proc.unsure ? AM_F_UNSURE : 0;
}

static __always_inline void send_record(void *rec, __u64 size, bool urgent)
{
	/* what was let through can wait for the reader's next tick; what was blocked wakes it */
	if (bpf_ringbuf_output(&events, rec, size, urgent ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP))
		count(AM_C_RING_LOST);
}

/* Whether a fingerprint is in its bucket of a table (`seen` or `allowed`). */
static __always_inline bool has_print(struct am_seen *s, __u64 print)
{
	for (int i = 0; i < AM_SEEN_WAYS; i++) {
		if (s->way[i] == print)
			return true;
	}
	return false;
}

/* Whether a plain allowed use of this object by this session was reported before; remembers it. */
static __always_inline bool seen_before(const struct am_actor *a, __u64 ino, __u64 where,
					__u64 op_rule)
{
	/* each step of a plan is to be heard of */
	__u64 who = a->proc.serial + ((__u64)a->generation << 32) + ((__u64)a->proc.step << 24);
	__u64 print = mix(mix(mix(ino + who) + where) + op_rule) | 1; /* 0 is an empty way */
	__u32 bucket = (print >> 1) & (AM_SEEN_BUCKETS - 1);
	struct am_seen *s = bpf_map_lookup_elem(&seen, &bucket);

	if (!s)
		return false;
	if (has_print(s, print))
		return true;
	s->way[print >> 61] = print;
	return false;
}

#define AM_REMEMBERED (1U << AM_EXEC | 1U << AM_READ | 1U << AM_WRITE)

/* The fingerprint of a decision on the path that was just walked; 0: it may not be remembered. */
static __always_inline __u64 decision_print(const struct am_actor *a, const struct am_job *job)
{
	/* what happens to a name is judged by that name, and what is created is reported each time */
	if (!job->ino || job->ops & ~AM_REMEMBERED)
		return 0;
	return mix(mix(mix(mix(mix(job->walk.sum + job->ino) +
			       ((__u64)job->igen << 32 | job->dev)) +
			   a->proc.serial) +
		       a->proc.exe_tags) +
		   ((__u64)a->generation << 32 | job->ops) +
		   ((__u64)(a->part | (__u32)a->out << 16) << 32 | a->proc.step) *
			   0xff51afd7ed558ccdULL +
		   ((__u64)a->proc.unsure << 32 | a->facts) * 0x9e3779b97f4a7c15ULL) |
	       1;
}

static __always_inline struct am_seen *allowed_bucket(__u64 print)
{
	__u32 bucket = (print >> 1) & (AM_SEEN_BUCKETS - 1);

	return bpf_map_lookup_elem(&allowed, &bucket);
}

#endif
