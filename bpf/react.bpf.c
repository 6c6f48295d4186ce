// SPDX-License-Identifier: GPL-2.0-only
/*
 * React tier, for kernels without BPF LSM: the network is refused before it happens, a program dies before its first
 * instruction, and an open that should not have been ends the process before it can use the descriptor.
 *
 *   cgroup/connect4, connect6, sendmsg4, sendmsg6   connect, and send on sockets that are not connected (UDP);
 *   cgroup/recvmsg4, … getpeername6                 and names of hosts: see sock.bpf.h
 *   cgroup/bind4, bind6                             bind
 *   cgroup/connect_unix (Linux 6.7)                 unix: name services that libc tries
 *   cgroup/sock_create                              raw and other sockets that no address rule can judge
 *   tp_btf/sched_process_exec                       exec
 *   tp_btf/x86_fpu_regs_activated                   exec that is held, and goes on: see resume.bpf.h
 *   tp_btf/sys_exit                                 read, write, create: the file that was really opened;
 *                                                   unix, listen: the socket that was connected, or listens
 *                                                   delete, rename, link, attr and names that no open makes: by the name
 *                                                   that the call was given, see changes.bpf.h
 *   tp_btf/io_uring_submit_req (_sqe before 6.3)     what io_uring does that sys_exit does not see: opens, sockets,
 *                                                   unix, listen, options of sockets, names
 *   tp_btf/sched_process_fork, _exit; iter/task     the process table
 */
#define AM_TIER AM_TIER_REACT
#define AM_REACT
#include "exec.bpf.h"
#include "resume.bpf.h"
#include "mark.bpf.h"
#include "write.bpf.h"
#include "net.bpf.h"
#include "unix.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define FMODE_READ 1
#define FMODE_WRITE 2
#define FMODE_PATH 0x4000
#define FMODE_CREATED 0x100000
#define O_ACCMODE 3
#define O_TRUNC 01000
#define O_TMPFILE 020000000
#define TS_COMPAT 2   /* arch/x86/include/asm/thread_info.h: a 32-bit system call is under way */
#define S_IFMT 00170000
#define S_IFSOCK 0140000
#define SOCKETCALL 102
#define SOCKETCALL_CONNECT 3 /* include/uapi/linux/net.h */
#define SOCKETCALL_LISTEN 4
#define SOCKETCALL_SETSOCKOPT 14
#define IORING_OP_WRITEV 2 /* include/uapi/linux/io_uring.h */
#define IORING_OP_WRITE_FIXED 5
#define IORING_OP_FALLOCATE 17
#define IORING_OP_WRITE 23
#define IORING_OP_SPLICE 30
#define IORING_OP_WRITEV_FIXED 61
#define IORING_OP_CONNECT 16
#define IORING_OP_OPENAT 18
#define IORING_OP_OPENAT2 28
#define IORING_OP_RENAMEAT 35
#define IORING_OP_UNLINKAT 36
#define IORING_OP_MKDIRAT 37
#define IORING_OP_SYMLINKAT 38
#define IORING_OP_LINKAT 39
#define IORING_OP_FSETXATTR 41
#define IORING_OP_SETXATTR 42
#define IORING_OP_SOCKET 45
#define IORING_OP_URING_CMD 46
#define IORING_OP_LISTEN 57

#include "late.bpf.h"
#include "changes.bpf.h"

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
	__u32 id = a->policy;
	struct am_policy *policy = bpf_map_lookup_elem(&policies, &id);

	if (p && policy) {
		p->script = print;
		p->stepping &= ~AM_OPENING;
		p->args = a->facts & policy->args;
		p->args_generation = a->proc.unsure & policy->args ? 0 : a->generation;
	}
}

/* What set_script() keeps, for the policy in force. */
static __always_inline void recall_arguments(struct am_actor *a)
{
	__u32 id = a->policy;
	struct am_policy *policy = bpf_map_lookup_elem(&policies, &id);

	if (!policy)
		return;
	if (a->proc.args_generation == a->generation)
		a->facts |= a->proc.args & policy->args;
	else
		a->proc.unsure |= policy->args;
}

#define AM_SCRIPT_TRIES 8 /* three interpreters with an option each come before a name */

/*
 * From which argument on they are the script's own: its name is behind those that the kernel put there, its interpreter
 * and maybe one of that. 0: nobody knows, it is not there, or twice. Global, so that the verifier looks at it once.
 */
__noinline int script_arguments(__u64 at, __u64 print)
{
	__u32 slot = 0, found = 0;
	struct am_job *job = claim(&slot);

	if (!job)
		return 0;
	for (__u32 i = 0; i < AM_SCRIPT_TRIES; i++) {
		long n = bpf_probe_read_user_str(job->room, AM_PATH_MAX, (void *)at);

		if (n < 0 || n == AM_PATH_MAX)
			break;
		if (i && name_print((void *)at, true) == print) {
			if (found) {
				found = 0;
				break;
			}
			found = i + 1;
		} else if (found) {
			break;
		}
		at += n ? n : 1;
	}
	release(job);
	return found;
}

/*
 * None of these is inlined: in the frame of sys_exit, beside each other, they would not fit into 512 bytes. Returns
 * whether it is the script of an interpreter, and was deleted or never had a name: then that is to be judged too.
 */
static __noinline bool judge_open(struct task_struct *t, long fd, __u64 asked, __u64 name)
{
	struct am_actor a = {};
	struct file *f;
	struct vfsmount *mnt;
	struct super_block *sb;
	unsigned int mode, flags;
	__u32 ops = 0, verdict = AM_ALLOW;
	int who = identify(&a);
	struct inode *inode;
	bool gone = false;

	if (!who)
		return false;
	if (who < 0) {
		count(AM_C_NO_STATE);
		kill_current();
		return false;
	}
	f = (void *)file_of(t, fd);
	if (!f) {
		/* another thread took the descriptor away before it could be judged */
		ops = 1U << AM_READ | 1U << AM_WRITE;
		if (fallback(&a, ops, AM_ALLOW, AM_PATH_UNREACHABLE, AM_F_KILLED) >= AM_HOLD) {
			count(AM_C_BLOCKED);
			kill_current();
		}
		return false;
	}
	mode = am_load(struct file, f, f_mode);
	if (mode & FMODE_PATH)
		return false;
	inode = am_load(struct file, f, f_inode);
	if (a.proc.script && name && name_print((void *)name, true) == a.proc.script) {
		ops = 1U << AM_EXEC;
		recall_arguments(&a);
		set_script(&a, 0);
		gone = !am_load(struct inode, inode, i_nlink);
	}
	flags = am_load(struct file, f, f_flags);
	mnt = am_load(struct file, f, f_path.mnt);
	sb = am_load(struct vfsmount, mnt, mnt_sb);
	if (am_load(struct super_block, sb, s_flags) & AM_SB_NOUSER) {
		/* a pipe or socket: already held by somebody, and it has no path; but not to run */
		if (gone)
			ops = 0; /* a memfd */
	} else if (mode & FMODE_CREATED || (flags & O_TMPFILE)) {
		ops |= 1U << AM_CREATE;
	} else {
		/* access mode 3 is for ioctl: neither reads nor writes, but gives out blocks and attributes */
		bool both = (flags & O_ACCMODE) == O_ACCMODE;

		if (mode & FMODE_READ || both)
			ops |= 1U << AM_READ;
		if (mode & FMODE_WRITE || asked & O_TRUNC || both)
			ops |= 1U << AM_WRITE;
	}
	if (ops)
		verdict = decide_path(&a, ops, (__u64)mnt,
				      (__u64)am_load(struct file, f, f_path.dentry), (__u64)inode,
				      (mode & FMODE_CREATED ? AM_F_CREATED : AM_OPENED) |
					      (ops & 1U << AM_EXEC ? AM_OPENS_SCRIPT : 0));
	return gone && verdict < AM_HOLD;
}

/* Families that cgroup/sock_create does not see: everything but AF_INET and AF_INET6. */
static __noinline void judge_socket(__u64 first, __u64 second, bool compat, long nr)
{
	struct am_actor a = {};
	__u32 family = first;
	int who;

	if (compat && nr == SOCKETCALL) { /* socketcall(SYS_SOCKET, unsigned int *args) */
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

static __always_inline struct sock *socket_of(struct task_struct *t, long fd)
{
	struct file *f = (void *)file_of(t, fd);
	struct inode *i = f ? am_load(struct file, f, f_inode) : NULL;
	struct socket *s;

	if (!i || (am_load(struct inode, i, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	s = am_load(struct file, f, private_data);
	return s ? am_load(struct socket, s, sk) : NULL;
}

/* A call that went through, on a socket: a unix socket may be connected now. */
static __noinline void judge_peer(struct task_struct *t, long fd)
{
	struct sock *sk = socket_of(t, fd);
	__u64 peer, dentry, address;
	struct am_actor a = {};
	int who;

	if (!sk || am_load(struct sock, sk, __sk_common.skc_family) != AM_AF_UNIX)
		return;
	peer = (__u64)am_load(struct unix_sock, sk, peer);
	if (!peer)
		return;
	who = identify(&a);
	if (!who)
		return;
	if (who < 0) {
		count(AM_C_NO_STATE);
		kill_current();
		return;
	}
	if (!a.doomed && served_by_own(&a, (__u64)sk))
		return;
	dentry = (__u64)am_load(struct unix_sock, peer, path.dentry);
	address = (__u64)am_load(struct unix_sock, peer, addr);
	if (dentry)
		decide_path(&a, 1U << AM_UNIX, (__u64)am_load(struct unix_sock, peer, path.mnt),
			    dentry, (__u64)am_load(struct dentry, dentry, d_inode), 0);
	else if (address)
		decide_abstract(&a, address);
}

static __noinline void judge_listen(struct task_struct *t, long fd)
{
	struct sock *sk = socket_of(t, fd);
	struct am_address to = {};
	struct am_actor a = {};
	int who;

	if (!sk || !read_local(&to, sk))
		return;
	who = identify(&a);
	if (who < 0)
		count(AM_C_NO_STATE);
	if (who < 0 || (who && decide_address(&a, AM_LISTEN, &to, 0) >= AM_HOLD))
		kill_current();
}

/* Set already, but the process dies before it can send. */
static __noinline void judge_option(int level, int name)
{
	struct am_actor a = {};
	int who;

	if (!routes(level, name))
		return;
	who = identify(&a);
	if (who < 0)
		count(AM_C_NO_STATE);
	if (who < 0 || (who && decide_route(&a) >= AM_HOLD))
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

	nr = (__u32)regs->orig_ax; /* the kernel looks at no more of it either */
	t = (void *)bpf_get_current_task_btf();
	compat = t->thread_info.status & TS_COMPAT;
	c = call_of(nr, compat);
	if (nhalted > 0 && c != CALL_EXEC)
		check_halted(t); /* it was not stopped by resumes() */
	if (c <= CALL_SIGNAL_THREAD)
		return 0;
	if (c == CALL_NET || c == CALL_SOCKET || (c == CALL_FORK && !ret)) {
		/* for a fork, the child's own return: the last moment before it would run untracked */
		struct am_proc_key k = {};

		k.tgid = t->tgid;
		k.start_ns = t->group_leader->start_boottime;
		if (is_condemned(&k))
			kill_current();
	}
	if (c == CALL_NET && ret == -AM_ERESTARTNOINTR)
		kick_waiting(t);
	if (c == CALL_FORK || (c == CALL_NET && ret) || (ret <= 0 && harmless(t, c, ret)))
		return 0;
	if (c >= CALL_DELETE && c <= CALL_IOCTL) {
		judge_change(t, regs, c);
		return 0;
	}
	/* 32-bit calls pass their arguments in the lower halves of bx, cx, dx */
	first = compat ? (__u32)regs->bx : regs->di;
	second = compat ? (__u32)regs->cx : regs->si;
	third = compat ? (__u32)regs->dx : regs->dx;
	if (c >= CALL_PTRACE) {
		judge_late(t, c, first, second, third);
		return 0;
	}
	if (compat && nr == SOCKETCALL &&
	    (first == SOCKETCALL_CONNECT || first == SOCKETCALL_LISTEN)) {
		__u32 fd = 0;

		c = first == SOCKETCALL_CONNECT ? CALL_NET : CALL_LISTEN;
		bpf_probe_read_user(&fd, sizeof(fd), (void *)second);
		first = fd;
	}
	if (compat && nr == SOCKETCALL && first == SOCKETCALL_SETSOCKOPT) {
		__u32 words[3] = {}; /* descriptor, level, name */

		c = CALL_OPTION;
		bpf_probe_read_user(words, sizeof(words), (void *)second);
		second = words[1];
		third = words[2];
	}
	if (c == CALL_NET)
		judge_peer(t, first);
	else if (c == CALL_LISTEN)
		judge_listen(t, first);
	else if (c == CALL_OPTION)
		judge_option(second, third);
	else if (c == CALL_SOCKET)
		judge_socket(first, second, compat, nr);
	else if (judge_open(t, ret, open_flags(c, second, third),
			    c == CALL_OPEN ? first
					   : (c == CALL_HANDLE || c == CALL_CREAT ? 0 : second)))
		guard(AM_ANON_EXEC);
	return 0;
}

/*
 * The operations (a bit each) that a request may be, of those that nothing else sees. An address to connect to is
 * judged by the cgroup hooks, the path of a unix socket is not; which of the two it is cannot be told before it is
 * done: the descriptor may be another one by then. An option of a socket (URING_CMD) may be a source route.
 */
static __always_inline __u32 ring_ops(__u32 opcode)
{
	switch (opcode) {
	case IORING_OP_OPENAT:
	case IORING_OP_OPENAT2:
		return 1U << AM_READ | 1U << AM_WRITE | 1U << AM_CREATE;
	case IORING_OP_UNLINKAT:
		return 1U << AM_DELETE;
	case IORING_OP_RENAMEAT:
		return AM_CARRY | 1U << AM_RENAME | 1U << AM_CREATE | 1U << AM_DELETE;
	case IORING_OP_LINKAT:
		return AM_CARRY | 1U << AM_LINK | 1U << AM_CREATE;
	case IORING_OP_MKDIRAT:
	case IORING_OP_SYMLINKAT:
		return 1U << AM_CREATE;
	case IORING_OP_FSETXATTR:
	case IORING_OP_SETXATTR:
		return 1U << AM_ATTR;
	case IORING_OP_SOCKET:
		return 1U << AM_CONNECT;
	case IORING_OP_CONNECT:
		return 1U << AM_UNIX;
	case IORING_OP_LISTEN:
		return 1U << AM_LISTEN;
	case IORING_OP_URING_CMD:
		return 1U << AM_CONNECT | 1U << AM_SEND;
	}
	return 0;
}

static __always_inline bool ring_writes(__u32 opcode)
{
	switch (opcode) {
	case IORING_OP_WRITEV:
	case IORING_OP_WRITE_FIXED:
	case IORING_OP_FALLOCATE:
	case IORING_OP_WRITE:
	case IORING_OP_SPLICE:
	case IORING_OP_WRITEV_FIXED:
		return true;
	}
	return false;
}

static __always_inline void judge_ring(struct io_kiocb *req)
{
	__u32 ops = ring_ops(req->opcode), verdict;
	struct am_actor a = {};
	int who;

	if (ring_writes(req->opcode) && steps_on((void *)bpf_get_current_task_btf()))
		write_bytes(AM_ANY_SIZE,
			    1); /* how much, nobody knows here: denied where it is counted */

	if (!ops)
		return;
	who = identify(&a);
	if (who < 0)
		kill_current();
	if (who != 1)
		return;
	/* the object is not known yet and the result is not seen here: the severest of what it may be */
	verdict = fallback(&a, ops, AM_ALLOW, AM_RING_OPEN, AM_F_KILLED);
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
 * opens it, see name_print(); the daemon resolves it once more. Returns whether the process is killed.
 */
static __always_inline bool judge_script(struct am_actor *a, struct task_struct *t,
					 struct linux_binprm *bprm)
{
	__u32 slot = 0, why = AM_BY_RULE;
	struct am_job *job = claim(&slot);
	bool stops;

	if (!job) {
		fallback(a, 1U << AM_EXEC, AM_ALLOW, AM_NO_SCRATCH, AM_F_KILLED | AM_F_SCRIPT);
		kill_current();
		return true;
	}
	why = name_path(slot, job, t, bprm->filename);
	describe(job, a, 1U << AM_EXEC);
	inode_of(job, 0);
	plan_first(a, slot, job, why, false);
	if (!why && (a->proc.generation != a->generation || run_automaton(slot)))
		why = AM_NO_STATE;
	/* nothing is marked or counted by a name that may lead elsewhere: the open comes */
	job->trial = 1;
	judge(slot, why);
	job->trial = 0;
	if (job->verdict == AM_HOLD && !why)
		ask_job(a, slot, AM_F_SCRIPT);
	stops = job->verdict >= AM_HOLD && !(job->verdict == AM_HOLD && job->held);
	report(slot, a, AM_F_SCRIPT | (stops ? AM_F_KILLED : 0));
	if (stops) {
		count(AM_C_BLOCKED);
		kill_current();
	}
	release(job);
	return stops;
}

/* It runs: by now another may have been faster. Not inlined: see report_bare(). */
static __noinline void begin_step(struct am_actor *a, __u32 choice, __u32 how)
{
	struct am_proc *p = bpf_map_lookup_elem(&procs, &a->key);
	int why = enter_step(a, choice, 0);

	if (!why) {
		if (p)
			p->stepping |= how;
		return;
	}
	report_bare(a, AM_EXEC, AM_DENY, am_by(AM_NO_RULE, why), AM_F_KILLED);
	count(AM_C_BLOCKED);
	kill_current();
}

/* The agent itself runs. */
static __always_inline void commanded(const struct am_proc_key *k, __u32 how)
{
	struct am_proc *p = bpf_map_lookup_elem(&procs, k);

	if (p)
		p->stepping = how;
}

/* The facts of a policy that are exe tags of the same number. */
static __noinline __u32 ancestor_facts(__u32 policy)
{
	struct am_policy *p = bpf_map_lookup_elem(&policies, &policy);

	return p ? p->parents : 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(process_exec, struct task_struct *t, int old_pid, struct linux_binprm *bprm)
{
	struct file *f = t->mm->exe_file;
	__u64 before, start = t->mm->arg_start;
	struct am_actor a = {};
	bool outside, stops = false;
	__u32 unsure, choice = 0;
	int who = identify(&a);

	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		kill_current();
		return 0;
	}
	forget_halted(&a.key);
	a.proc.stepping &= ~AM_OPENING;
	before = a.proc.exe_tags;
	if (a.proc.generation != a.generation) {
		/* the program that starts this one is gone already: of its tags only those of ancestors are known */
		if (!a.proc.generation && a.proc.kin)
			a.proc.unsure = ~0U;
		a.facts |= before & ancestor_facts(a.policy);
		find_tags(&a);
	}
	unsure = a.proc.unsure;
	outside = a.part && !a.proc.step && !a.doomed;
	if (bprm->filename != bprm->interp) {
		__u64 print = name_print(bprm->filename, false);
		__u32 skip = script_arguments(start, print);

		read_arguments(&a, start, bprm->argc, skip);
		if (outside) {
			choice = find_start(&a, 0, (__u64)bprm->filename, start,
					    am_words(bprm->argc, skip));
			if (choice)
				judge_as_start(&a, choice);
			else if (a.proc.stepping & AM_COMMAND)
				a.part = 0;
		}
		stops = judge_script(&a, t, bprm);
		set_script(&a, print);
		/* of a script, its interpreter is no other start */
		if (choice) {
			a.part = a.out = 0;
			a.proc.step = am_choice_step(choice);
		}
	}
	read_arguments(&a, start, bprm->argc, 1);
	if (outside && !choice) {
		choice = find_start(&a, (__u64)f->f_path.dentry, (__u64)f->f_path.mnt, start,
				    am_words(bprm->argc, 1));
		if (choice)
			judge_as_start(&a, choice);
	}
	if (outside && a.proc.stepping & AM_COMMAND)
		a.part = choice ? a.part : 0;
	/* a memfd has no path: see rights_exec */
	if (f->f_inode->i_nlink || !pseudo((__u64)f->f_path.mnt)) {
		__u32 verdict = decide_path(&a, 1U << AM_EXEC, (__u64)f->f_path.mnt,
					    (__u64)f->f_path.dentry, (__u64)f->f_inode, AM_HALTS);

		stops = stops || (verdict >= AM_HOLD && verdict <= AM_KILL);
	}
	if (choice && !stops)
		begin_step(&a, choice, bprm->filename != bprm->interp ? AM_OPENING : 0);
	else if (a.proc.stepping & AM_COMMAND)
		commanded(&a.key, bprm->filename != bprm->interp ? AM_OPENING : 0);
	a.proc.unsure = unsure;
	retag(&a, before);
	send_execed(&a);
	return 0;
}

/* Returns: 1 go on, 0 the call fails with EPERM, AM_ASKS redirect it. */
static __always_inline int judge_address(struct am_actor *a, const struct am_address *to, __u32 op,
					 __u32 flags)
{
	int who = identify(a);
	__u32 verdict;

	if (!who)
		return 1;
	if (who < 0) {
		count(AM_C_NO_STATE);
		return 0;
	}
	if (!a->doomed && asks(a, to))
		return AM_ASKS;
	verdict = decide_address(a, op, to, flags);
	if (verdict == AM_WAITS)
		bpf_set_retval(-AM_ERESTARTNOINTR); /* open_exit() sends the signals */
	return verdict < AM_HOLD || verdict == AM_LET;
}

#include "sock.bpf.h"

/* Returns: 1 go on, 0 the call fails with EPERM. */
static __always_inline int judge_bind(const struct am_address *to)
{
	struct am_actor a = {};
	int who = identify(&a);

	if (who < 0)
		count(AM_C_NO_STATE);
	return !who || (who == 1 && decide_address(&a, AM_BIND, to, 0) < AM_HOLD);
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	struct am_address to = {.family = AM_AF_INET, .protocol = ctx->protocol};

	to.port = bpf_ntohs(ctx->user_port);
	map4(&to, ctx->user_ip4);
	return judge_bind(&to);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	struct am_address to = {.family = AM_AF_INET6, .protocol = ctx->protocol};
	__u32 a[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]};

	to.port = bpf_ntohs(ctx->user_port);
	__builtin_memcpy(to.addr, a, 16);
	return judge_bind(&to);
}

SEC("cgroup/connect_unix")
int connect_unix(struct bpf_sock_addr *ctx)
{
	return judge_service(ctx);
}

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *sk)
{
	struct am_actor a = {};
	int who;

	if (judgeable(sk->family, sk->type, sk->protocol))
		return 1;
	who = identify(&a);
	if (!who)
		return 1;
	return who == 1 && decide_family(&a, sk->family, sk->protocol, false) < AM_HOLD;
}
