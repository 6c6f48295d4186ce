/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hold: an action waits in the kernel before it happens, until somebody answers.
 *
 * The thread is sent SIGSTOP and SIGCONT, which leaves nothing but "a signal is pending", and the call returns
 * ERESTARTNOINTR: on its way back to user space it restarts, meets the hook again, and so on, until user space freezes the
 * process (docs/design/0007-hold.md). Frozen, it stands at the end of the call: thawed, it comes here once more, and finds
 * its answer. What the program sees is a call that took long.
 *
 *   held       written here: which thread waits for which object, since when
 *   answers    written by user space: AM_HOLD it is frozen, AM_ALLOW, AM_DENY
 *   approvals  written by user space: what a whole session may do from now on
 */
#ifndef AGENTMON_HOLD_H
#define AGENTMON_HOLD_H

#include "actor.bpf.h"

#define AM_ERESTARTNOINTR 513 /* include/linux/errno.h */
#define AM_SIGSTOP 19
#define AM_SIGCONT 18
#define PF_IO_WORKER 0x10 /* include/linux/sched.h */
#define PF_KTHREAD 0x200000
/* asm/unistd_64.h: entered by others too (SQPOLL), and what a ring does cannot be restarted */
#define NR_IO_URING_SETUP 425
#define NR_IO_URING_ENTER 426

/* What ask() says, beside the verdict in the lowest byte. */
#define AM_ASK_NEW 0x100 /* to be told */
#define am_ask_reason(a) ((a) >> 16)

/* Questions that may be open at once on this host. */
#define AM_MAX_HELD 1024

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * AM_MAX_HELD);
	__type(key, struct am_hold_key);
	__type(value, struct am_held);
} held SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * AM_MAX_HELD);
	__type(key, struct am_hold_key);
	__type(value, struct am_answer);
} answers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct am_approval_key);
	__type(value, __u64); /* until when, boot time */
} approvals SEC(".maps");

#ifndef AM_REACT
/*
 * Sockets whose connection somebody approved, and for which session: what is sent there is not asked for again. What is
 * pushed out by 8,192 later ones is.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, __u64);
} passed SEC(".maps");

/* While there are none, nobody pays for looking. */
__u32 npassed;

static __always_inline void let_pass(struct sock *sk, const struct am_actor *a)
{
	__u64 cookie = bpf_get_socket_cookie(sk);

	if (!bpf_map_update_elem(&passed, &cookie, &a->proc.serial, BPF_ANY))
		npassed = 1;
}

static __always_inline bool may_pass(struct sock *sk, const struct am_actor *a)
{
	__u64 cookie, *serial;

	if (!npassed)
		return false;
	cookie = bpf_get_socket_cookie(sk);
	serial = bpf_map_lookup_elem(&passed, &cookie);
	return serial && *serial == a->proc.serial;
}
#endif

/* More than enum am_action: the call is to restart; somebody approved it just now. */
#define AM_WAITS 5
#define AM_LET 6
/* In `flags` of decide_net(): the connection was approved. */
#define AM_PASSES (1U << 16)

/*
 * A fingerprint of the call that is under way, the same when it restarts: from where it was made, and with what. 0: it does
 * not restart when it is told to.
 */
static __always_inline __u64 call_print(struct task_struct *t)
{
	struct pt_regs *r;
	__s32 nr; /* the kernel looks at no more of it */

	if (t->flags & (PF_IO_WORKER | PF_KTHREAD))
		return 0;
	if (AM_TIER == AM_TIER_REACT)
		return 1; /* network hooks do not see the registers; no call asks twice there */
	r = (void *)bpf_task_pt_regs(t);
	nr = r->orig_ax;
	if (nr < 0 || nr == NR_IO_URING_SETUP || nr == NR_IO_URING_ENTER)
		return 0;
	return mix(mix(mix(r->ip + nr) + r->sp + r->di) + r->si + r->dx) | 1;
}

/* Nothing stops, and nobody is told: all that is left is that a signal is pending. */
static __always_inline bool kick(void)
{
	return bpf_send_signal_thread(AM_SIGSTOP) || bpf_send_signal_thread(AM_SIGCONT);
}

#ifdef AM_REACT
/* The call of a thread that waits is about to return: network hooks may send no signals. */
static __always_inline void kick_waiting(struct task_struct *t)
{
	struct am_hold_key k = {};

	k.start_ns = t->group_leader->start_boottime;
	k.tgid = t->tgid;
	k.tid = t->pid;
	if (bpf_map_lookup_elem(&held, &k) && kick())
		count(AM_C_SIGNAL_FAILED);
}
#endif

#ifndef AM_REACT
/*
 * The program that a call opened has no name any more, and its thread waits in that call to start what is there: it was
 * replaced between the open and the hook. The call is to restart and to open what its path leads to by now, which is another
 * question. Not for longer than it takes to freeze it: the file may have been named by a descriptor.
 */
static __noinline bool was_replaced(void)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct am_hold_key k = {};
	struct am_held *last;

	k.start_ns = t->group_leader->start_boottime;
	k.tgid = t->tgid;
	k.tid = t->pid;
	last = bpf_map_lookup_elem(&held, &k);
	return last && !last->used_ns && last->call == call_print(t) &&
	       bpf_ktime_get_boot_ns() - last->asked_ns <= knobs.park_ns && !kick();
}
#endif

#define am_say(verdict, reason) ((verdict) | (reason) << 16)

/*
 * What becomes of an action that a rule holds: AM_ALLOW, AM_DENY, or AM_HOLD: the thread has been kicked, and the call must
 * return -AM_ERESTARTNOINTR. `object`: what is shown to whoever answers; `same`: what an approval for the session covers
 * (of an address: the same). Global, so that the verifier looks at it once.
 */
__noinline int ask(const struct am_actor *a, __u64 object, __u64 same)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct am_approval_key session = {};
	struct am_held fresh = {};
	struct am_hold_key k = {};
	struct am_answer *answer;
	struct am_held *h, *last;
	__u64 now = bpf_ktime_get_boot_ns(), *until;
	int said = AM_HOLD;

	if (!a)
		return AM_DENY;
	k.start_ns = a->key.start_ns;
	k.tgid = a->key.tgid;
	k.tid = bpf_get_current_pid_tgid();
	last = bpf_map_lookup_elem(&held, &k); /* object 0: when it was last kicked */
	k.object = object;
	session.serial = a->proc.serial;
	session.what = same;
	until = bpf_map_lookup_elem(&approvals, &session);
	if (until && now < *until) {
		if (last)
			last->used_ns = now;
		return am_say(AM_ALLOW, AM_APPROVED);
	}
	fresh.call = call_print(t);
	if (!fresh.call)
		return am_say(AM_DENY, AM_UNHOLDABLE) | AM_ASK_NEW;
	h = bpf_map_lookup_elem(&held, &k);
	answer = h ? bpf_map_lookup_elem(&answers, &k) : NULL;
	if (answer && answer->verdict == AM_DENY && now < answer->until_ns) {
		if (last)
			last->used_ns = now;
		return am_say(AM_DENY, AM_REFUSED);
	}
	/*
	 * Once: again only if the same call still waits for something else, and starts anew for it: a program and its
	 * interpreter, both names of a rename. Not for addresses, of which a call has one: another process that changes it in the
	 * memory of who waits would have it used again. Nor in the react tier, where no call asks twice, and none is told from others.
	 */
	if (answer && answer->verdict == AM_ALLOW && now < answer->until_ns &&
	    (!h->used_ns ||
	     (AM_TIER == AM_TIER_LSM && object != same && last && !last->used_ns &&
	      last->asked_ns > h->used_ns && last->call == h->call && h->call == fresh.call))) {
		if (!h->used_ns) {
			said |= AM_ASK_NEW;
			if (last)
				last->used_ns = now;
		}
		h->used_ns = now;
		h->call = fresh.call;
		return am_say(AM_ALLOW, AM_APPROVED) | (said & AM_ASK_NEW);
	}
	if (h && answer && answer->verdict != AM_HOLD) {
		/* used, or too late: it is a new question */
		bpf_map_delete_elem(&answers, &k);
		h->asked_ns = now;
		h->used_ns = 0;
		h->call = fresh.call;
		said |= AM_ASK_NEW;
	} else if (h && !answer && now - h->asked_ns > knobs.park_ns) {
		bpf_map_delete_elem(&held, &k);
		if (last)
			last->used_ns = now;
		return am_say(AM_DENY, AM_NOT_PARKED) | AM_ASK_NEW;
	} else if (!h) {
		fresh.asked_ns = now;
		if (bpf_map_update_elem(&held, &k, &fresh, BPF_NOEXIST))
			return am_say(AM_DENY, AM_UNHOLDABLE) | AM_ASK_NEW;
		said |= AM_ASK_NEW;
	}
	fresh.asked_ns = now;
	fresh.used_ns = 0;
	k.object = 0;
	if (bpf_map_update_elem(&held, &k, &fresh, BPF_ANY) || (AM_TIER == AM_TIER_LSM && kick()))
		return am_say(AM_DENY, AM_UNHOLDABLE) | AM_ASK_NEW;
	return said;
}

#endif
