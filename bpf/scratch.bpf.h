/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Scratch slots; and, found out in one of them, which exe conditions a process meets.
 */
#ifndef AGENTMON_SCRATCH_H
#define AGENTMON_SCRATCH_H

#include "actor.bpf.h"
#include "automaton.bpf.h"
#include "walk.bpf.h"

struct am_claim {
	__u32 first, taken;
};

static long try_slot(__u32 i, struct am_claim *c)
{
	__u32 id = (c->first + i) & (AM_SLOTS - 1);
	struct am_job *job = bpf_map_lookup_elem(&scratch, &id);

	if (!job || __sync_val_compare_and_swap(&job->busy, 0, 1))
		return 0;
	c->taken = id;
	return 1;
}

/* Claims a scratch slot; its number, or -1 when all that were tried are busy. */
__noinline int claim_slot(void)
{
	struct am_claim c = {.first = bpf_get_smp_processor_id() * 8 +
				      (bpf_get_current_pid_tgid() & 7),
			     .taken = AM_SLOTS};

	/* the first is free but on a busy host: no call for it */
	if (!try_slot(0, &c))
		bpf_loop(AM_SLOT_TRIES, try_slot, &c, 0);
	return c.taken < AM_SLOTS ? (int)c.taken : -1;
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

/* Lists what was found out of the current process, unless somebody did who saw another generation than `was` there. */
static __always_inline void keep_tags(const struct am_actor *a, __u32 was)
{
	struct am_proc_key key = a->key; /* Linux 6.1 takes no key but from the stack */
	struct am_proc *p = bpf_map_lookup_elem(&procs, &key);

	if (!p || __sync_val_compare_and_swap(&p->generation, was, AM_TAGGING) != was)
		return;
	p->exe_tags = a->proc.exe_tags;
	p->parents = a->proc.parents;
	p->unsure = a->proc.unsure;
	p->kin = a->proc.kin;
	barrier();
	*(volatile __u32 *)&p->generation = a->proc.generation;
}

/*
 * Finds out which exe conditions of the policy in force the current process meets, by the program that it runs: at
 * exec, and again at its first decision under another policy. Returns 0, or enum am_reason why they are unknown: then the
 * severest verdict counts. Only threads of the process itself come here, and exec waits for them, so the program is
 * the right one; nobody else need be told of a new policy. Unreachable (memfd): it meets none.
 */
__noinline int renew_tags(struct am_actor *a)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct am_job *job;
	struct file *f;
	__u64 mm, tags;
	__u32 slot = 0, why, was;

	if (!a)
		return AM_NO_STATE;
	mm = (__u64)am_load(struct task_struct, t, mm);
	f = mm ? am_load(struct mm_struct, mm, exe_file) : NULL;
	if (!f)
		return AM_NO_STATE;
	job = claim(&slot);
	if (!job)
		return AM_NO_SCRATCH;
	job->dentry = (__u64)am_load(struct file, f, f_path.dentry);
	job->mount = (__u64)am_load(struct file, f, f_path.mnt) -
		     bpf_core_field_offset(struct mount, mnt);
	job->policy = a->policy;
	job->tags = 0;
	why = walk(slot, AM_PATH_END);
	if (!why && run_automaton(slot))
		why = AM_NO_STATE;
	tags = job->tags;
	release(job);
	if (why && why != AM_PATH_UNREACHABLE)
		return why;
	was = a->proc.generation;
	a->proc.exe_tags = why ? 0 : tags;
	a->proc.generation = a->generation;
	a->proc.kin = a->generation;
	/* another thread was faster: this decision has what it needs */
	keep_tags(a, was);
	return 0;
}

/* Sees to it that a->proc.exe_tags are of the policy that decides. Returns as renew_tags() does. */
static __always_inline __u32 find_tags(struct am_actor *a)
{
	return a->proc.generation == a->generation ? 0 : renew_tags(a);
}

#endif
