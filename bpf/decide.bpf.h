/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From an enrolled process and an object to a verdict, a record, and the signal that goes with it.
 */
#ifndef AGENTMON_DECIDE_H
#define AGENTMON_DECIDE_H

#include "automaton.bpf.h"
#include "walk.bpf.h"

#define AM_SIGKILL 9

/* Who acts: filled by identify(). */
struct am_actor {
	struct am_proc_key key;
	struct am_proc proc;
	__u64 serial;
	__u32 policy;
	__u32 generation;
	__u32 tid;
	__u32 ppid;
	__u32 doomed;
};

#ifndef AM_REACT
static __always_inline void no_newborn(struct task_struct *t)
{
	__u64 address = (__u64)t;

	if (nnewborn > 0 && !bpf_map_delete_elem(&newborn, &address))
		__sync_fetch_and_add(&nnewborn, -1);
}

/* Whether the current process was born into a live session that it is not listed in; lists it then, if there is room. */
static __always_inline bool born_enrolled(const struct am_actor *a, struct task_struct *t)
{
	struct task_struct *leader = t->group_leader;
	__u64 address = (__u64)leader;
	struct am_session *s;
	struct am_proc *b, copy;

	if (nnewborn <= 0)
		return false;
	b = bpf_map_lookup_elem(&newborn, &address);
	if (!b)
		return false;
	copy = *b;
	s = bpf_map_lookup_elem(&sessions, &copy.session);
	if (!s || s->serial != copy.serial || !(s->flags & AM_S_LIVE))
		return false; /* released since */
	if (!bpf_map_update_elem(&procs, &a->key, &copy, BPF_NOEXIST)) {
		__sync_fetch_and_add(&nprocs, 1);
		count(AM_C_FORK_REPAIRED);
	}
	return true;
}
#endif

/*
 * Returns: 0 the current process is not enrolled (or released); 1 it is, *a is filled;
 * -1 it is, but its session is not known any more, or it could not be added: deny.
 */
static __always_inline int identify(struct am_actor *a)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct am_proc *p;
	struct am_session *s;
	struct am_policy *pol;

	__builtin_memset(a, 0, sizeof(*a));
	a->key.tgid = t->tgid;
	a->key.start_ns = t->group_leader->start_boottime;
	p = bpf_map_lookup_elem(&procs, &a->key);
#ifndef AM_REACT
	if (!p && born_enrolled(a, t)) {
		p = bpf_map_lookup_elem(&procs, &a->key);
		if (!p)
			return -1; /* the table is full */
	}
#endif
	if (!p)
		return is_condemned(&a->key) ? -1 : 0;
	a->proc = *p;
	a->tid = t->pid;
	a->ppid = t->real_parent->tgid;
	s = bpf_map_lookup_elem(&sessions, &a->proc.session);
	if (!s)
		return -1;
	a->serial = s->serial;
	if (s->serial != a->proc.serial)
		return -1;
	if (!(s->flags & AM_S_LIVE))
		return 0;
	if (s->flags & AM_S_DOOMED)
		a->doomed = 1;
	a->policy = s->policy;
	pol = bpf_map_lookup_elem(&policies, &a->policy);
	if (!pol || !pol->generation)
		return -1;
	a->generation = pol->generation;
	return 1;
}

/* Claims a scratch slot; its number, or -1 when all that were tried are busy. */
__noinline int claim_slot(void)
{
	__u32 first = bpf_get_smp_processor_id() * 8 + (bpf_get_current_pid_tgid() & 7);

	for (__u32 i = 0; i < AM_SLOT_TRIES; i++) {
		__u32 id = (first + i) & (AM_SLOTS - 1);
		struct am_job *job = bpf_map_lookup_elem(&scratch, &id);

		if (job && !__sync_val_compare_and_swap(&job->busy, 0, 1))
			return id;
	}
	return -1;
}

static __always_inline struct am_job *claim(__u32 *slot)
{
	int id = claim_slot();

	if (id < 0) {
		count(AM_C_SCRATCH_EXHAUSTED);
		return NULL;
	}
	*slot = id;
	return bpf_map_lookup_elem(&scratch, slot);
}

static __always_inline void release(struct am_job *job)
{
	__sync_lock_test_and_set(&job->busy, 0);
}

static __always_inline void fill(struct am_decision *d, const struct am_actor *a, __u32 object_size)
{
	d->h.version = AM_WIRE_VERSION;
	d->h.kind = AM_DECISION;
	d->h.size = sizeof(*d) + object_size;
	d->h.ktime_ns = bpf_ktime_get_boot_ns();
	d->h.tgid = a->key.tgid;
	d->h.tid = a->tid;
	d->h.start_ns = a->key.start_ns;
	d->h.session = a->proc.session;
	d->h.generation = a->generation;
	d->ppid = a->ppid;
	d->uid = bpf_get_current_uid_gid();
	d->exe_tags = a->proc.exe_tags;
	d->object_size = object_size;
	d->pad = 0;
	d->tier = AM_TIER;
	bpf_get_current_comm(d->comm, sizeof(d->comm));
}

static __always_inline void send_record(void *rec, __u64 size, bool urgent)
{
	/* what was let through can wait for the reader's next tick; what was blocked wakes it */
	if (bpf_ringbuf_output(&events, rec, size, urgent ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP))
		count(AM_C_RING_LOST);
}

static __always_inline void kill_current(void)
{
	if (bpf_send_signal(AM_SIGKILL))
		count(AM_C_SIGNAL_FAILED);
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
					__u32 op_rule)
{
	__u64 print = mix(mix(mix(ino + a->serial) + where) + op_rule) | 1; /* 0 is an empty way */
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
			   a->serial) +
		       a->proc.exe_tags) +
		   ((__u64)a->generation << 32 | job->ops)) |
	       1;
}

static __always_inline struct am_seen *allowed_bucket(__u64 print)
{
	__u32 bucket = (print >> 1) & (AM_SEEN_BUCKETS - 1);

	return bpf_map_lookup_elem(&allowed, &bucket);
}

/*
 * Judges the job for each operation in job->ops; sets verdict, op, rule, reason. `why`: there is no path to judge by
 * (walk()'s result); 0: run_automaton() has been over it. Ties between operations go to the later one.
 * Returns the verdict. Global, so that the verifier looks at it once.
 */
__noinline int judge(__u32 slot, __u32 why)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_pin_key k = {};
	struct am_policy *p;
	__u32 *pin, id, accept;

	if (!job)
		return AM_DENY;
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	k.ino = job->ino;
	k.dev = job->dev;
	k.igen = job->igen;
	k.policy = id;
	job->verdict = AM_ALLOW;
	job->rule = AM_NO_RULE;
	job->reason = why;
	job->pinned = 0;
	job->op = 0;
	pin = why || !job->ino ? NULL : bpf_map_lookup_elem(&pins, &k);
	accept = job->accept;
	for (__u32 op = 0; op < AM_PATH_OPS; op++) {
		__u32 action, rule = AM_NO_RULE, reason = AM_BY_DEFAULT;
		int v = -1;

		if (!(job->ops & (1U << op)))
			continue;
		if (!p) {
			action = AM_DENY;
			reason = AM_NO_STATE;
		} else if (why) {
			action = p->severest[op];
			reason = why;
		} else {
			bool pinned = false;

			v = path_verdict(slot, op, accept);
			if (pin) {
				int w = path_verdict(slot, op, p->accept_base + *pin);

				if (w > v) {
					v = w;
					pinned = true;
				}
			}
			action = p->default_action[op];
			if (v >= 0) {
				action = am_packed_action(v);
				rule = am_packed_rule(v);
				reason = AM_BY_RULE;
			}
			if (action >= job->verdict)
				job->pinned = pinned;
		}
		if (action >= job->verdict) {
			job->verdict = action;
			job->op = op;
			job->rule = rule;
			job->reason = reason;
		}
	}
	return job->verdict;
}

static __always_inline void count_reason(__u32 why)
{
	if (why == AM_PATH_TOO_LONG)
		count(AM_C_PATH_TOO_LONG);
	else if (why == AM_PATH_UNREACHABLE)
		count(AM_C_PATH_UNREACHABLE);
	else if (why == AM_PATH_UNSTABLE)
		count(AM_C_PATH_UNSTABLE);
}

/* Sends the record of a judged job unless it is a repeated plain allow. */
static __always_inline void report(struct am_job *job, const struct am_actor *a, __u32 flags)
{
	__u64 off = job->off, size;
	struct am_decision *d;
	bool urgent = job->verdict > AM_ALLOW;

	/* a name that does not exist yet has no inode: each is a new object */
	if (!urgent && job->ino && !(flags & AM_F_SCRIPT) &&
	    seen_before(a, job->ino, (__u64)job->igen << 32 | job->dev,
			(job->op << 16) | job->rule))
		return;
	if (off > AM_PATH_END)
		off = AM_PATH_END;
	size = AM_PATH_END - off;
	am_bound(off, 0xfff);
	d = (void *)(job->room + AM_HEAD - sizeof(*d) + off);
	fill(d, a, size);
	d->op = job->op;
	d->verdict = job->verdict;
	d->rule = job->rule;
	d->reason = job->reason;
	d->flags = flags | (job->pinned ? AM_F_PINNED : 0);
	d->ino = job->ino;
	d->dev = job->dev;
	d->igen = job->igen;
	size += sizeof(*d);
	am_bound(size, 0x1fff);
	if (size > sizeof(*d) + AM_PATH_MAX)
		return;
	send_record(d, size, urgent || (flags & AM_F_SCRIPT));
}

/*
 * The record of a verdict without a path: no scratch slot, or no session. Not inlined: its 104 bytes would count in
 * every call chain of the hook, and 512 is all there is.
 */
static __noinline void report_bare(const struct am_actor *a, __u32 op, __u32 verdict, __u32 reason,
				   __u32 flags)
{
	struct am_decision d = {};

	fill(&d, a, 0);
	d.op = op;
	d.verdict = verdict;
	d.rule = AM_NO_RULE;
	d.reason = reason;
	d.flags = flags;
	send_record(&d, sizeof(d), true);
}

/* Without a scratch slot or a session: the severest verdict of the operations, at least `floor`. */
static __always_inline __u32 fallback(const struct am_actor *a, __u32 ops, __u32 floor,
				      __u32 reason, __u32 flags)
{
	__u32 id = a->policy, worst = floor, which = 0;
	struct am_policy *p = bpf_map_lookup_elem(&policies, &id);

	if (!p) {
		report_bare(a, 0, AM_KILL, reason, flags);
		return AM_KILL;
	}
	for (__u32 op = 0; op < AM_OPS - 1; op++) {
		if (!(ops & (1U << op)))
			continue;
		which = op;
		if (p->severest[op] > worst)
			worst = p->severest[op];
	}
	report_bare(a, which, worst, reason, flags);
	return worst;
}

static __always_inline void inode_of(struct am_job *job, __u64 inode)
{
	struct inode *i = (void *)inode;
	struct super_block *sb;

	job->ino = 0;
	job->dev = 0;
	job->igen = 0;
	if (!inode)
		return;
	sb = am_load(struct inode, i, i_sb);
	job->ino = am_load(struct inode, i, i_ino);
	job->igen = am_load(struct inode, i, i_generation);
	job->dev = am_load(struct super_block, sb, s_dev);
}

/*
 * Decides operations `ops` on a path. `mnt` is a struct vfsmount, `inode` may be 0 (a name that does not exist yet).
 * Returns the verdict (enum am_action). Cannot tell: the severest verdict of the operations.
 * `stop`: this tier cannot refuse, so deny means SIGKILL as well.
 */
static __always_inline __u32 decide_path(struct am_actor *a, __u32 ops, __u64 mnt, __u64 dentry,
					 __u64 inode, __u32 flags, bool stop)
{
	struct am_job *job;
	struct am_seen *known = NULL;
	__u32 slot = 0, why, verdict;
	__u64 print = 0;
	int looked;

	count(AM_C_DECISIONS);
	if (a->doomed) {
		kill_current();
		count(AM_C_BLOCKED);
		return fallback(a, ops, AM_KILL, AM_NO_STATE, AM_F_KILLED);
	}
	job = claim(&slot);
	if (!job) {
		verdict = fallback(a, ops, AM_ALLOW, AM_NO_SCRATCH, flags);
	} else {
		job->dentry = dentry;
		job->mount = mnt - bpf_core_field_offset(struct mount, mnt);
		job->policy = a->policy;
		job->ops = ops;
		job->exe_tags = a->proc.exe_tags;
		inode_of(job, inode);
		looked = walk_look(slot);
		if (!looked)
			print = decision_print(a, job);
		if (print) {
			known = allowed_bucket(print);
			if (known && has_print(known, print)) {
				release(job);
				return AM_ALLOW;
			}
		}
		why = walk_on(slot, AM_PATH_END, looked);
		if (why == AM_PATH_UNSTABLE)
			job->off =
				AM_PATH_END; /* no path rather than a part of one that never was */
		count_reason(why);
		if (!why && run_automaton(slot))
			why = AM_NO_STATE;
		verdict = judge(slot, why);
		if (verdict == AM_KILL || (stop && verdict >= AM_HOLD))
			flags |= AM_F_KILLED;
		report(job, a, flags);
		if (known && verdict == AM_ALLOW && !why && print == decision_print(a, job))
			known->way[print >> 61] = print;
		release(job);
	}
	if (verdict >= AM_HOLD)
		count(AM_C_BLOCKED);
	if (verdict == AM_KILL || (stop && verdict >= AM_HOLD))
		kill_current();
	return verdict;
}

#endif
