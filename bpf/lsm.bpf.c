// SPDX-License-Identifier: GPL-2.0-only
/*
 * LSM tier: each operation is decided before it takes effect; deny is -EPERM, kill is -EPERM and SIGKILL.
 * Nothing here is attached to a system call, so other processes pay one table look-up per hook.
 *
 *   lsm/bprm_check_security    exec, for a script and again for its interpreter
 *   lsm/file_open              read, write (O_TRUNC included)
 *   lsm/file_receive           read, write of a descriptor that another process passes (SCM_RIGHTS, pidfd_getfd)
 *   lsm/mmap_file              read, of an ELF interpreter: the kernel runs it without asking bprm_check_security
 *   lsm/path_truncate          write, by truncate(2)
 *   lsm/path_mknod             create, by open(O_CREAT) and mknod
 *   lsm/path_mkdir, path_symlink   create
 *   lsm/path_link, path_rename  create of the new name; link or rename, read and write of the old one; where a rename
 *                              leads out of what may not be deleted, delete too
 *   lsm/path_unlink, path_rmdir, path_chmod, path_chown  delete, attr
 *   attr.bpf.h                 attr: extended attributes, ACLs, times, flags
 *   lsm/socket_create          socket families that no address rule can judge
 *   lsm/socket_connect         connect
 *   lsm/socket_sendmsg         send, on connected sockets too
 *   lsm/socket_bind, socket_listen    bind, listen
 *   lsm/unix_stream_connect, unix_may_send    unix
 *   sock.bpf.h                 names of hosts: questions for port 53 go to the session's resolver (cgroup hooks)
 *   guard.bpf.h                what has no object: ptrace, typing into a terminal, signal, mount, …
 *   lsm/task_alloc             the child inherits; a fork that could not be tracked is refused
 *   lsm/bprm_committed_creds   the new program's arguments and exe tags
 *   resume.bpf.h               exec that is held by its arguments (tracepoints, on demand)
 *   lsm/task_free              a process that ended and is still listed
 *   tp_btf/sched_process_fork, _exit                       the process table, at once
 *   iter/task                  enrolment of what already runs
 *
 * A hook that cannot tell (no scratch, no session, no path) takes the severest verdict of its operation.
 */
#define AM_TIER AM_TIER_LSM
#include "exec.bpf.h"
#include "resume.bpf.h"
#include "mark.bpf.h"
#include "write.bpf.h"
#include "net.bpf.h"
#include "guard.bpf.h"
#include "unix.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define FMODE_READ 1
#define FMODE_WRITE 2
#define FMODE_CREATED \
	0x100000 /* include/linux/fs.h: the open made the file; judged in path_mknod */
#define O_ACCMODE 3
#define O_TRUNC 01000
#define O_TMPFILE 020000000
#define FMODE_EXEC \
	0x20 /* __FMODE_EXEC in f_flags: opened to be run, judged in bprm_check_security */
#define MSG_FASTOPEN 0x20000000
#define S_IFMT 00170000
#define S_IFCHR 0020000
#define S_IFDIR 0040000
#define S_IFBLK 0060000
#define S_IFSOCK 0140000
#define PROT_EXEC 4
#define READ_IMPLIES_EXEC 0x400000 /* include/uapi/linux/personality.h */
#define RENAME_EXCHANGE 2

/* Returns: -EPERM for a verdict that blocks, else 0; as two constants, Linux 6.12 rejects the negation that clang makes. */
static __always_inline int answer(__u32 verdict)
{
	int err = 0;

	if (verdict >= AM_HOLD && verdict != AM_LET) {
		err = verdict == AM_WAITS ? -AM_ERESTARTNOINTR : -EPERM;
		asm volatile("" : "+r"(err));
	}
	return err;
}

/* One path operation from a hook that has typed arguments. Not inlined: link and rename need it twice, see report_bare(). */
static __noinline int judge_path(__u32 ops, __u64 mnt, __u64 dentry, __u64 inode, __u32 flags)
{
	struct am_actor a = {};
	int who = identify(&a);

	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		report_bare(&a, AM_READ, AM_DENY, am_by(AM_NO_RULE, AM_NO_STATE), 0);
		return -EPERM;
	}
	return answer(decide_path(&a, ops, mnt, dentry, inode, flags));
}

static __always_inline void release_slot(__u32 slot)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);

	if (job)
		release(job);
}

/* The same of a program; it may start a step. */
static __noinline int judge_exec(__u64 mnt, __u64 dentry, __u64 inode, __u32 flags)
{
	struct am_actor a = {};
	__u32 verdict;
	int who = identify(&a);

	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		report_bare(&a, AM_EXEC, AM_DENY, am_by(AM_NO_RULE, AM_NO_STATE), 0);
		return -EPERM;
	}
	if (a.part && !a.proc.step && !a.doomed) {
		int slot = -1;

		if (flags & AM_INTERPRETER && is_starting())
			a.part = 0; /* of a script, its interpreter is no other start */
		else if (!find_tags(&a))
			slot = exe_ways(&a, dentry, mnt);
		if (slot >= 0) {
			verdict = a.proc.stepping & AM_COMMAND ? AM_ALLOW
							       : judge_outside(&a, slot, inode);
			keep_start(&a, slot, verdict, flags >> AM_ARGC_SHIFT & AM_ARGC_MASK);
			release_slot(slot);
		} else if (a.proc.stepping & AM_COMMAND) {
			a.part = 0;
		}
	}
	verdict = decide_path(&a, 1U << AM_EXEC, mnt, dentry, inode, flags);
	return answer(verdict);
}

/* Another name for a file carries it out of the rules on its old one: linking and moving it need all of these. */
#define AM_CARRY (1U << AM_READ | 1U << AM_WRITE)

SEC("lsm/bprm_check_security")
int BPF_PROG(exec_check, struct linux_binprm *bprm)
{
	struct file *f = bprm->file;
	bool interpreter = bprm->filename != bprm->interp;
	__u32 argc = bprm->argc;

	begin_exec(interpreter);
	if (!interpreter)
		forget_starting((void *)bpf_get_current_task_btf());
	/* a memfd, or a file that was deleted: nobody can look at what ran */
	if (!f->f_inode->i_nlink) {
		int err = was_replaced() ? -AM_ERESTARTNOINTR : guard(AM_ANON_EXEC);

		if (err || pseudo((__u64)f->f_path.mnt))
			return err;
	}
	if (argc > AM_ARGC_MASK)
		argc = AM_ARGC_MASK;
	return judge_exec((__u64)f->f_path.mnt, (__u64)f->f_path.dentry, (__u64)f->f_inode,
			  argc << AM_ARGC_SHIFT | (interpreter ? AM_INTERPRETER : 0));
}

/* A file that this open made was counted by its path: it is to be known by its inode. */
static __noinline void know_made(__u64 inode)
{
	struct am_file_key k = {};
	struct super_block *sb;
	struct am_actor a = {};
	struct am_plan *plan;
	__u8 one = 1;
	__u64 at;
	__u32 id;

	if (identify(&a) != 1 || !a.proc.step)
		return;
	id = a.policy;
	plan = bpf_map_lookup_elem(&plans, &id);
	at = a.proc.step - 1;
	am_bound(at, 63);
	if (!plan || plan->max_files[at] == ~0U)
		return;
	sb = am_load(struct inode, (struct inode *)inode, i_sb);
	k.serial = a.proc.serial;
	k.step = at;
	k.ino = am_load(struct inode, (struct inode *)inode, i_ino);
	k.igen = am_load(struct inode, (struct inode *)inode, i_generation);
	k.dev = am_load(struct super_block, sb, s_dev);
	bpf_map_update_elem(&step_files, &k, &one, BPF_ANY);
}

SEC("lsm/file_open")
int BPF_PROG(open_check, struct file *f)
{
	unsigned int mode = f->f_mode, fl = f->f_flags;
	__u32 ops = 0;

	if (mode & FMODE_CREATED && !pseudo((__u64)f->f_path.mnt))
		know_made((__u64)f->f_inode);
	if (fl & FMODE_EXEC || mode & FMODE_CREATED)
		return 0;
	if (fl & O_TMPFILE)
		ops = 1U << AM_CREATE;
	else if (mode & FMODE_WRITE || fl & O_TRUNC || (fl & O_ACCMODE) == O_ACCMODE)
		ops |= 1U << AM_WRITE;
	/* access mode 3 is for ioctl: neither reads nor writes, but gives out blocks and attributes */
	if ((mode & FMODE_READ || (fl & O_ACCMODE) == O_ACCMODE) && !(fl & O_TMPFILE))
		ops |= 1U << AM_READ;
	if (!ops || pseudo((__u64)f->f_path.mnt))
		return 0;
	return judge_path(ops, (__u64)f->f_path.mnt, (__u64)f->f_path.dentry, (__u64)f->f_inode, 0);
}

/* Who opened it may do more: it was not judged, or as another program. */
SEC("lsm/file_receive")
int BPF_PROG(receive_check, struct file *f)
{
	unsigned int mode = f->f_mode;
	__u32 ops =
		(mode & FMODE_READ ? 1U << AM_READ : 0) | (mode & FMODE_WRITE ? 1U << AM_WRITE : 0);

	if (!ops || pseudo((__u64)f->f_path.mnt))
		return 0;
	return judge_path(ops, (__u64)f->f_path.mnt, (__u64)f->f_path.dentry, (__u64)f->f_inode, 0);
}

/*
 * `FMODE_EXEC` and not the program: what the program names as its interpreter (PT_INTERP) runs in its place. By what is
 * asked for: what the kernel makes of it is an argument of the hook, but not of security_mmap_file() (objects.py).
 */
SEC("lsm/mmap_file")
int BPF_PROG(interpreter_check, struct file *f, unsigned long asked)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();

	if (!f || !(asked & PROT_EXEC || t->personality & READ_IMPLIES_EXEC))
		return 0;
	if (!(f->f_flags & FMODE_EXEC) || t->mm->exe_file == f)
		return 0;
	return judge_path(1U << AM_READ, (__u64)f->f_path.mnt, (__u64)f->f_path.dentry,
			  (__u64)f->f_inode, 0);
}

/*
 * Whether the current call is an open: before Linux 6.2 what O_TRUNC empties comes to path_truncate as well, after
 * file_open; judged twice it would count twice, and be asked for twice. The numbers of both tables: what has one of them in
 * the other table truncates nothing.
 */
static __always_inline bool opens(void)
{
	struct pt_regs *r = (void *)bpf_task_pt_regs((void *)bpf_get_current_task_btf());

	switch (r->orig_ax) {
	case 2: /* open */
	case 85: /* creat */
	case 257: /* openat */
	case 437: /* openat2, in both */
	case 5: /* the 32-bit table's open, creat, openat */
	case 8:
	case 295:
		return true;
	}
	return false;
}

SEC("lsm/path_truncate")
int BPF_PROG(truncate_check, struct path *p)
{
	struct dentry *d = p->dentry;

	if (opens())
		return 0;
	return judge_path(1U << AM_WRITE, (__u64)p->mnt, (__u64)d, (__u64)d->d_inode, 0);
}

SEC("lsm/path_mknod")
int BPF_PROG(mknod_check, struct path *dir, struct dentry *d, unsigned short mode, unsigned int dev)
{
	/* a node of one's own is another name of a device that rules know by its usual one; 0: overlayfs's whiteout */
	bool device = dev && ((mode & S_IFMT) == S_IFCHR || (mode & S_IFMT) == S_IFBLK);

	return judge_path(1U << AM_CREATE, (__u64)dir->mnt, (__u64)d, 0, device ? AM_F_DEVICE : 0);
}

SEC("lsm/path_mkdir")
int BPF_PROG(mkdir_check, struct path *dir, struct dentry *d)
{
	return judge_path(1U << AM_CREATE, (__u64)dir->mnt, (__u64)d, 0, 0);
}

SEC("lsm/path_symlink")
int BPF_PROG(symlink_check, struct path *dir, struct dentry *d)
{
	return judge_path(1U << AM_CREATE, (__u64)dir->mnt, (__u64)d, 0, 0);
}

SEC("lsm/path_unlink")
int BPF_PROG(unlink_check, struct path *dir, struct dentry *d)
{
	return judge_path(1U << AM_DELETE, (__u64)dir->mnt, (__u64)d, (__u64)d->d_inode, 0);
}

SEC("lsm/path_rmdir")
int BPF_PROG(rmdir_check, struct path *dir, struct dentry *d)
{
	return judge_path(1U << AM_DELETE, (__u64)dir->mnt, (__u64)d, (__u64)d->d_inode, 0);
}

/* mode and owner: of what else `attr` is, no hook tells the path (attr.bpf.h) */
static __always_inline int judge_attr(struct path *p)
{
	struct dentry *d = p->dentry;

	if (pseudo((__u64)p->mnt))
		return 0;
	return judge_path(1U << AM_ATTR, (__u64)p->mnt, (__u64)d, (__u64)d->d_inode, 0);
}

SEC("lsm/path_chmod")
int BPF_PROG(chmod_check, struct path *p)
{
	return judge_attr(p);
}

SEC("lsm/path_chown")
int BPF_PROG(chown_check, struct path *p)
{
	return judge_attr(p);
}

#include "attr.bpf.h"

static __always_inline bool is_a(struct dentry *d, unsigned short kind)
{
	struct inode *i = d->d_inode;

	return i && (i->i_mode & S_IFMT) == kind;
}

/* A socket under another name is reached there. */
static __always_inline __u32 carry(struct dentry *d)
{
	return AM_CARRY | (is_a(d, S_IFSOCK) ? 1U << AM_UNIX : 0);
}

SEC("lsm/path_link")
int BPF_PROG(link_check, struct dentry *old, struct path *dir, struct dentry *d)
{
	/* link(2) stays on one mount, so the new directory's is the old name's too */
	int err = judge_path(carry(old) | 1U << AM_LINK, (__u64)dir->mnt, (__u64)old,
			     (__u64)old->d_inode, 0);

	if (err)
		return err;
	return judge_path(1U << AM_CREATE, (__u64)dir->mnt, (__u64)d, 0, AM_RENAMES);
}

#include "moves.bpf.h"

SEC("lsm/path_rename")
int BPF_PROG(rename_check, struct path *old_dir, struct dentry *old, struct path *dir,
	     struct dentry *d, unsigned int flags)
{
	int err = judge_rename(old_dir, old, dir, d);

	if (!err && flags & RENAME_EXCHANGE)
		err = judge_rename(dir, d, old_dir, old);
	return err;
}

SEC("lsm/socket_create")
int BPF_PROG(socket_check, int family, int type, int protocol, int kern)
{
	struct am_actor a = {};
	int who;

	if (kern || judgeable(family, type, protocol))
		return 0;
	who = identify(&a);
	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		return -EPERM;
	}
	return answer(decide_family(&a, family, protocol, false));
}

/* Longest address we read: struct sockaddr_in6. */
struct any_address {
	__u16 family;
	__u16 port_be;
	__u32 v4_be; /* flow label, for IPv6 */
	__u32 v6_be[4];
};

/*
 * Reads a kernel copy of a socket address. False: not an internet address. IPv4 UDP takes
 * AF_UNSPEC for AF_INET in sendto (net/ipv4/udp.c), so a send must too; and so does bind. `local`: to bind to.
 */
static __always_inline bool read_address(struct am_address *to, const void *from, int len,
					 bool unspec_is_v4, bool local)
{
	struct any_address x = {};

	if (len < 8)
		return false;
	bpf_probe_read_kernel(&x, 8, from);
	to->family = x.family;
	to->port = bpf_ntohs(x.port_be);
	if (x.family == AM_AF_INET || (x.family == AM_AF_UNSPEC && unspec_is_v4)) {
		if (local)
			map4(to, x.v4_be);
		else
			fold4(to, x.v4_be);
		return true;
	}
	if (x.family != AM_AF_INET6 || len < 24)
		return false;
	bpf_probe_read_kernel(x.v6_be, 16, from + 8);
	if (local)
		__builtin_memcpy(to->addr, x.v6_be, 16);
	else
		fold6(to, x.v6_be);
	return true;
}

static __always_inline bool read_peer(struct am_address *to, struct sock *sk)
{
	__u32 v6[4];
	__u16 family = am_load(struct sock, sk, __sk_common.skc_family);

	to->family = family;
	to->port = bpf_ntohs(am_load(struct sock, sk, __sk_common.skc_dport));
	if (!to->port)
		return false; /* not connected: the kernel refuses the send itself */
	if (family == AM_AF_INET) {
		fold4(to, am_load(struct sock, sk, __sk_common.skc_daddr));
		return true;
	}
	bpf_core_read(v6, sizeof(v6), &sk->__sk_common.skc_v6_daddr);
	fold6(to, v6);
	return true;
}

SEC("lsm/socket_connect")
int BPF_PROG(connect_check, struct socket *sock, struct sockaddr *address, int len)
{
	struct am_address to = {};
	struct am_actor a = {};
	int who = identify(&a);
	__u32 verdict;

	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		return -EPERM;
	}
	if (!read_address(&to, address, len, false, false))
		return 0; /* AF_UNSPEC disconnects; AF_UNIX is another operation */
	to.protocol = am_load(struct sock, sock->sk, sk_protocol);
	if (!a.doomed && asks(&a, &to))
		return 0; /* connect4, connect6 come next, with this very address */
	verdict = decide_address(&a, AM_CONNECT, &to, 0);
	if (verdict == AM_LET && sock->sk)
		let_pass(sock->sk, &a);
	return answer(verdict);
}

/* Control messages that are looked at; more are taken for the worst. */
#define AM_CONTROLS 8

struct control {
	__u64 len;
	int level, type;
};

/* Whether a control message (the kernel's copy) routes the packet. Global, so that the verifier looks at it once. */
__noinline int routed(__u64 at, __u64 left)
{
	for (int i = 0; i < AM_CONTROLS; i++) {
		struct control c = {};
		__u64 len;

		if (left < sizeof(c))
			return 0;
		bpf_probe_read_kernel(&c, sizeof(c), (void *)at);
		if (routes(c.level, c.type))
			return 1;
		if (c.len < sizeof(c) || c.len > left)
			return 0; /* the kernel refuses it */
		len = (c.len + 7) & ~7ULL;
		if (len >= left)
			return 0;
		at += len;
		left -= len;
	}
	return 1;
}

/* Not inlined: send_check() has no stack left. */
static __noinline void forget_rates(struct am_actor *a)
{
	__u32 id = a->policy;
	struct am_policy *p = bpf_map_lookup_elem(&policies, &id);

	if (p)
		a->facts &= ~p->rates;
}

/*
 * What goes out on a connection is judged as the connection was: it may be of before the fence, or somebody else's; and
 * by rules on send that block. Its rate counts connections, so none is used, nor asked.
 */
SEC("lsm/socket_sendmsg")
int BPF_PROG(send_check, struct socket *sock, struct msghdr *msg, int size)
{
	struct sock *sk = sock->sk;
	__u16 family;
	struct am_address to = {};
	struct am_actor a = {};
	__u32 flags = 0, op = AM_SEND;
	int who;

	if (!sk)
		return 0;
	family = am_load(struct sock, sk, __sk_common.skc_family);
	if (family != AM_AF_INET && family != AM_AF_INET6)
		return 0;
	who = identify(&a);
	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		return -EPERM;
	}
	if (msg->msg_controllen) {
		__u64 control = 0; /* read as a number: Linux 7 knows it for a pointer */

		bpf_core_read(&control, sizeof(control), &msg->msg_control);
		if (routed(control, msg->msg_controllen))
			return answer(decide_route(&a));
	}
	/* a stream ignores the name, unless it opens the connection with it */
	if (!(msg->msg_name && (sock->type != AM_SOCK_STREAM || msg->msg_flags & MSG_FASTOPEN) &&
	      read_address(&to, msg->msg_name, msg->msg_namelen, family == AM_AF_INET, false))) {
		if (!read_peer(&to, sk))
			return 0;
		flags = AM_F_CONNECTED | (may_pass(sk, &a) ? AM_PASSES : 0);
		op = AM_CONNECT;
		if (a.facts)
			forget_rates(&a);
	}
	to.protocol = am_load(struct sock, sk, sk_protocol);
	if (!flags && !a.doomed && asks(&a, &to))
		return 0; /* sendmsg4, sendmsg6 come next; for TCP fast open connect4, connect6 */
	return answer(decide_address(&a, op, &to, flags));
}

SEC("lsm/socket_setsockopt")
int BPF_PROG(option_check, struct socket *sock, int level, int name)
{
	struct am_actor a = {};
	int who;

	if (!routes(level, name))
		return 0;
	who = identify(&a);
	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		return -EPERM;
	}
	return answer(decide_route(&a));
}

SEC("lsm/socket_bind")
int BPF_PROG(bind_check, struct socket *sock, struct sockaddr *address, int len)
{
	struct am_address to = {};
	struct am_actor a = {};
	int who = identify(&a);

	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		return -EPERM;
	}
	if (!read_address(&to, address, len,
			  am_load(struct sock, sock->sk, __sk_common.skc_family) == AM_AF_INET,
			  true))
		return 0; /* a unix socket's name is created */
	to.protocol = am_load(struct sock, sock->sk, sk_protocol);
	return answer(decide_address(&a, AM_BIND, &to, 0));
}

SEC("lsm/socket_listen")
int BPF_PROG(listen_check, struct socket *sock, int backlog)
{
	struct sock *sk = sock->sk;
	struct am_address to = {};
	struct am_actor a = {};
	int who = identify(&a);

	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		return -EPERM;
	}
	if (!sk || !read_local(&to, sk))
		return 0;
	return answer(decide_address(&a, AM_LISTEN, &to, 0));
}

/* These three apart: together their frames would not fit into the 512 bytes of Linux 6.1. */
static __noinline int reaches_own(__u64 other)
{
	struct am_actor a = {};
	int who = identify(&a);

	return !who || (who == 1 && !a.doomed && served_by_own(&a, other));
}

static __noinline int judge_abstract(__u64 address)
{
	struct am_actor a = {};
	int who = identify(&a);

	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		return -EPERM;
	}
	return answer(decide_abstract(&a, address));
}

static __always_inline int judge_unix(__u64 other)
{
	__u64 dentry = (__u64)am_load(struct unix_sock, other, path.dentry);
	__u64 address = (__u64)am_load(struct unix_sock, other, addr);

	if (reaches_own(other))
		return 0;
	if (dentry)
		return judge_path(1U << AM_UNIX, (__u64)am_load(struct unix_sock, other, path.mnt),
				  dentry, (__u64)am_load(struct dentry, dentry, d_inode), 0);
	/* without a name, somebody gave us its other end */
	return address ? judge_abstract(address) : 0;
}

SEC("lsm/unix_stream_connect")
int BPF_PROG(unix_connect_check, struct sock *sk, struct sock *other, struct sock *newsk)
{
	return judge_unix((__u64)other);
}

/* A datagram, or connect of a datagram socket. */
SEC("lsm/unix_may_send")
int BPF_PROG(unix_send_check, struct socket *sock, struct socket *other)
{
	return judge_unix((__u64)other->sk);
}

/* Returns: 1 go on (the LSM hook has judged it), 0 the call fails with EPERM, AM_ASKS redirect it. */
static __always_inline int judge_address(struct am_actor *a, const struct am_address *to, __u32 op,
					 __u32 flags)
{
	int who;

	if (to->port != AM_DNS_PORT)
		return 1;
	who = identify(a);
	if (who < 0) {
		count(AM_C_NO_STATE);
		return 0;
	}
	return who && asks(a, to) ? AM_ASKS : 1;
}

#include "sock.bpf.h"

SEC("lsm/task_alloc")
int BPF_PROG(fork_check, struct task_struct *child, unsigned long clone_flags)
{
	struct am_actor a = {};
	__u64 address = (__u64)child;
	int who;

	if (clone_flags & AM_CLONE_THREAD)
		return 0;
	who = identify(&a);
	if (!who)
		return 0;
	if (who > 0) {
		if (find_tags(&a))
			a.proc.generation = 0;
		add_parent(&a.proc);
	}
	if (who > 0 && a.proc.step) {
		int why = fork_step(&a.proc, &a.key);

		if (why == AM_LEFT)
			a.proc.step = 0;
		else if (why)
			return -AM_EAGAIN;
	}
	if (who < 0 || nprocs + AM_FORK_SLACK >= knobs.procs_max ||
	    bpf_map_update_elem(&newborn, &address, &a.proc, BPF_ANY)) {
		count(AM_C_FORK_REFUSED);
		if (who > 0 && a.proc.step)
			leave_step(&a.proc, &a.key, 0);
		return -AM_EAGAIN;
	}
	__sync_fetch_and_add(&nnewborn, 1);
	count(AM_C_JOINED);
	return 0;
}

/* A fork that failed, or that process_fork missed; what counts in a step by its own entry has none here. */
static __always_inline void unborn(struct task_struct *t)
{
	struct am_proc_key k = {};
	__u64 address = (__u64)t;
	struct am_proc *b, copy;

	if (nnewborn <= 0)
		return;
	b = bpf_map_lookup_elem(&newborn, &address);
	if (!b)
		return;
	copy = *b;
	no_newborn(t);
	k.tgid = t->tgid;
	if (copy.step)
		leave_step(&copy, &k, 0);
}

/* What process_exit missed. Also called for a fork that failed, whose task still bears its parent's numbers. */
SEC("lsm/task_free")
int BPF_PROG(task_forget, struct task_struct *t)
{
	struct am_proc_key k = {};

	unborn(t);
	forget_waiting(t);
	forget_starting(t);
	if (t->group_leader != t || t->pid != t->tgid)
		return 0;
	k.tgid = t->tgid;
	k.start_ns = t->start_boottime;
	forget(&k, t, t->exit_code);
	return 0;
}

SEC("lsm/bprm_committed_creds")
int BPF_PROG(process_exec, struct linux_binprm *bprm)
{
	struct am_actor a = {};
	struct am_proc *p;
	__u32 why;

	if (identify(&a) == 1) {
		if (a.proc.args) {
			p = bpf_map_lookup_elem(&procs, &a.key);
			if (p)
				p->args = 0; /* its memory is new */
		}
		if (nhalted > 0)
			forget_halted(&a.key);
		if (a.proc.stepping & AM_COMMAND) {
			p = bpf_map_lookup_elem(&procs, &a.key);
			if (p)
				p->stepping = 0;
			if (!is_starting())
				a.part = 0;
		}
		judge_waiting(&a, bprm);
		if (nstarting > 0 && is_starting()) {
			why = finish_start(&a, bprm);
			forget_starting((void *)bpf_get_current_task_btf());
			if (why) {
				a.out = why;
				a.part = AM_DENY;
				decide_path(&a, 1U << AM_EXEC, (__u64)bprm->file->f_path.mnt,
					    (__u64)bprm->file->f_path.dentry,
					    (__u64)bprm->file->f_inode, AM_F_KILLED);
				kill_current();
			}
		}
		retag(&a, a.proc.exe_tags);
		send_execed(&a);
	}
	return 0;
}
