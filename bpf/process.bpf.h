/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who is enrolled: children inherit before they run, the dead are forgotten, running trees are marked.
 */
#ifndef AGENTMON_PROCESS_H
#define AGENTMON_PROCESS_H

#include "bare.bpf.h"

#define AM_CLONE_THREAD 0x00010000
#define AM_EAGAIN 11
/* Forks that may be under way at once between the check in task_alloc and the insertion. */
#define AM_FORK_SLACK 512

/* `t`: the task that the record is about, which need not be the current one (task_free) */
static __always_inline void send_process(__u32 what, const struct am_proc_key *k,
					 const struct am_proc *p, struct task_struct *t, __u32 ppid,
					 __u64 parent_start, __s32 code)
{
	struct am_process e = {};
	struct am_session *s;
	struct am_policy *pol = NULL;
	__u32 slot = p->session, id;

	s = bpf_map_lookup_elem(&sessions, &slot);
	if (s) {
		id = s->policy;
		pol = bpf_map_lookup_elem(&policies, &id);
	}
	e.h.version = AM_WIRE_VERSION;
	e.h.kind = AM_PROCESS;
	e.h.size = sizeof(e);
	e.h.ktime_ns = bpf_ktime_get_boot_ns();
	e.h.tgid = e.h.tid = k->tgid;
	e.h.start_ns = k->start_ns;
	e.h.session = slot;
	e.h.generation = pol ? pol->generation : 0;
	e.what = what;
	e.ppid = ppid;
	e.exit_code = code;
	e.uid = t->cred->uid.val;
	e.parent_start_ns = parent_start;
	bpf_core_read_str(e.comm, sizeof(e.comm), &t->comm);
	send_record(&e, sizeof(e), what == AM_FORK_LOST);
}

/* Adds a process; 0, or -1 if the table is full. */
static __always_inline int adopt(const struct am_proc_key *k, const struct am_proc *p)
{
	long err = bpf_map_update_elem(&procs, k, p, BPF_NOEXIST);

	if (!err) {
		__sync_fetch_and_add(&nprocs, 1);
		return 0;
	}
	return bpf_map_lookup_elem(&procs, k) ? 0 : -1;
}

#ifdef AM_REACT
/* Whether what is listed of a process is of another policy than that of its session. */
static __always_inline bool is_stale(const struct am_proc *p)
{
	__u32 id = p->session;
	struct am_session *s = bpf_map_lookup_elem(&sessions, &id);
	struct am_policy *pol;

	if (!s)
		return false;
	id = s->policy;
	pol = bpf_map_lookup_elem(&policies, &id);
	return pol && pol->generation != p->generation;
}

/* Keeps what rights a process has, by the credentials of its task. Not inlined: see report_bare(). */
static __noinline void keep_rights(const struct am_proc_key *k, struct task_struct *t)
{
	struct am_proc_key key = *k;
	struct am_rights r = {};

	read_rights(&r, t->cred);
	bpf_map_update_elem(&rights, &key, &r, BPF_ANY);
}

static __always_inline void keep_own_rights(struct task_struct *t)
{
	struct am_proc_key k = {};

	k.tgid = t->tgid;
	k.start_ns = t->group_leader->start_boottime;
	keep_rights(&k, t);
}

/* Finds out what the current process runs. Not inlined: see report_bare(). */
static __noinline void refresh(void)
{
	struct am_actor a = {};

	if (identify(&a) == 1)
		find_tags(&a);
}
#endif

static __always_inline void on_fork(struct task_struct *parent, struct task_struct *child)
{
	struct am_proc_key pk = {}, ck = {};
	struct am_proc *p, copy;

	if (parent->tgid == child->tgid)
		return; /* a thread: shares its process's state */
	pk.tgid = parent->tgid;
	pk.start_ns = parent->group_leader->start_boottime;
	p = bpf_map_lookup_elem(&procs, &pk);
	if (!p)
		return;
	if (ncondemned > AM_CONDEMNED_CALM)
		kill_current();
#ifdef AM_REACT /* else task_alloc did */
	if (is_stale(p))
		refresh(); /* what it runs is known for sure only while it does */
#endif
	copy_proc(&copy, p);
	add_parent(&copy);
	ck.tgid = child->tgid;
	ck.start_ns = child->start_boottime;
#ifndef AM_REACT
	copy.step =
		newborn_step(child); /* where it was counted, whatever its parent is in by now */
#else
	keep_rights(&ck, child);
	if (copy.step) {
		int why = fork_step(&copy, &ck);

		if (why == AM_LEFT) {
			copy.step = 0;
		} else if (why) {
			condemn(&ck);
			return;
		}
	}
#endif
	if (!adopt(&ck, &copy)) {
		count(AM_C_JOINED);
#ifndef AM_REACT
		no_newborn(child);
#endif
		send_process(AM_FORK, &ck, &copy, child, pk.tgid, pk.start_ns, 0);
		return;
	}
	count(AM_C_FORK_LOST);
#ifdef AM_REACT /* else the newborn's entry still counts */
	if (copy.step)
		leave_step(&copy, &ck, 0);
#endif
	condemn(&ck);
	send_process(AM_FORK_LOST, &ck, &copy, child, pk.tgid, pk.start_ns, 0);
}

static __always_inline void forget_rights(const struct am_proc_key *k)
{
#ifdef AM_REACT
	bpf_map_delete_elem(&rights, k);
#endif
}

static __always_inline void forget(const struct am_proc_key *k, struct task_struct *t, int code)
{
	struct am_proc *p = bpf_map_lookup_elem(&procs, k), copy;
	__u32 was;

	if (ncondemned > 0 && !bpf_map_delete_elem(&condemned, k))
		__sync_fetch_and_add(&ncondemned, -1);
	if (nhalted > 0 || (AM_TIER == AM_TIER_REACT && p))
		forget_halted(k);
	if (!p)
		return;
	forget_rights(k);
	copy = *p;
	/* by a mark it may be ended at this moment: one of both counts it out */
	was = step_word(p);
	if (!change_step(p, was, was & 0xffff)) {
		was = step_word(p);
		if (!change_step(p, was, was & 0xffff))
			was = 0;
	}
	copy.step = am_word_step(was);
	copy.stepping = was >> 24;
	if (!bpf_map_delete_elem(&procs, k)) {
		__sync_fetch_and_add(&nprocs, -1);
		send_process(AM_EXIT, k, &copy, t, t->real_parent->tgid, 0, code);
		if (copy.step)
			leave_step(&copy, k, code & 0x7f ? 128 + (code & 0x7f) : code >> 8);
	}
}

static __always_inline void on_exit(struct task_struct *t)
{
	struct am_proc_key k = {};
	int code;

	k.tgid = t->tgid;
	k.start_ns = t->group_leader->start_boottime;
	/* do_exit() has already counted this thread out: 0 means that the whole process is gone */
	if (t->signal->live.counter > 0)
		return;
	code = t->signal->group_exit_code;
	forget(&k, t, code ? code : t->exit_code);
}

/*
 * Marks what is named in `marks`, and every child of an enrolled process. User space runs it until it writes
 * nothing more: then the whole tree is marked, and what is forked meanwhile has inherited. Processes of a
 * session that is no longer live are forgotten.
 * Writes one struct am_joined for each process that it added.
 */
SEC("iter/task")
int mark_processes(struct bpf_iter__task *ctx)
{
	struct task_struct *t = ctx->task;
	struct seq_file *seq = ctx->meta->seq;
	struct am_proc_key k = {}, pk = {};
	struct am_proc fresh = {}, *p;
	struct am_joined joined = {};
	__u32 tgid, *slot;
	struct am_session *s;

	if (!t || t->pid != t->tgid)
		return 0;
	tgid = t->tgid;
	k.tgid = tgid;
	k.start_ns = t->start_boottime;
	p = bpf_map_lookup_elem(&procs, &k);
	if (p) {
		__u32 id = p->session;

		s = bpf_map_lookup_elem(&sessions, &id);
		if (s && !(s->flags & AM_S_LIVE) && !bpf_map_delete_elem(&procs, &k)) {
			__sync_fetch_and_add(&nprocs, -1);
			forget_rights(&k);
		}
		return 0;
	}
	if (t->signal->live.counter <= 0)
		return 0; /* a zombie: its end was told already, nothing would remove it again */
	slot = bpf_map_lookup_elem(&marks, &tgid);
	if (slot) {
		__u32 id = *slot;

		s = bpf_map_lookup_elem(&sessions, &id);
		if (!s)
			return 0;
		fresh.session = id;
		fresh.serial = s->serial;
	} else {
		struct task_struct *up = t->real_parent;

		pk.tgid = up->tgid;
		pk.start_ns = up->group_leader->start_boottime;
		p = bpf_map_lookup_elem(&procs, &pk);
		if (!p)
			return 0;
		copy_proc(&fresh, p);
		add_parent(&fresh);
		fresh.exe_tags = 0; /* another program, maybe */
		fresh.generation = 0;
	}
#ifdef AM_REACT
	keep_rights(&k, t);
#endif
	if (adopt(&k, &fresh)) {
		count(AM_C_FORK_LOST);
		return 0;
	}
	if (fresh.step)
		fork_step(&fresh, &k); /* above the limit it only makes that no child follows */
	joined.key = k;
	joined.session = fresh.session;
	/* no room left in what is read at once: the same task is shown again at the next read */
	if (bpf_seq_write(seq, &joined, sizeof(joined)) && !bpf_map_delete_elem(&procs, &k))
		__sync_fetch_and_add(&nprocs, -1);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child)
{
	on_fork(parent, child);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *t)
{
	on_exit(t);
	return 0;
}

#endif
