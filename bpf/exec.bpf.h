/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Running a program: the verdict, and the exe tags that the process carries from then on.
 */
#ifndef AGENTMON_EXEC_H
#define AGENTMON_EXEC_H

#include "process.bpf.h"

/* Gives the current process the tags of its new program. Unreachable (memfd): none. */
static __always_inline void set_tags(const struct am_actor *a, __u64 tags)
{
	struct am_proc *p = bpf_map_lookup_elem(&procs, &a->key);

	if (p)
		p->exe_tags = tags;
}

/* Not inlined: see report_bare(). */
static __noinline void send_execed(const struct am_actor *a)
{
	send_process(AM_EXECED, &a->key, &a->proc, (void *)bpf_get_current_task_btf(), a->ppid, 0,
		     0);
}

static __always_inline void retag(const struct am_actor *a, struct task_struct *t)
{
	struct file *f = t->mm->exe_file;
	__u32 slot = 0;
	struct am_job *job = claim(&slot);

	if (!job) {
		/* rules for this program would not be applied: it must not run */
		report_bare(a, AM_EXEC, AM_KILL, AM_NO_SCRATCH, AM_F_KILLED);
		kill_current();
		return;
	}
	job->dentry = (__u64)f->f_path.dentry;
	job->mount = (__u64)f->f_path.mnt - bpf_core_field_offset(struct mount, mnt);
	job->policy = a->policy;
	job->tags = 0;
	if (!walk(slot, AM_PATH_END))
		run_automaton(slot);
	set_tags(a, job->tags);
	release(job);
}

#endif
