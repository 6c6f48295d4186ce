/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hold of a program that was started: its exec cannot be restarted, for the program that called it is gone. In the react tier
 * that is any; in the LSM tier one that a rule holds by its arguments.
 * So the process is stopped (SIGSTOP) before the first instruction of the new one; the daemon freezes it, and takes the
 * stop back. What it may do is not known by who let it run, but by what was answered: whoever lets it run without an
 * answer (SIGCONT, ptrace, thawing it) has it killed, by resumes() in resume.bpf.h, on its way to that first instruction.
 *
 *   halted  written here: which process waits, for what
 *   beat    written by user space: when the daemon was last seen
 *   answers see hold.bpf.h
 */
#ifndef AGENTMON_HALT_H
#define AGENTMON_HALT_H

#include "hold.bpf.h"

/*
 * In `flags` of decide_path(): a program was started; an interpreter opens the script that it was started for; a file was
 * opened.
 */
#define AM_HALTS (1U << 16)
#define AM_OPENS_SCRIPT (1U << 17)
#define AM_OPENED (1U << 18)

/*
 * Nobody is halted if the daemon was not seen for so long. More than knobs.park_ns: who is stopped costs nothing, so a host
 * that is busy need not have its programs killed.
 */
#define AM_BEAT_NS 2000000000ULL

/* Those that wait, and those whose interpreter has yet to open the script. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * AM_MAX_HELD);
	__type(key, struct am_proc_key);
	__type(value, struct am_halted);
} halted SEC(".maps");

/* While there are none, nobody pays for looking. */
__s64 nhalted;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64); /* boot time */
} beat SEC(".maps");

/* It has ended, or runs another program: what it waited for is void. */
static __always_inline void forget_halted(const struct am_proc_key *k)
{
	struct am_proc_key key = *k;
	struct am_halted *h = bpf_map_lookup_elem(&halted, &key);
	bool waits;

	if (!h)
		return;
	waits = !h->released;
	if (!bpf_map_delete_elem(&halted, &key) && waits)
		__sync_fetch_and_add(&nhalted, -1);
}

/* Whether a session was allowed this, whatever is there. */
static __always_inline bool is_approved(const struct am_actor *a, __u64 same, __u64 now)
{
	struct am_approval_key session = {.serial = a->proc.serial, .what = same};
	__u64 *until = bpf_map_lookup_elem(&approvals, &session);

	return until && now < *until;
}

#ifdef AM_REACT
/*
 * Whether somebody let the current process run this very program, before it was started: the daemon asked while its open
 * waited (fanotify). Only once.
 */
static __always_inline bool was_let_start(const struct am_actor *a, const struct am_job *job,
					  __u64 contents)
{
	struct am_hold_key k = {};
	struct am_answer *answer;

	k.start_ns = a->key.start_ns;
	k.tgid = a->key.tgid;
	k.tid = a->key.tgid;
	k.object = mix(job->ino + 1) | 1;
	answer = bpf_map_lookup_elem(&answers, &k);
	if (!answer || answer->verdict != AM_ALLOW || answer->ino != job->ino ||
	    answer->contents != contents || bpf_ktime_get_boot_ns() >= answer->until_ns)
		return false;
	bpf_map_delete_elem(&answers, &k);
	return true;
}
#endif

/*
 * What becomes of a program that was started, and that a rule holds; `script`: it is one. As ask(). In the LSM tier it is not
 * stopped yet: see resume.bpf.h.
 */
static __always_inline int halt(const struct am_actor *a, const struct am_job *job, bool script)
{
	struct am_proc_key key = a->key;
	struct am_halted fresh = {}, *h;
	struct am_hold_key k = {};
	__u64 now = bpf_ktime_get_boot_ns(), *seen;
	__u32 zero = 0;

	h = bpf_map_lookup_elem(&halted, &key);
	fresh.asked_ns = now;
	fresh.session = a->proc.session;
	fresh.generation = a->generation;
	if (is_approved(a, job->same, now)) {
		/* the script that its interpreter opens by this name is it as well, if the name leads there yet */
		fresh.released = fresh.any = 1;
		fresh.object[0] = job->same;
		if (AM_TIER == AM_TIER_REACT && script &&
		    bpf_map_update_elem(&halted, &key, &fresh, BPF_NOEXIST))
			return am_say(AM_DENY, AM_UNHOLDABLE) | AM_ASK_NEW;
		return am_say(AM_ALLOW, AM_APPROVED);
	}
	seen = bpf_map_lookup_elem(&beat, &zero);
	if (!seen || (now - *seen > AM_BEAT_NS && now - *seen > knobs.park_ns))
		return am_say(AM_DENY, AM_NOT_PARKED) | AM_ASK_NEW;
	k.start_ns = key.start_ns;
	k.tgid = key.tgid;
	k.tid = bpf_get_current_pid_tgid();
	k.object = job->held;
	bpf_map_delete_elem(&answers, &k); /* of the same program, when it was started before */
	if (!h) {
		fresh.object[0] = job->held;
		fresh.marks = job->marks;
		fresh.script = script;
		if (bpf_map_update_elem(&halted, &key, &fresh, BPF_NOEXIST))
			return am_say(AM_DENY, AM_UNHOLDABLE) | AM_ASK_NEW;
		__sync_fetch_and_add(&nhalted, 1);
	} else {
		/* the interpreter, after its script */
		h->object[1] = job->held;
		h->marks |= job->marks;
		if (h->released) {
			h->released = 0;
			__sync_fetch_and_add(&nhalted, 1);
		}
	}
	if (AM_TIER == AM_TIER_REACT && bpf_send_signal(AM_SIGSTOP))
		return am_say(AM_DENY, AM_UNHOLDABLE) | AM_ASK_NEW;
	return AM_HOLD | AM_ASK_NEW;
}

#ifdef AM_REACT
/*
 * Whether the script that an interpreter opens is the one that somebody let run: the name may lead elsewhere by now, and
 * other content be there. Only once.
 */
static __always_inline bool was_let_run(const struct am_actor *a, const struct am_job *job,
					__u64 contents)
{
	struct am_proc_key key = a->key;
	struct am_halted *h = bpf_map_lookup_elem(&halted, &key);
	__u64 now = bpf_ktime_get_boot_ns();
	struct am_approval_key name = {};
	struct am_hold_key k = {};
	struct am_answer *answer;
	bool let;

	if (is_approved(a, job->same, now))
		return true;
	if (!h || !h->released)
		return false;
	if (h->any) {
		/* a name (a symbolic link) that leads elsewhere than when it was approved: the next one asks again */
		name.serial = a->proc.serial;
		name.what = h->object[0];
		let = is_approved(a, mix(name.what + job->ino), now);
		if (!let)
			bpf_map_delete_elem(&approvals, &name);
		bpf_map_delete_elem(&halted, &key);
		return let;
	}
	k.start_ns = key.start_ns;
	k.tgid = key.tgid;
	k.tid = key.tgid;
	k.object = h->object[0];
	answer = bpf_map_lookup_elem(&answers, &k);
	let = h->script && answer && answer->verdict == AM_ALLOW && answer->ino == job->ino &&
	      answer->contents == contents;
	bpf_map_delete_elem(&halted, &key);
	return let;
}

/*
 * Whether somebody let the current thread open a file, for what it has been opened for. The daemon asked while the open
 * waited (fanotify), and put the operations into the answer's `contents`. Only once.
 */
static __always_inline bool was_let_open(const struct am_actor *a, struct am_job *job)
{
	struct am_hold_key k = {};
	struct am_answer *answer;
	bool let;

	k.start_ns = a->key.start_ns;
	k.tgid = a->key.tgid;
	k.tid = bpf_get_current_pid_tgid();
	k.object = mix(job->ino) | 1;
	answer = bpf_map_lookup_elem(&answers, &k);
	let = answer && answer->verdict == AM_ALLOW && answer->ino == job->ino &&
	      bpf_ktime_get_boot_ns() < answer->until_ns &&
	      !(job->ops & (1U << AM_READ | 1U << AM_WRITE) & ~answer->contents);
	if (!let)
		return false;
	bpf_map_delete_elem(&answers, &k);
	job->held = k.object; /* not to be remembered as allowed */
	return true;
}
#endif

#endif
