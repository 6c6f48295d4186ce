/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From an enrolled process and an object to a verdict, a record, and the signal that goes with it.
 */
#ifndef AGENTMON_DECIDE_H
#define AGENTMON_DECIDE_H

#include "actor.bpf.h"
#include "automaton.bpf.h"
#include "walk.bpf.h"
#include "halt.bpf.h"

#define AM_SIGKILL 9

#include "scratch.bpf.h"
#include "record.bpf.h"

static __always_inline void kill_current(void)
{
	if (bpf_send_signal(AM_SIGKILL))
		count(AM_C_SIGNAL_FAILED);
}

/* Why, when the plan says it. */
static __always_inline __u32 in_plan(__u32 reason)
{
	return reason == AM_BY_RULE	 ? AM_PLAN_RULE
	       : reason == AM_BY_DEFAULT ? AM_PLAN_CLOSED
					 : reason;
}

/* Judges the job for one operation: judge(). Global, so that the verifier looks at it once. Returns 0. */
__noinline int judge_one(__u32 slot, __u32 op, __u32 why)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	__u32 action, rule = AM_NO_RULE, reason = AM_BY_DEFAULT, id;
	struct am_pin_key k = {};
	struct am_policy *p;
	bool pinned = false;
	__u64 o = op;
	__u32 *pin;

	if (!job)
		return 0;
	am_bound(o, 15);
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	if (!p) {
		action = AM_DENY;
		reason = AM_NO_STATE;
	} else if (why) {
		action = p->severest[o];
		reason = why;
	} else {
		int v = path_verdict(slot, op, 0);

		k.ino = job->ino;
		k.dev = job->dev;
		k.igen = job->igen;
		k.policy = id;
		pin = job->ino ? bpf_map_lookup_elem(&pins, &k) : NULL;
		if (pin) {
			int w = path_verdict(slot, op, p->accept_base + *pin);

			if (w > v) {
				v = w;
				pinned = true;
			}
		}
		action = p->default_action[o];
		if (v >= 0) {
			action = am_packed_action(v);
			rule = am_packed_rule(v);
			reason = AM_BY_RULE;
		}
	}
	if (o < AM_PATH_OPS)
		job->ruled[o] = rule;
	if (action >= job->verdict) {
		job->verdict = action;
		job->op = op;
		job->rule = rule;
		job->reason = reason;
		job->pinned = pinned;
	}
	return 0;
}

/*
 * Sets what the rules mark that let the job's operations through: each of them, not the one alone that is told. Global, so
 * that the verifier looks at it once. Returns 0.
 */
__noinline int job_marks(__u32 slot)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_policy *p;
	__u32 id;

	if (!job)
		return 0;
	for (__u32 op = 0; op < AM_PATH_OPS; op++) {
		if (job->ops & (1U << op) && job->ruled[op] != AM_NO_RULE)
			job->marks |= marks_of(job->policy, job->ruled[op]);
	}
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	if (p && job->verdict < AM_HOLD)
		set_marks(job->session, p->generation, job->marks);
	return 0;
}

/*
 * Judges the job for each operation in job->ops; sets verdict, op, rule, reason. `why`: there is no path to judge by
 * (walk()'s result); 0: run_automaton() has been over it. Ties between operations go to the later one.
 * Returns the verdict: the worse of the policy's and of what plan_first() found. Global, so that the verifier looks at it
 * once.
 */
__noinline int judge(__u32 slot, __u32 why)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_policy *p;
	__u32 id, ops;

	if (!job)
		return AM_DENY;
	ops = job->planned ? job->plan_ops : job->ops;
	job->verdict = AM_ALLOW;
	job->rule = AM_NO_RULE;
	job->reason = why;
	job->pinned = 0;
	job->op = 0;
	if (!job->planned)
		job->marks = 0;
	for (__u32 op = 0; op < AM_PATH_OPS; op++) {
		if (ops & (1U << op))
			judge_one(slot, op, why);
	}
	if (job->planned) {
		job->plan_verdict = job->verdict;
		job->plan_rule = job->rule;
		job->plan_reason = in_plan(job->reason);
		job->plan_op = job->op;
		job->plan_pinned = job->pinned;
		return job->verdict;
	}
	if (job->plan_verdict > job->verdict) {
		job->verdict = job->plan_verdict;
		job->rule = job->plan_rule;
		job->reason = job->plan_reason;
		job->op = job->plan_op;
		job->pinned = job->plan_pinned;
	}
	id = job->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	if (p && p->marking && !job->trial)
		job_marks(slot);
	return job->verdict;
}

#ifndef AM_REACT
#include "waiting.bpf.h"
#endif

static __always_inline void count_reason(__u32 why)
{
	if (why == AM_PATH_TOO_LONG)
		count(AM_C_PATH_TOO_LONG);
	else if (why == AM_PATH_UNREACHABLE)
		count(AM_C_PATH_UNREACHABLE);
	else if (why == AM_PATH_UNSTABLE)
		count(AM_C_PATH_UNSTABLE);
}

/* A record names one operation: the severest, else the last. */
static __always_inline __u32 also_read(const struct am_job *job)
{
	return job->op != AM_READ && job->ops & 1U << AM_READ ? AM_F_ALSO_READ : 0;
}

/*
 * Sends the record of a judged job unless it is a repeated plain allow. Global, so that the verifier looks at it once.
 * Returns 0.
 */
__noinline int report(__u32 slot, const struct am_actor *a, __u32 flags)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_decision *d;
	__u64 off, size;
	bool urgent;

	if (!job || !a || job->told)
		return 0;
	off = job->off;
	urgent = job->verdict > AM_ALLOW || job->reason == AM_APPROVED;

	/* a name that does not exist yet has no inode: each is a new object */
	if (!urgent && job->ino && !(flags & AM_F_SCRIPT) &&
	    seen_before(a, job->ino, (__u64)job->igen << 32 | job->dev,
			/* other arguments may be another thing to who looks at the record */
			(job->op == AM_EXEC ? (__u64)a->facts << 32 : 0) | also_read(job) << 24 |
				job->op << 16 | job->rule))
		return 0;
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
	d->flags = flags | (job->pinned ? AM_F_PINNED : 0) | also_read(job) | unsure_flag(a);
	d->ino = job->ino;
	d->dev = job->dev;
	d->igen = job->igen;
	d->held = job->held;
	d->same = job->same;
	size += sizeof(*d);
	am_bound(size, 0x1fff);
	if (size > sizeof(*d) + AM_PATH_MAX)
		return 0;
	send_record(d, size, urgent || (flags & AM_F_SCRIPT));
	return 0;
}

/* What a verdict goes by, as one argument of five. */
#define am_by(rule, reason) ((__u32)(rule) << 16 | (reason))

/*
 * The record of a verdict without a path: no scratch slot, or no session. Not inlined: its 104 bytes would count in
 * every call chain of the hook, and 512 is all there is.
 */
static __noinline void report_bare(const struct am_actor *a, __u32 op, __u32 verdict, __u32 by,
				   __u32 flags)
{
	struct am_decision d = {};

	fill(&d, a, 0);
	d.op = op;
	d.verdict = verdict;
	d.rule = by >> 16;
	d.reason = by & 0xffff;
	d.flags = flags | unsure_flag(a);
	send_record(&d, sizeof(d), true);
}

struct am_worst {
	struct am_policy *p;
	__u32 ops, worst, which;
};

static long next_worst(__u32 op, struct am_worst *w)
{
	__u64 o = op;

	am_bound(o, 31);
	if (o >= AM_OPS - 1)
		return 1;
	if (!(w->ops & (1U << o)))
		return 0;
	w->which = o;
	if (w->p->severest[o] > w->worst)
		w->worst = w->p->severest[o];
	return 0;
}

#ifndef AM_REACT
/* The facts that the arguments of a program say, as far as they are not known. */
static __always_inline __u32 arguments_of(const struct am_actor *a)
{
	__u32 id = a->policy;
	struct am_policy *p = bpf_map_lookup_elem(&policies, &id);

	return p ? p->args : 0;
}
#endif

/*
 * Whether a part of a plan has anything but plain consent to operations: else it need not be asked. Not inlined: see
 * report_bare().
 */
static __noinline bool part_says(__u32 part, __u32 ops)
{
	struct am_policy *p = bpf_map_lookup_elem(&policies, &part);

	for (__u32 op = 0; op < AM_PATH_OPS; op++) {
		if (ops & (1U << op) && (!p || p->severest[op] != AM_ALLOW))
			return true;
	}
	return false;
}

/*
 * Judges the job by what the plan says of its process: it comes before run_automaton() and judge(), which then take the worse
 * of both. `guess`: the arguments of a program are not known yet. Inlined: the chain of calls from a hook to list_rule() has the eight that may be.
 */
static __always_inline void plan_first(const struct am_actor *a, __u32 slot, struct am_job *job,
				       __u32 why, bool guess)
{
	if (a->out) {
		job->plan_verdict = a->part;
		job->plan_rule = AM_NO_RULE;
		job->plan_reason = a->out;
		job->plan_pinned = 0;
		job->plan_op = lowest_bit(job->ops);
		job->plan_best = a->part;
	} else if (a->part && part_says(a->part - 1, job->plan_ops)) {
		job->policy = a->part - 1;
		if (!why && run_automaton(slot))
			why = AM_NO_STATE;
		job->planned = 1;
#ifndef AM_REACT
		if (guess && job->ops == 1U << AM_EXEC && arguments_of(a)) {
			/* not known yet: see waiting.bpf.h */
			job->hoped = arguments_of(a);
			job->plan_best = judge(slot, why);
			job->hoped = 0;
			job->unsure |= arguments_of(a);
			judge(slot, why);
			job->unsure = a->proc.unsure;
		} else
#endif
		{
			judge(slot, why);
			job->plan_best = job->plan_verdict;
		}
		job->planned = 0;
		job->policy = a->policy;
	}
}

/* Without a scratch slot or a session: the severest verdict of the operations, at least `floor`. */
__noinline int fallback(const struct am_actor *a, __u32 ops, __u32 floor, __u32 reason, __u32 flags)
{
	struct am_worst w = {.ops = ops, .worst = floor};
	__u32 id, part;

	if (!a)
		return AM_KILL;
	id = a->policy;
	w.p = bpf_map_lookup_elem(&policies, &id);
	if (!w.p) {
		report_bare(a, 0, AM_KILL, am_by(AM_NO_RULE, reason), flags);
		return AM_KILL;
	}
	bpf_loop(AM_OPS - 1, next_worst, &w, 0);
	if (a->out) {
		if (a->part > w.worst)
			w.worst = a->part;
	} else if (a->part) {
		part = a->part - 1;
		w.p = bpf_map_lookup_elem(&policies, &part);
		if (w.p)
			bpf_loop(AM_OPS - 1, next_worst, &w, 0);
	}
	report_bare(a, w.which, w.worst, am_by(AM_NO_RULE, reason), flags);
	return w.worst;
}

static __always_inline void inode_of(struct am_job *job, __u64 inode)
{
	struct inode *i = (void *)inode;
	struct super_block *sb;

	job->inode = inode;

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

/* Who asks for which operations (a bit each). */
static __always_inline void describe(struct am_job *job, const struct am_actor *a, __u32 ops)
{
	job->policy = a->policy;
	job->ops = ops;
	job->exe_tags = a->proc.exe_tags;
	job->facts = a->facts;
	job->unsure = a->proc.unsure;
	job->session = a->proc.session;
	job->plan_verdict = AM_ALLOW;
	job->plan_best = AM_ALLOW;
	job->plan_ops = ops;
	if (a->proc.stepping & AM_OPENING) /* it is what began the step */
		job->plan_ops &= ~(1U << AM_EXEC);
	job->held = 0;
	job->same = 0;
	job->told = 0;
}

/* This tier cannot refuse what has a path: deny means SIGKILL as well. */
#define AM_STOPS (AM_TIER == AM_TIER_REACT)

struct am_hashing {
	struct am_job *job;
	__u64 sum;
};

static long hash_some(__u32 i, struct am_hashing *h)
{
	__u64 at = h->job->off + i, c;

	if (at >= AM_PATH_END)
		return 1;
	am_bound(at, 0xfff);
	c = (__u8)h->job->room[AM_HEAD + at];
	h->sum = (h->sum ^ c) * 0x100000001b3ULL;
	return 0;
}

#define S_IFMT_ 00170000
#define S_IFREG_ 0100000

/* I_CTIME_QUERIED is the other bit (Linux 6.13): somebody looked at the time, and nothing changed by that. */
#define AM_CTIME_NSEC 0x7fffffff

/* What is in a file: whoever answers was shown that. Directories change with each name in them. */
static __always_inline __u64 contents_of(__u64 inode)
{
	struct inode *i = (void *)inode;
	__u64 when = 0;

	if (!inode || (am_load(struct inode, i, i_mode) & S_IFMT_) != S_IFREG_)
		return 0;
	if (bpf_core_field_exists(struct inode___sec, i_ctime_sec)) {
		when = am_load(struct inode___sec, i, i_ctime_sec) * 1000000000ULL +
		       (am_load(struct inode___sec, i, i_ctime_nsec) & AM_CTIME_NSEC);
	} else if (bpf_core_field_exists(struct inode___mid, __i_ctime)) {
		bpf_core_read(&when, 8, &((struct inode___mid *)i)->__i_ctime.tv_nsec);
		when += am_load(struct inode___mid, i, __i_ctime.tv_sec) * 1000000000ULL;
	} else {
		bpf_core_read(&when, 8, &((struct inode___old *)i)->i_ctime.tv_nsec);
		when += am_load(struct inode___old, i, i_ctime.tv_sec) * 1000000000ULL;
	}
	return mix(when) + am_load(struct inode, i, i_size);
}

/* Operations by which what is in a file goes somewhere. */
#define AM_CARRIES (1U << AM_EXEC | 1U << AM_READ | 1U << AM_RENAME | 1U << AM_LINK)
/* What an answer to a judged job is for: job->held and job->same. */
static __always_inline void print_job(const struct am_actor *a, struct am_job *job)
{
	struct am_hashing h = {.job = job, .sum = knobs.key};

	bpf_loop(AM_PATH_MAX, hash_some, &h, 0);
	job->same = mix(h.sum + ((__u64)a->generation << 32) + ((__u32)job->op << 16) + job->rule);
	if (job->op == AM_WRITE) /* who was asked for writing alone said nothing of reading */
		job->same = mix(job->same + also_read(job));
	job->held = mix(mix(job->same + job->ino) + ((__u64)job->igen << 32 | job->dev)) |
		    1; /* 0 is the thread itself */
	if (job->ops & AM_CARRIES)
		job->held = mix(job->held + contents_of(job->inode)) | 1;
}

/* What ask() or halt() said is the job's verdict from now on; the marks of its rule are set. */
static __always_inline int take_answer(const struct am_actor *a, struct am_job *job, int said)
{
	job->verdict = said & 0xff;
	if (am_ask_reason(said))
		job->reason = am_ask_reason(said);
	job->told = !(said & AM_ASK_NEW);
	if (job->verdict == AM_ALLOW)
		set_marks(job->session, a->generation, job->marks);
	return said;
}

/* ask() of a judged job (react: halt()). `flags`: AM_F_SCRIPT, AM_OPENS_SCRIPT. Global, as judge(). */
__noinline int ask_job(const struct am_actor *a, __u32 slot, __u32 flags)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	int said;

	if (!a || !job)
		return AM_DENY;
	print_job(a, job);
#ifdef AM_REACT
	if (flags & AM_OPENS_SCRIPT)
		said = was_let_run(a, job, contents_of(job->inode))
			       ? am_say(AM_ALLOW, AM_APPROVED)
			       : am_say(AM_DENY, AM_UNHOLDABLE) | AM_ASK_NEW;
	else if (job->ino && was_let_start(a, job, contents_of(job->inode)))
		said = am_say(AM_ALLOW, AM_APPROVED) | AM_ASK_NEW;
	else
		said = halt(a, job, flags & AM_F_SCRIPT);
#else
	/* else clang passes anything for it, and the verifier wants a number */
	asm volatile("" ::"r"(flags));
	said = ask(a, job->held, job->same);
#endif
	return take_answer(a, job, said);
}

#ifndef AM_REACT
/* halt() of a judged job. Apart from ask_job(), whose chain of calls has no stack left. Global, as judge(). */
__noinline int halt_job(const struct am_actor *a, __u32 slot, __u32 script)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);

	if (!a || !job)
		return AM_DENY;
	print_job(a, job);
	return take_answer(a, job, halt(a, job, script));
}
#endif

#ifdef AM_REACT
/* Whether somebody let an open go on that a rule holds; then the job is let through. Global, as judge(). */
__noinline int let_open(const struct am_actor *a, __u32 slot)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);

	if (!a || !job || !was_let_open(a, job))
		return 0;
	set_marks(job->session, a->generation, job->marks);
	job->verdict = AM_ALLOW;
	job->reason = AM_APPROVED;
	return 1;
}
#endif

/* Operations that change a file. */
#define AM_CHANGES                                                                              \
	(1U << AM_WRITE | 1U << AM_CREATE | 1U << AM_DELETE | 1U << AM_RENAME | 1U << AM_LINK | \
	 1U << AM_ATTR)
/* In `flags` of decide_path(): a new name for what was counted by its old one. */
#define AM_RENAMES (1U << 29)

/* Whether the job's path is below /dev or /proc: what is written there is no file that is changed. */
static __always_inline bool on_device(const struct am_job *job)
{
	__u64 at = job->off;
	const char *path;

	if (at > AM_PATH_END - 6)
		return false;
	am_bound(at, 0xfff);
	path = job->room + AM_HEAD + at;
	return (path[0] == '/' && path[1] == 'd' && path[2] == 'e' && path[3] == 'v' &&
		path[4] == '/') ||
	       (path[0] == '/' && path[1] == 'p' && path[2] == 'r' && path[3] == 'o' &&
		path[4] == 'c' && path[5] == '/');
}

/*
 * The job's file is changed in a step. Returns 0: that is not limited; -1: it is, and this one may be; else it is one too many:
 * the action, and above it enum am_reason. Global, so that the verifier looks at it once.
 */
__noinline int count_file(const struct am_actor *a, __u32 slot, __u32 flags)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_file_key k = {};
	struct am_steps *state;
	struct am_plan *plan;
	__u64 at, serial;
	__u8 one = 1;
	__u32 id;

	if (!a || !job || !a->proc.step)
		return 0;
	id = a->policy;
	serial = a->proc.serial;
	at = a->proc.step - 1;
	am_bound(at, 63);
	plan = bpf_map_lookup_elem(&plans, &id);
	state = bpf_map_lookup_elem(&steps, &serial);
	if (!plan || !state || plan->max_files[at] == ~0U)
		return 0;
	if (flags & AM_RENAMES || on_device(job))
		return -1;
	k.serial = serial;
	k.step = at;
	k.ino = job->ino ? job->ino : job->walk.sum;
	k.dev = job->dev;
	k.igen = job->igen;
	if (bpf_map_lookup_elem(&step_files, &k))
		return -1;
	if (__sync_fetch_and_add(&state->step[at].files, 1) >= plan->max_files[at] ||
	    bpf_map_update_elem(&step_files, &k, &one, BPF_ANY)) {
		__sync_fetch_and_add(&state->step[at].files, -1);
		return sure_action(plan, at) | AM_PLAN_FILES << 8;
	}
	return -1;
}

/*
 * decide_path() from when the job is filled; gives the slot back. Global, so that the verifier looks at it once: `a` is
 * never NULL, but it does not know that.
 */
__noinline int decide_job(const struct am_actor *a, __u32 slot, __u32 flags)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_seen *known = NULL;
	__u32 why, verdict, guessed;
	__u64 print = 0;
	bool counted = false;
	int looked;

	if (!a || !job)
		return AM_DENY;
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
		job->off = AM_PATH_END; /* no path rather than a part of one that never was */
	count_reason(why);
	if (!why && flags & AM_F_DEVICE)
		why = AM_DEVICE;
	plan_first(a, slot, job, why, true);
	if (!why && run_automaton(slot))
		why = AM_NO_STATE;
#ifndef AM_REACT
	if (!why && job->ops == 1U << AM_EXEC && waits_for_arguments(slot, flags)) {
		release(job);
		return AM_ALLOW;
	}
#endif
	verdict = judge(slot, why);
	job->hoped = 0;
#ifdef AM_REACT
	if (verdict == AM_HOLD && !why && flags & AM_OPENED && job->op != AM_EXEC &&
	    let_open(a, slot)) {
		verdict = AM_ALLOW;
		if (job->ops & 1U << AM_EXEC) { /* a script: that is another question */
			job->ops = 1U << AM_EXEC;
			verdict = judge(slot, 0);
		}
	}
#endif
	if (verdict == AM_HOLD && !why &&
	    (!AM_STOPS || (job->op == AM_EXEC && flags & (AM_HALTS | AM_OPENS_SCRIPT)))) {
		int said = ask_job(a, slot, flags);

		verdict = said & 0xff;
		if (verdict == AM_HOLD) {
			if (said & AM_ASK_NEW)
				report(slot, a, flags);
			release(job);
			return AM_WAITS;
		}
	}
	if (verdict < AM_HOLD && a->proc.step && job->ops & AM_CHANGES) {
		int over = count_file(a, slot, flags);

		counted = over < 0;
		if (over > 0) {
			verdict = over & 0xff;
			job->verdict = verdict;
			job->reason = over >> 8;
			job->rule = AM_NO_RULE;
			job->told = 0;
		}
	}
	guessed = job->unsure & ~a->proc.unsure; /* an exec that could not wait for its arguments */
	if (guessed)
		flags |= AM_F_UNSURE;
	if (verdict == AM_KILL || (AM_STOPS && verdict >= AM_HOLD && verdict <= AM_KILL))
		flags |= AM_F_KILLED;
	report(slot, a, flags);
	if (known && verdict == AM_ALLOW && !why && !job->held && !guessed && !job->marks &&
	    !counted && print == decision_print(a, job))
		known->way[print >> 61] = print;
	release(job);
	return verdict;
}

/* What comes of a verdict on a path, which is returned. What waits, or was let, is not blocked. */
static __always_inline __u32 carry_out(__u32 verdict)
{
	bool blocked = verdict >= AM_HOLD && verdict <= AM_KILL;

	if (blocked)
		count(AM_C_BLOCKED);
	if (verdict == AM_KILL || (AM_STOPS && blocked))
		kill_current();
	return verdict;
}

/*
 * Decides operations `ops` on a path. `mnt` is a struct vfsmount, `inode` may be 0 (a name that does not exist yet).
 * Returns the verdict (enum am_action). Cannot tell: the severest verdict of the operations.
 */
static __always_inline __u32 decide_path(struct am_actor *a, __u32 ops, __u64 mnt, __u64 dentry,
					 __u64 inode, __u32 flags)
{
	struct am_job *job;
	__u32 slot = 0, verdict, why;

	count(AM_C_DECISIONS);
	if (a->doomed) {
		kill_current();
		count(AM_C_BLOCKED);
		return fallback(a, ops, AM_KILL, AM_NO_STATE, AM_F_KILLED);
	}
	why = find_tags(a);
	job = why ? NULL : claim(&slot);
	if (!job) {
		verdict = fallback(a, ops, AM_ALLOW, why ? why : AM_NO_SCRATCH, flags);
	} else {
		job->dentry = dentry;
		job->mount = mnt - bpf_core_field_offset(struct mount, mnt);
		describe(job, a, ops);
		inode_of(job, inode);
		verdict = decide_job(a, slot, flags);
	}
	return carry_out(verdict);
}

#endif
