/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the arguments of a program say, read from the memory of its new image: nobody else has that yet.
 *
 * They are matched by the policy's automaton, as if they were a path: each is a component. A slash in an argument and
 * the NUL that separates them change places, which costs nothing: a byte's class is looked up in the second half of
 * am_policy.cls. The exe tags of the states there are facts.
 */
#ifndef AGENTMON_ARGUMENTS_H
#define AGENTMON_ARGUMENTS_H

#include "decide.bpf.h"

#define AM_ARGUMENTS 256
#define AM_PIECE 2048 /* bytes that are read at once: half of what the path's room holds */
/*
 * Arguments, and bytes of them, that are looked at; what is beyond is not known. Compilers and xargs stay below, and no
 * program start takes longer than about two milliseconds for it (2 to 7 ns a byte).
 */
#define AM_ARGS_MAX 8192
#define AM_ARGS_BYTES (256 << 10)

static long next_piece(__u32 i, struct am_run *r)
{
	__u32 slot = r->slot;
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_args *g;
	__u64 len, at;
	char *path;
	long n;

	if (!job)
		return 1;
	g = &job->args;
	if (!g->left)
		return 1;
	path = job->room + AM_HEAD;
	n = bpf_probe_read_user_str(path + AM_PATH_MAX, AM_PIECE, (void *)g->at);
	if (n < 0 || g->bytes > AM_ARGS_BYTES)
		return 1;
	len = n ? n - 1 : 0; /* Linux 6.1 does not count the NUL of an empty string */
	am_bound(len, 0x7ff);
	if (!g->skip) {
		at = AM_PATH_END - len;
		am_bound(at, 0xfff);
		bpf_probe_read_kernel(path + at, len, path + AM_PATH_MAX);
		if (!g->inside) {
			at--;
			am_bound(at, 0xfff);
			path[at] = 0;
		}
		job->at = at;
		if (at < AM_PATH_END)
			bpf_loop(AM_PIECE / AM_CHUNK + 1, next_chunk, r, 0);
		if (!job->state) { /* whatever follows: nothing more can match */
			g->left = 0;
			return 1;
		}
	}
	g->at += len;
	g->bytes += len + 1;
	g->inside = n == AM_PIECE;
	if (!g->inside) {
		g->at++;
		g->left--;
		if (g->skip)
			g->skip--;
	}
	return 0;
}

/*
 * Runs the automaton of a policy over `argc` arguments that lie at `at`, from number `skip` on; job->tags says what they
 * match. Returns how many were not looked at: then that is not all.
 */
static __always_inline __u32 run_words(__u32 slot, struct am_job *job, const struct am_policy *p,
				       const __u16 *t, __u64 at, __u32 argc, __u32 skip)
{
	struct am_run r = {.slot = slot};
	__u32 id;

	job->args.at = at;
	job->args.bytes = 0;
	job->args.left = argc;
	job->args.skip = skip;
	job->args.inside = 0;
	job->state = p->args_start;
	job->tags = 0;
	if (job->state >= p->sticky_first)
		enter(slot, p->accept_base, row_of(p, t, job->state), 0);
	job->classes = AM_ARGUMENTS;
	bpf_loop(AM_ARGS_MAX, next_piece, &r, 0);
	job->classes = 0;
	if (!job->args.left)
		end_run(slot, job, p, t, &id);
	return job->args.left;
}

/*
 * Sets the facts that the `argc` arguments of the current process say, which lie at `at`, from number `skip` on; 0:
 * nobody knows which they are. Global, so that the verifier looks at it once. Returns 0.
 */
__noinline int read_arguments(struct am_actor *a, __u64 at, __u32 argc, __u32 skip)
{
	__u32 zero = 0, slot = 0, id, known, left;
	struct am_policy *p;
	struct am_job *job;
	__u16 *t;

	if (!a)
		return 0;
	id = a->policy;
	p = bpf_map_lookup_elem(&policies, &id);
	t = bpf_map_lookup_elem(&arena, &zero);
	if (!p || !t || !p->args)
		return 0;
	a->facts &= ~p->args;
	a->proc.unsure |= p->args;
	job = skip ? claim(&slot) : NULL;
	if (!job)
		return 0;
	job->policy = id;
	left = run_words(slot, job, p, t, at, argc, skip);
	known = job->tags & p->args;
	release(job);
	a->facts |= known;
	a->proc.unsure &= ~p->args;
	if (left)
		a->proc.unsure |= p->args & ~known;
	return 0;
}

#endif
