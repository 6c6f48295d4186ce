// SPDX-License-Identifier: GPL-2.0-only
/*
 * React tier, for kernels without BPF LSM: the network is refused before it happens, a program dies before its first
 * instruction, and an open that should not have been ends the process before it can use the descriptor.
 *
 *   cgroup/connect4, connect6, sendmsg4, sendmsg6   connect, and send on sockets that are not connected (UDP)
 *   cgroup/sock_create                              raw and other sockets that no address rule can judge
 *   tp_btf/sched_process_exec                       exec
 *   tp_btf/sys_exit                                 read, write, create: the file that was really opened
 *   tp_btf/io_uring_submit_req (_sqe before 6.3)     opens through io_uring, which sys_exit does not see
 *   tp_btf/sched_process_fork, _exit; iter/task     the process table
 */
#define AM_TIER AM_TIER_REACT
#define AM_REACT
#include "exec.bpf.h"
#include "net.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define FMODE_READ 1
#define FMODE_WRITE 2
#define FMODE_PATH 0x4000
#define FMODE_CREATED 0x100000
#define O_TRUNC 01000
#define O_TMPFILE 020000000
#define TS_COMPAT 2   /* arch/x86/include/asm/thread_info.h: a 32-bit system call is under way */
#define X32_BIT 0x40000000
#define IORING_OP_OPENAT 18
#define IORING_OP_OPENAT2 28
#define IORING_OP_SOCKET 45

enum call {
	CALL_OTHER,
	CALL_OPEN,
	CALL_CREAT,
	CALL_OPENAT,
	CALL_OPENAT2,
	CALL_HANDLE,
	CALL_SOCKET,
	CALL_FORK,
	CALL_NET
};

/* arch/x86/entry/syscalls/syscall_64.tbl; x32 has the same numbers with a bit set */
static __always_inline enum call call64(long nr)
{
	switch (nr & ~X32_BIT) {
	case 2:
		return CALL_OPEN;
	case 85:
		return CALL_CREAT;
	case 257:
		return CALL_OPENAT;
	case 437:
		return CALL_OPENAT2;
	case 304:
		return CALL_HANDLE;
	case 41:
		return CALL_SOCKET;
	case 42: /* connect, sendto, sendmsg, sendmmsg */
	case 44:
	case 46:
	case 307:
	case 518: /* x32's own sendmsg and sendmmsg */
	case 538:
		return CALL_NET;
	case 56:
	case 57:
	case 58:
	case 435:
		return CALL_FORK;
	}
	return CALL_OTHER;
}

/* arch/x86/entry/syscalls/syscall_32.tbl */
static __always_inline enum call call32(long nr)
{
	switch (nr) {
	case 5:
		return CALL_OPEN;
	case 8:
		return CALL_CREAT;
	case 295:
		return CALL_OPENAT;
	case 437:
		return CALL_OPENAT2;
	case 342:
		return CALL_HANDLE;
	case 359:
	case 102: /* socketcall: every sub-call; those that return no socket find none below */
		return CALL_SOCKET;
	case 362: /* connect, sendmmsg, sendto, sendmsg */
	case 345:
	case 369:
	case 370:
		return CALL_NET;
	case 2:
	case 120:
	case 190:
	case 435:
		return CALL_FORK;
	}
	return CALL_OTHER;
}

static __always_inline __u64 file_of(struct task_struct *t, long fd)
{
	struct file **fds = t->files->fdt->fd;
	__u64 f = 0;

	bpf_probe_read_kernel(&f, sizeof(f), fds + (__u32)fd);
	return f;
}

/* Flags as the caller gave them: the kernel drops O_TRUNC from f_flags once it is done. */
static __always_inline __u64 open_flags(enum call c, __u64 second, __u64 third)
{
	__u64 flags = 0;

	if (c == CALL_OPEN)
		return second;
	if (c == CALL_OPENAT)
		return third;
	if (c == CALL_OPENAT2) /* struct open_how starts with its flags */
		bpf_probe_read_user(&flags, sizeof(flags), (void *)third);
	return flags;
}

/*
 * A number for a name as a program gives it, of its first 127 bytes. An interpreter opens its script by the very name
 * that exec got: so the script's true path is judged for exec there, whatever link or dots led to it.
 */
static __noinline __u64 name_print(const void *name, bool from_user)
{
	__u64 w[16] = {}, print;
	long n = from_user ? bpf_probe_read_user_str(w, sizeof(w), name)
			   : bpf_probe_read_kernel_str(w, sizeof(w), name);

	if (n <= 0)
		return 0;
	print = n;
	for (int i = 0; i < 16; i++)
		print = mix(print + w[i]);
	return print | 1; /* 0 is none */
}

static __always_inline void set_script(const struct am_actor *a, __u64 print)
{
	struct am_proc *p = bpf_map_lookup_elem(&procs, &a->key);

	if (p)
		p->script = print;
}

static __always_inline void judge_open(struct task_struct *t, long fd, __u64 asked, __u64 name)
{
	struct am_actor a;
	struct file *f;
	struct vfsmount *mnt;
	struct super_block *sb;
	unsigned int mode, flags;
	__u32 ops = 0;
	int who = identify(&a);

	if (!who)
		return;
	if (who < 0) {
		count(AM_C_NO_STATE);
		kill_current();
		return;
	}
	f = (void *)file_of(t, fd);
	if (!f) {
		/* another thread took the descriptor away before it could be judged */
		ops = 1U << AM_READ | 1U << AM_WRITE;
		if (fallback(&a, ops, AM_ALLOW, AM_PATH_UNREACHABLE, AM_F_KILLED) >= AM_HOLD) {
			count(AM_C_BLOCKED);
			kill_current();
		}
		return;
	}
	mode = am_load(struct file, f, f_mode);
	if (mode & FMODE_PATH)
		return;
	if (a.proc.script && name && name_print((void *)name, true) == a.proc.script) {
		ops = 1U << AM_EXEC;
		set_script(&a, 0);
	}
	flags = am_load(struct file, f, f_flags);
	mnt = am_load(struct file, f, f_path.mnt);
	sb = am_load(struct vfsmount, mnt, mnt_sb);
	if (am_load(struct super_block, sb, s_flags) & AM_SB_NOUSER) {
		/* a pipe or socket: already held by somebody, and it has no path; but not to run */
	} else if (mode & FMODE_CREATED || (flags & O_TMPFILE)) {
		ops |= 1U << AM_CREATE;
	} else {
		if (mode & FMODE_READ)
			ops |= 1U << AM_READ;
		if (mode & FMODE_WRITE || asked & O_TRUNC)
			ops |= 1U << AM_WRITE;
	}
	if (!ops)
		return;
	decide_path(&a, ops, (__u64)mnt, (__u64)am_load(struct file, f, f_path.dentry),
		    (__u64)am_load(struct file, f, f_inode),
		    mode & FMODE_CREATED ? AM_F_CREATED : 0, true);
}

/* Families that cgroup/sock_create does not see: everything but AF_INET and AF_INET6. */
static __always_inline void judge_socket(__u64 first, __u64 second, bool compat, long nr)
{
	struct am_actor a;
	__u32 family = first;
	int who;

	if (compat && nr == 102) { /* socketcall(SYS_SOCKET, unsigned int *args) */
		if (first != 1)
			return;
		bpf_probe_read_user(&family, sizeof(family), (void *)second);
	}
	if (family == AM_AF_INET || family == AM_AF_INET6 || judgeable(family, 0, 0))
		return;
	who = identify(&a);
	if (who < 0 || (who && decide_family(&a, family, 0, true) >= AM_HOLD))
		kill_current();
}

SEC("tp_btf/sys_exit")
int BPF_PROG(open_exit, struct pt_regs *regs, long ret)
{
	struct task_struct *t;
	__u64 first, second, third;
	enum call c;
	bool compat;
	long nr;

	nr = regs->orig_ax;
	t = (void *)bpf_get_current_task_btf();
	compat = t->thread_info.status & TS_COMPAT;
	c = compat ? call32(nr) : call64(nr);
	if (c == CALL_OTHER)
		return 0;
	if (c == CALL_NET || c == CALL_SOCKET || (c == CALL_FORK && !ret)) {
		/* for a fork, the child's own return: the last moment before it would run untracked */
		struct am_proc_key k = {};

		k.tgid = t->tgid;
		k.start_ns = t->group_leader->start_boottime;
		if (is_condemned(&k))
			kill_current();
	}
	if (ret < 0 || c == CALL_NET || c == CALL_FORK)
		return 0;
	/* 32-bit calls pass their arguments in bx, cx, dx */
	first = compat ? regs->bx : regs->di;
	second = compat ? regs->cx : regs->si;
	third = regs->dx;
	if (c == CALL_SOCKET)
		judge_socket(first, second, compat, nr);
	else
		judge_open(t, ret, open_flags(c, second, third),
			   c == CALL_OPEN ? first
					  : (c == CALL_HANDLE || c == CALL_CREAT ? 0 : second));
	return 0;
}

static __always_inline void judge_ring(struct io_kiocb *req)
{
	__u32 op = req->opcode, verdict;
	struct am_actor a;
	int who;

	if (op != IORING_OP_OPENAT && op != IORING_OP_OPENAT2 && op != IORING_OP_SOCKET)
		return;
	who = identify(&a);
	if (who < 0)
		kill_current();
	if (who != 1)
		return;
	/* the file is not known yet and the result is not seen here: the severest of what it may be */
	verdict =
		fallback(&a,
			 op == IORING_OP_SOCKET ? 1U << AM_CONNECT
						: 1U << AM_READ | 1U << AM_WRITE | 1U << AM_CREATE,
			 AM_ALLOW, AM_RING_OPEN, AM_F_KILLED);
	if (verdict >= AM_HOLD) {
		count(AM_C_BLOCKED);
		kill_current();
	}
}

SEC("tp_btf/io_uring_submit_req")
int BPF_PROG(ring_submit, struct io_kiocb *req)
{
	judge_ring(req);
	return 0;
}

/* Its name before Linux 6.3 */
SEC("tp_btf/io_uring_submit_sqe")
int BPF_PROG(ring_submit_old, struct io_kiocb *req)
{
	judge_ring(req);
	return 0;
}

/*
 * A script's own path is gone by now: bprm->file is its interpreter, bprm->filename what the caller wrote. A plain
 * absolute or relative name is judged here. What it led to (links, dots, descriptors) is judged when the interpreter
 * opens it, see name_print(); the daemon resolves it once more.
 */
static __always_inline void judge_script(struct am_actor *a, struct task_struct *t,
					 struct linux_binprm *bprm)
{
	__u32 slot = 0, why = AM_BY_RULE;
	struct am_job *job = claim(&slot);
	const char *name = bprm->filename;
	char *path;
	__u64 start = AM_PATH_MAX, at;
	long n;

	if (!job) {
		fallback(a, 1U << AM_EXEC, AM_ALLOW, AM_NO_SCRATCH, AM_F_KILLED | AM_F_SCRIPT);
		kill_current();
		return;
	}
	path = job->room + AM_HEAD;
	/* read behind the path area first, then move it to where it ends at AM_PATH_END */
	n = bpf_probe_read_kernel_str(path + start, AM_PATH_MAX, name);
	if (n <= 1 || n >= AM_PATH_MAX) {
		why = AM_PATH_TOO_LONG;
		job->off = AM_PATH_END;
	} else {
		__u64 len = n - 1;

		if (len > 2 && path[start] == '.' && path[start + 1] == '/') {
			start += 2;
			len -= 2;
			name += 2;
		}
		at = AM_PATH_END - len;
		am_bound(at, 0xfff);
		am_bound(len, 0xfff);
		bpf_probe_read_kernel(path + at, len, name);
		job->off = at;
		if (path[start] != '/') {
			struct fs_struct *fs = t->fs;

			at--;
			am_bound(at, 0xfff);
			path[at] = '/';
			job->dentry = (__u64)fs->pwd.dentry;
			job->mount = (__u64)fs->pwd.mnt - bpf_core_field_offset(struct mount, mnt);
			why = walk(slot, at);
		}
	}
	job->policy = a->policy;
	job->ops = 1U << AM_EXEC;
	job->exe_tags = a->proc.exe_tags;
	inode_of(job, 0);
	if (!why && run_automaton(slot))
		why = AM_NO_STATE;
	judge(slot, why);
	report(job, a, AM_F_SCRIPT | (job->verdict >= AM_HOLD ? AM_F_KILLED : 0));
	if (job->verdict >= AM_HOLD) {
		count(AM_C_BLOCKED);
		kill_current();
	}
	release(job);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(process_exec, struct task_struct *t, int old_pid, struct linux_binprm *bprm)
{
	struct file *f = t->mm->exe_file;
	struct am_actor a;
	int who = identify(&a);

	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		kill_current();
		return 0;
	}
	if (bprm->filename != bprm->interp) {
		judge_script(&a, t, bprm);
		set_script(&a, name_print(bprm->filename, false));
	}
	decide_path(&a, 1U << AM_EXEC, (__u64)f->f_path.mnt, (__u64)f->f_path.dentry,
		    (__u64)f->f_inode, 0, true);
	retag(&a, t);
	send_execed(&a);
	return 0;
}

/* Returns: 1 go on, 0 the call fails with EPERM. */
static __always_inline int judge_address(const struct am_address *to, __u32 op)
{
	struct am_actor a;
	int who = identify(&a);

	if (!who)
		return 1;
	if (who < 0) {
		count(AM_C_NO_STATE);
		return 0;
	}
	return decide_net(&a, op, to, 0) < AM_HOLD;
}

static __always_inline int address4(struct bpf_sock_addr *ctx, __u32 op)
{
	struct am_address to = {.family = AM_AF_INET, .protocol = ctx->protocol};

	to.port = bpf_ntohs(ctx->user_port);
	fold4(&to, ctx->user_ip4);
	return judge_address(&to, op);
}

static __always_inline int address6(struct bpf_sock_addr *ctx, __u32 op)
{
	struct am_address to = {.family = AM_AF_INET6, .protocol = ctx->protocol};
	__u32 a[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]};

	to.port = bpf_ntohs(ctx->user_port);
	fold6(&to, a);
	return judge_address(&to, op);
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return address4(ctx, AM_CONNECT);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return address6(ctx, AM_CONNECT);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return address4(ctx, AM_SEND);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return address6(ctx, AM_SEND);
}

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *sk)
{
	struct am_actor a;
	int who;

	if (judgeable(sk->family, sk->type, sk->protocol))
		return 1;
	who = identify(&a);
	if (!who)
		return 1;
	return who == 1 && decide_family(&a, sk->family, sk->protocol, false) < AM_HOLD;
}
