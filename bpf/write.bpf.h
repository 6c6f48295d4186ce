/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * max-write of a step: how much is written to regular files. These programs see every read and write of the host, so user space
 * attaches them only while a plan asks for it.
 *
 * LSM: before it happens, to the byte, by what the system call asks for; a short write gives nothing back. The parts of a
 * writev() are read from memory that another thread may change meanwhile. Calls that are not known (io_submit, io_uring) are
 * refused. React: after it has happened, by what was really written; then the process ends, as for calls that are not known.
 * A shared mapping of a file that is open for writing counts whole when it is made, and what it grows by.
 */
#ifndef AGENTMON_WRITE_H
#define AGENTMON_WRITE_H

#include "plan.bpf.h"

#define AM_MAY_WRITE 2
#define AM_MAP_SHARED 1
#define AM_FMODE_WRITE 2
#define AM_TS_COMPAT 2
#define AM_X32 0x40000000 /* in the number of a call */
#define AM_ANY_SIZE (~0ULL >> 1)

static __always_inline __u64 file_of(struct task_struct *t, long fd)
{
	struct file **fds = t->files->fdt->fd;
	__u64 f = 0;

	bpf_probe_read_kernel(&f, sizeof(f), fds + (__u32)fd);
	return f;
}

static __always_inline bool is_regular(__u64 file)
{
	struct inode *i = file ? am_load(struct file, (struct file *)file, f_inode) : NULL;

	return i && (am_load(struct inode, i, i_mode) & S_IFMT_) == S_IFREG_;
}

/*
 * Counts bytes in the step of a process. Returns 0, or what becomes of it (enum am_action). `done`: they are written. Global, so
 * that the verifier looks at it once.
 */
__noinline int count_bytes(const struct am_actor *a, __u64 bytes, __u32 done)
{
	struct am_steps *state;
	struct am_plan *plan;
	__u64 at, serial, most;
	__u32 id;

	if (!a || !a->proc.step)
		return 0;
	id = a->policy;
	serial = a->proc.serial;
	at = a->proc.step - 1;
	am_bound(at, 63);
	plan = bpf_map_lookup_elem(&plans, &id);
	state = bpf_map_lookup_elem(&steps, &serial);
	if (!plan || !state)
		return AM_DENY;
	most = plan->max_write[at];
	if (most == ~0ULL)
		return 0;
	if (bytes > AM_ANY_SIZE)
		bytes = AM_ANY_SIZE;
	if (done && bytes > most)
		bytes = most + 1; /* enough to be overspent() */
	if ((done || bytes <= most) &&
	    __sync_fetch_and_add(&state->step[at].written, bytes) + bytes <= most)
		return 0;
	if (!done && bytes <= most)
		__sync_fetch_and_add(&state->step[at].written, -bytes);
	return sure_action(plan, at);
}

/* What comes of it for who writes. Not inlined: see report_bare(). Returns -EPERM if it is refused. */
static __noinline int write_bytes(__u64 bytes, __u32 done)
{
	struct am_actor a = {};
	__u32 verdict, reason = AM_PLAN_BYTES;
	int who = identify(&a);

	if (!who || (who > 0 && !a.proc.step) || a.doomed)
		return 0;
	if (who < 0) { /* it is in a step, and nobody knows of which plan */
		count(AM_C_NO_STATE);
		verdict = AM_DENY;
		reason = AM_NO_STATE;
	} else if (a.out) {
		verdict = a.part;
		reason = a.out;
	} else {
		verdict = count_bytes(&a, bytes, done);
	}
	if (verdict < AM_HOLD)
		return 0;
	report_bare(&a, AM_WRITE, verdict, am_by(AM_NO_RULE, reason),
		    done || verdict == AM_KILL ? AM_F_KILLED : 0);
	count(AM_C_BLOCKED);
	if (done || verdict == AM_KILL)
		kill_current();
	return -EPERM;
}

/* Whether the process is in a step at all: most are not. */
static __always_inline bool steps_on(struct task_struct *t)
{
	struct am_proc_key k = {};
	struct am_proc *p;

	k.tgid = t->tgid;
	k.start_ns = t->group_leader->start_boottime;
	p = bpf_map_lookup_elem(&procs, &k);
	return p && p->step;
}

/*
 * The number of a call, as in the table of its kind; the kernel looks at no more of it than 32 bits either. x32 has its own
 * ones from 512 on.
 */
static __always_inline __u32 call_number(const struct pt_regs *r, bool compat)
{
	return compat ? (__u32)r->orig_ax : (__u32)r->orig_ax & ~AM_X32;
}

/* The mmap of old says in memory what it is for, which another thread may change. */
static __always_inline bool is_old_mmap(const struct pt_regs *r, bool compat)
{
	return compat && call_number(r, compat) == 90;
}

/* By how much a call lets mappings show more of a file: mremap, or remap_file_pages, which shows another part. */
static __always_inline __u64 grows(const struct pt_regs *r, bool compat)
{
	__u32 nr = call_number(r, compat);
	__u64 was, is;

	if (nr == (compat ? 163 : 25)) {
		was = compat ? (__u32)r->cx : r->si;
		is = compat ? (__u32)r->dx : r->dx;
		return is > was ? is - was : 0;
	}
	if (nr == (compat ? 257 : 216))
		return compat ? (__u32)r->cx : r->si;
	return 0;
}

#ifndef AM_REACT

struct am_adding {
	__u64 at, left, sum;
};

static long add_part(__u32 i, struct am_adding *a)
{
	__u64 part[2] = {};

	if (i >= a->left)
		return 1;
	if (bpf_probe_read_user(part, sizeof(part), (void *)(a->at + i * sizeof(part)))) {
		a->sum = AM_ANY_SIZE;
		return 1;
	}
	a->sum += part[1];
	return 0;
}

/* What is left of a file from where a call copies; of anything else, all that is asked for. */
static __always_inline __u64 left_of(struct task_struct *t, long fd, __u64 offset, __u64 asked)
{
	__u64 f = file_of(t, fd), pos = 0, size;
	struct inode *i;

	if (!is_regular(f))
		return asked;
	if (offset)
		bpf_probe_read_user(&pos, sizeof(pos), (void *)offset);
	else
		pos = am_load(struct file, (struct file *)f, f_pos);
	i = am_load(struct file, (struct file *)f, f_inode);
	size = am_load(struct inode, i, i_size);
	size = pos < size ? size - pos : 0;
	return asked < size ? asked : size;
}

/* How much the system call under way asks to write. */
static __noinline __u64 asked_bytes(struct task_struct *t)
{
	struct pt_regs *r = (void *)bpf_task_pt_regs(t);
	struct am_adding parts = {};

	if (t->flags & PF_IO_WORKER) /* its registers are those of whatever call it was made in */
		return AM_ANY_SIZE;
	if (t->thread_info.status & AM_TS_COMPAT) {
		switch (call_number(r, true)) {
		case 4: /* write, pwrite64 */
		case 181:
			return (__u32)r->dx;
		}
		return AM_ANY_SIZE;
	}
	switch (call_number(r, false)) {
	case 1: /* write, pwrite64 */
	case 18:
		return r->dx;
	case 285: /* fallocate */
		return r->r10;
	case 20: /* writev, pwritev, pwritev2 */
	case 296:
	case 328:
		parts.at = r->si;
		parts.left = r->dx;
		bpf_loop(1024, add_part, &parts, 0);
		return parts.sum;
	case 40: /* sendfile */
		return left_of(t, r->si, r->dx, r->r10);
	case 326: /* copy_file_range */
		return left_of(t, r->di, r->si, r->r8);
	case 275: /* splice, from a pipe */
		return r->r8;
	}
	return AM_ANY_SIZE;
}

/* Remembers that an enrolled process has a shared mapping that it may write by. Not in `stepping`: a mark writes that. */
static __always_inline void maps_now(struct task_struct *t)
{
	struct am_proc_key k = {};
	struct am_proc *p;

	k.tgid = t->tgid;
	k.start_ns = t->group_leader->start_boottime;
	p = bpf_map_lookup_elem(&procs, &k);
	if (p)
		p->args = AM_MAPS;
}

static __always_inline bool maps_files(struct task_struct *t)
{
	struct am_proc_key k = {};
	struct am_proc *p;

	k.tgid = t->tgid;
	k.start_ns = t->group_leader->start_boottime;
	p = bpf_map_lookup_elem(&procs, &k);
	return p && p->args == AM_MAPS;
}

SEC("lsm/file_permission")
int BPF_PROG(write_check, struct file *f, int mask)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();

	if (!(mask & AM_MAY_WRITE) || !steps_on(t) || !is_regular((__u64)f))
		return 0;
	return write_bytes(asked_bytes(t), 0);
}

/* By the registers: how a mapping is shared is an argument of the hook, but another one of security_mmap_file() (objects.py). */
SEC("lsm/mmap_file")
int BPF_PROG(map_check, struct file *f)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct pt_regs *r = (void *)bpf_task_pt_regs(t);
	bool compat = t->thread_info.status & AM_TS_COMPAT, old = is_old_mmap(r, compat);

	if (!f || (!old && call_number(r, compat) != (compat ? 192 : 9)))
		return 0;
	if (!old && !((compat ? r->si : r->r10) & AM_MAP_SHARED))
		return 0;
	if (!(f->f_mode & AM_FMODE_WRITE) || !is_regular((__u64)f))
		return 0;
	if (!steps_on(t)) {
		maps_now(t); /* a mark may begin a step later */
		return 0;
	}
	maps_now(t);
	return write_bytes(old ? AM_ANY_SIZE : compat ? (__u32)r->cx : r->si, 0);
}

/*
 * The only hook that sees a mapping grow, and not which one: of a process that has a shared one, all count. Both ways, in
 * place and to another one, come through here; what remap_file_pages() maps has a hook of its own since Linux 6.12 alone.
 */
SEC("lsm/mmap_addr")
int BPF_PROG(grow_check)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct pt_regs *r = (void *)bpf_task_pt_regs(t);
	__u64 more = grows(r, t->thread_info.status & AM_TS_COMPAT);

	return more && steps_on(t) && maps_files(t) ? write_bytes(more, 0) : 0;
}

#else

/* The descriptor that a call has written to; -1: it writes to none. */
static __always_inline long written_to(const struct pt_regs *r, bool compat)
{
	if (compat) {
		switch (call_number(r, true)) {
		case 4: /* write, writev, pwrite64, sendfile, sendfile64, pwritev, pwritev2 */
		case 146:
		case 181:
		case 187:
		case 239:
		case 334:
		case 379:
			return (__u32)r->bx;
		case 313: /* splice, copy_file_range */
		case 377:
			return (__u32)r->dx;
		}
		return -1;
	}
	switch (call_number(r, false)) {
	case 1: /* write, pwrite64, writev, sendfile, pwritev, pwritev2; the last three of x32 */
	case 18:
	case 20:
	case 40:
	case 296:
	case 328:
	case 516:
	case 535:
	case 547:
		return (__u32)r->di;
	case 275: /* splice, copy_file_range */
	case 326:
		return (__u32)r->dx;
	}
	return -1;
}

/* The same of a call that says by nothing how much it has written; sets what it may be. */
static __always_inline long filled(const struct pt_regs *r, bool compat, __u64 *bytes)
{
	__u32 nr = call_number(r, compat), how;

	if (nr ==
	    (compat ? 324 : 285)) { /* fallocate: the length of the 32-bit one is in two halves */
		*bytes = compat ? (__u64)(__u32)r->bp << 32 | (__u32)r->di : r->r10;
		return compat ? (__u32)r->bx : (__u32)r->di;
	}
	if (nr != (compat ? 54 : 16) && (compat || nr != 514)) /* ioctl, also of x32 */
		return -1;
	how = compat ? r->cx : r->si;
	switch (how) {
	case 0x40049409: /* FICLONE, FICLONERANGE */
	case 0x4020940d:
	case 0x40305828: /* FS_IOC_RESVSP, FS_IOC_RESVSP64, FS_IOC_ZERO_RANGE */
	case 0x4030582a:
	case 0x40305839:
	case 0x402c5828: /* the same, as 32-bit programs have them */
	case 0x402c582a:
	case 0x402c5839:
		*bytes = AM_ANY_SIZE;
		return compat ? (__u32)r->bx : (__u32)r->di;
	}
	return -1;
}

/* Whether a call hands over writes that are done elsewhere: io_submit. io_uring is seen where it does them, see judge_ring(). */
static __always_inline bool submits(const struct pt_regs *r, bool compat)
{
	__u32 nr = call_number(r, compat);

	return nr == (compat ? 248 : 209) || (!compat && nr == 544);
}

#define AM_VM_SHARED 8
#define AM_VM_MAYWRITE 0x20

struct am_looking {
	__u32 found;
};

static long look_at(struct task_struct *t, struct vm_area_struct *v, struct am_looking *l)
{
	__u64 flags = am_load(struct vm_area_struct, v, vm_flags);
	__u64 f = (__u64)am_load(struct vm_area_struct, v, vm_file);

	l->found = flags & AM_VM_SHARED && flags & AM_VM_MAYWRITE && is_regular(f);
	return 0;
}

/* Whether what is mapped there is a file, for all, that may be written by it. What cannot be looked at is. */
static __always_inline bool shows_file(struct task_struct *t, __u64 at)
{
	struct am_looking l = {.found = 1};

	bpf_find_vma(t, at, look_at, &l, 0);
	return l.found;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(write_exit, struct pt_regs *r, long ret)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	bool compat = t->thread_info.status & AM_TS_COMPAT;
	__u32 nr = call_number(r, compat);
	__u64 bytes = ret, f;
	long fd;

	if (ret < 0 && ret > -4096)
		return 0;
	fd = written_to(r, compat);
	if (fd >= 0) {
		if (!ret || !steps_on(t))
			return 0;
	} else if (grows(r, compat)) {
		/* mremap says where it is now, remap_file_pages was told */
		if (steps_on(t) &&
		    shows_file(t, ret ? (__u64)ret : (compat ? (__u32)r->bx : r->di)))
			write_bytes(grows(r, compat), 1);
		return 0;
	} else if (submits(r, compat) || is_old_mmap(r, compat)) {
		if (ret && steps_on(t))
			write_bytes(AM_ANY_SIZE, 1);
		return 0;
	} else if (nr == (compat ? 192 : 9)) { /* mmap, of a file for all */
		if (!((compat ? r->si : r->r10) & AM_MAP_SHARED))
			return 0;
		fd = compat ? (__u32)r->di : (__u32)r->r8;
		bytes = compat ? (__u32)r->cx : r->si;
		if (fd == 0xffffffff || !steps_on(t))
			return 0;
		f = file_of(t, fd);
		if (!f || !(am_load(struct file, (struct file *)f, f_mode) & AM_FMODE_WRITE))
			return 0;
	} else {
		fd = filled(r, compat, &bytes);
		if (fd < 0 || !steps_on(t))
			return 0;
	}
	f = file_of(t, fd);
	if (is_regular(f))
		write_bytes(bytes, 1);
	return 0;
}

#endif

#endif
