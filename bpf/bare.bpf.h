/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The guarded operations: what could take the fence away, or have somebody outside of it act. They have no object that
 * a rule could name; what a session does to its own processes is none of them. Here is how they are judged; when, is in
 * guard.bpf.h (LSM) and late.bpf.h (react).
 */
#ifndef AGENTMON_BARE_H
#define AGENTMON_BARE_H

#include "plan.bpf.h"

#define EPERM 1

/* What the plan says, packed as am_pack() does; also what no rule says. Not inlined: see report_bare(). */
static __noinline int bare_part(const struct am_actor *a, __u32 op, __u32 why)
{
	__u32 id = a->part - 1, rule = AM_NO_RULE;
	struct am_policy *p;
	__u64 o = op;

	am_bound(o, 31);
	if (a->out)
		return am_pack(a->part, AM_NO_RULE);
	p = bpf_map_lookup_elem(&policies, &id);
	if (!p || o >= AM_OPS)
		return am_pack(AM_DENY, AM_NO_RULE);
	if (why)
		return am_pack(p->severest[o], AM_NO_RULE);
	if (p->bare[o])
		rule = list_rule(p->list_base + p->bare[o], 0, a->proc.exe_tags,
				 am_asked(a->facts, a->proc.unsure));
	return am_pack(rule == AM_NO_RULE ? p->default_action[o] : action_of(p, rule), rule);
}

/*
 * Judges an operation without an object. `why`: nobody can tell whether it is one (enum am_reason), the severest verdict
 * counts; else 0. Returns -EPERM for a verdict that blocks, else 0; in the react tier the process is killed.
 */
static __noinline int guard_for(__u32 op, __u32 why)
{
	struct am_actor a = {};
	struct am_policy *p;
	__u32 id, verdict, rule = AM_NO_RULE, reason = AM_BY_DEFAULT;
	__u64 o = op;
	int who = identify(&a);
	bool killed;

	am_bound(o, 31);
	if (!who || o >= AM_OPS)
		return 0;
	count(who < 0 ? AM_C_NO_STATE : AM_C_DECISIONS);
	id = a.policy;
	p = who < 0 ? NULL : bpf_map_lookup_elem(&policies, &id);
	if (!p || a.doomed) {
		verdict = p ? AM_KILL : AM_DENY;
		reason = AM_NO_STATE;
	} else if (why || (why = find_tags(&a))) {
		verdict = p->severest[o];
		if (a.part) {
			int v = bare_part(&a, o, why);

			if (am_packed_action(v) > verdict)
				verdict = am_packed_action(v);
		}
		reason = why;
	} else {
		if (p->bare[o])
			rule = list_rule(p->list_base + p->bare[o], 0, a.proc.exe_tags,
					 am_asked(a.facts, a.proc.unsure));
		verdict = p->default_action[o];
		if (rule != AM_NO_RULE) {
			verdict = action_of(p, rule);
			reason = AM_BY_RULE;
		}
		if (a.part) {
			int v = bare_part(&a, o, 0);

			if (am_packed_action(v) > verdict) {
				verdict = am_packed_action(v);
				rule = am_packed_rule(v);
				reason = a.out		      ? a.out
					 : rule == AM_NO_RULE ? AM_PLAN_CLOSED
							      : AM_PLAN_RULE;
			}
		}
		if (p->marking)
			let_through(&a, verdict, rule);
		if (verdict == AM_ALLOW && seen_before(&a, 0, 0, (o << 16) | rule))
			return 0;
	}
	killed = verdict == AM_KILL || (AM_STOPS && verdict >= AM_HOLD);
	report_bare(&a, o, verdict, am_by(rule, reason), killed ? AM_F_KILLED : 0);
	if (verdict < AM_HOLD)
		return 0;
	count(AM_C_BLOCKED);
	if (killed)
		kill_current();
	return -EPERM;
}

static __always_inline int guard(__u32 op)
{
	return guard_for(op, 0);
}

/*
 * Whether a task, by its address, is of the current process's own session. `step`: and of its step, or also of none: who
 * takes over a process can do what that one may.
 */
static __always_inline bool same_place(__u64 task, bool step)
{
	struct task_struct *me = (void *)bpf_get_current_task_btf();
	struct am_proc_key mine = {}, theirs = {};
	__u64 leader = (__u64)am_load(struct task_struct, task, group_leader);
	struct am_proc *m, *p;

	mine.tgid = me->tgid;
	mine.start_ns = me->group_leader->start_boottime;
	theirs.tgid = am_load(struct task_struct, task, tgid);
	theirs.start_ns = am_load(struct task_struct, leader, start_boottime);
	m = bpf_map_lookup_elem(&procs, &mine);
	p = bpf_map_lookup_elem(&procs, &theirs);
#ifndef AM_REACT
	if (!p)
		p = bpf_map_lookup_elem(&newborn, &leader);
#endif
	return m && p && m->session == p->session && m->serial == p->serial &&
	       (!step || m->step == p->step);
}

static __always_inline bool same_session(__u64 task)
{
	return same_place(task, false);
}

/* Of credentials, what is compared. */
struct am_rights {
	__u64 permitted, effective; /* capabilities */
	__u64 user_ns; /* the namespace that they are of, by its address */
	__u32 euid, fsuid, egid, fsgid;
};

#ifdef AM_REACT
/*
 * What each process had when it was last looked at: at its enrolment or birth, its programs, and calls that change
 * rights. Of several threads with different ones (no program does that by libc) the last counts.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, AM_MAX_PROCS);
	__type(key, struct am_proc_key);
	__type(value, struct am_rights);
} rights SEC(".maps");
#endif

static __always_inline void read_rights(struct am_rights *r, const struct cred *c)
{
	/* kernel_cap_t: two u32 up to Linux 6.2, one u64 since */
	bpf_core_read(&r->permitted, sizeof(r->permitted), &c->cap_permitted);
	bpf_core_read(&r->effective, sizeof(r->effective), &c->cap_effective);
	r->user_ns = (__u64)c->user_ns;
	r->euid = c->euid.val;
	r->fsuid = c->fsuid.val;
	r->egid = c->egid.val;
	r->fsgid = c->fsgid.val;
}

/* Whether credentials can do more than before. */
static __always_inline bool gains(const struct am_rights *to, const struct am_rights *from)
{
	return (from->euid && !to->euid) || (from->fsuid && !to->fsuid) ||
	       to->permitted & ~from->permitted;
}

struct am_groups {
	__u64 gids;
	__u32 wanted, found, count;
};

static long next_group(__u32 i, struct am_groups *g)
{
	__u32 gid = 0;

	if (i >= g->count)
		return 1;
	bpf_probe_read_kernel(&gid, sizeof(gid), (void *)(g->gids + i * sizeof(gid)));
	if (gid != g->wanted)
		return 0;
	g->found = 1;
	return 1;
}

/* Supplementary groups that are looked at (NGROUPS_MAX is 65536); of a process in more, the rest count as foreign. */
#define AM_GROUPS 1024

#define CAP_SETGID 6

/*
 * Whether a program brings a group that the process has not, and could not take by setgid(2) either. Not one that gives no
 * rights: ssh-agent has such a group only so that nobody looks into its memory. `who` has the groups that no program
 * changes: the real one, and the supplementary ones.
 */
static __always_inline bool gains_group(const struct am_rights *to, const struct am_rights *from,
					const struct cred *who)
{
	struct am_groups g = {.wanted = to->egid};
	__u64 info = 0;

	if (g.wanted == from->egid || g.wanted == who->gid.val || g.wanted == from->fsgid)
		return false;
	if (g.wanted && (g.wanted == knobs.idle_gid[0] || g.wanted == knobs.idle_gid[1]))
		return false;
	if (from->effective & 1ULL << CAP_SETGID)
		return false;
	/* read so, it is a number: to a pointer of its own the verifier lets nobody add what it does not know */
	bpf_core_read(&info, sizeof(info), &who->group_info);
	g.gids = info + bpf_core_field_offset(struct group_info, gid);
	g.count = am_load(struct group_info, (struct group_info *)info, ngroups);
	bpf_loop(AM_GROUPS, next_group, &g, 0);
	return !g.found;
}

/* Whether a program that was started gives more rights than its process had: to whoever it belongs, not to root alone. */
static __always_inline bool gains_by_exec(const struct am_rights *to, const struct am_rights *from,
					  const struct cred *who)
{
	return gains(to, from) || to->euid != from->euid || gains_group(to, from, who);
}

#endif
