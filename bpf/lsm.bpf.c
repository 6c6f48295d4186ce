// SPDX-License-Identifier: GPL-2.0-only
/*
 * LSM tier: each operation is decided before it takes effect; deny is -EPERM, kill is -EPERM and SIGKILL.
 * Nothing here is attached to a system call, so other processes pay one table look-up per hook.
 *
 *   lsm/bprm_check_security    exec, for a script and again for its interpreter
 *   lsm/file_open              read, write (O_TRUNC included)
 *   lsm/path_truncate          write, by truncate(2)
 *   lsm/path_mknod             create, by open(O_CREAT) and mknod
 *   lsm/path_mkdir, path_symlink   create
 *   lsm/path_link, path_rename  create of the new name; read and write of the old one
 *   lsm/socket_create          socket families that no address rule can judge
 *   lsm/socket_connect         connect
 *   lsm/socket_sendmsg         send, on connected sockets too
 *   lsm/task_alloc             the child inherits; a fork that could not be tracked is refused
 *   lsm/bprm_committed_creds   the new program's exe tags
 *   lsm/task_free              a process that ended and is still listed
 *   tp_btf/sched_process_fork, _exit                       the process table, at once
 *   iter/task                  enrolment of what already runs
 *
 * A hook that cannot tell (no scratch, no session, no path) takes the severest verdict of its operation.
 */
#define AM_TIER AM_TIER_LSM
#include "exec.bpf.h"
#include "net.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define EPERM 1
#define FMODE_READ 1
#define FMODE_WRITE 2
#define FMODE_CREATED \
	0x100000 /* include/linux/fs.h: the open made the file; judged in path_mknod */
#define O_TRUNC 01000
#define O_TMPFILE 020000000
#define FMODE_EXEC \
	0x20 /* __FMODE_EXEC in f_flags: opened to be run, judged in bprm_check_security */
#define MSG_FASTOPEN 0x20000000
#define S_IFMT 00170000
#define S_IFDIR 0040000
#define RENAME_EXCHANGE 2

/* Returns: -EPERM for a verdict that blocks, else 0; as two constants, Linux 6.12 rejects the negation that clang makes. */
static __always_inline int answer(__u32 verdict)
{
	int err = 0;

	if (verdict >= AM_HOLD) {
		err = -EPERM;
		asm volatile("" : "+r"(err));
	}
	return err;
}

/* One path operation from a hook that has typed arguments. Not inlined: link and rename need it twice, see report_bare(). */
static __noinline int judge_path(__u32 ops, __u64 mnt, __u64 dentry, __u64 inode, __u32 flags)
{
	struct am_actor a;
	int who = identify(&a);

	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		report_bare(&a, AM_READ, AM_DENY, AM_NO_STATE, 0);
		return -EPERM;
	}
	return answer(decide_path(&a, ops, mnt, dentry, inode, flags, false));
}

/* Another name for a file carries it out of the rules on its old one: linking and moving it need all of these. */
#define AM_CARRY (1U << AM_READ | 1U << AM_WRITE)

/*
 * Whether no process can name what is on this mount: pipes, sockets and memfd, already held by somebody; and the private
 * clones by which overlayfs opens its layers, after the merged file was judged.
 */
static __always_inline bool pseudo(__u64 mnt)
{
	struct vfsmount *v = (void *)mnt;
	struct super_block *sb = am_load(struct vfsmount, v, mnt_sb);
	struct mount *m = (void *)(mnt - bpf_core_field_offset(struct mount, mnt));

	return am_load(struct super_block, sb, s_flags) & AM_SB_NOUSER ||
	       (__s64)am_load(struct mount, m, mnt_ns) == AM_MNT_NS_INTERNAL;
}

SEC("lsm/bprm_check_security")
int BPF_PROG(exec_check, struct linux_binprm *bprm)
{
	struct file *f = bprm->file;

	return judge_path(1U << AM_EXEC, (__u64)f->f_path.mnt, (__u64)f->f_path.dentry,
			  (__u64)f->f_inode, 0);
}

SEC("lsm/file_open")
int BPF_PROG(open_check, struct file *f)
{
	unsigned int mode = f->f_mode, fl = f->f_flags;
	__u32 ops = 0;

	if (fl & FMODE_EXEC || mode & FMODE_CREATED)
		return 0;
	if (fl & O_TMPFILE)
		ops = 1U << AM_CREATE;
	else if (mode & FMODE_WRITE || fl & O_TRUNC)
		ops |= 1U << AM_WRITE;
	if (mode & FMODE_READ && !(fl & O_TMPFILE))
		ops |= 1U << AM_READ;
	if (!ops || pseudo((__u64)f->f_path.mnt))
		return 0;
	return judge_path(ops, (__u64)f->f_path.mnt, (__u64)f->f_path.dentry, (__u64)f->f_inode, 0);
}

SEC("lsm/path_truncate")
int BPF_PROG(truncate_check, struct path *p)
{
	struct dentry *d = p->dentry;

	return judge_path(1U << AM_WRITE, (__u64)p->mnt, (__u64)d, (__u64)d->d_inode, 0);
}

SEC("lsm/path_mknod")
int BPF_PROG(mknod_check, struct path *dir, struct dentry *d)
{
	return judge_path(1U << AM_CREATE, (__u64)dir->mnt, (__u64)d, 0, 0);
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

/* mode and owner; setxattr and utime have no hook that tells the path */
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

SEC("lsm/path_link")
int BPF_PROG(link_check, struct dentry *old, struct path *dir, struct dentry *d)
{
	/* link(2) stays on one mount, so the new directory's is the old name's too */
	int err = judge_path(AM_CARRY | 1U << AM_LINK, (__u64)dir->mnt, (__u64)old,
			     (__u64)old->d_inode, 0);

	if (err)
		return err;
	return judge_path(1U << AM_CREATE, (__u64)dir->mnt, (__u64)d, 0, 0);
}

/* The walk and the automaton over the job's path; 0, or enum am_reason why there is none. */
static __always_inline __u32 follow(__u32 slot, struct am_job *job, __u64 mnt, __u64 dentry)
{
	__u32 why;

	job->dentry = dentry;
	job->mount = mnt - bpf_core_field_offset(struct mount, mnt);
	why = walk(slot, AM_PATH_END);
	if (!why && run_automaton(slot))
		why = AM_NO_STATE;
	return why;
}

/*
 * Whether a directory may take all that is below it along; its own names were judged before. agentmon/policy/walk.py,
 * run_move(), is the same in Python. The old name comes last: it is the one in the record.
 */
static __noinline int judge_move(__u64 old_mnt, __u64 old, __u64 mnt, __u64 dentry, __u64 inode)
{
	struct am_actor a;
	struct am_job *job;
	__u64 sticky;
	__u32 slot = 0, why, below;
	int v = -1, w;

	if (identify(&a) != 1)
		return 0; /* judged before: not enrolled any more */
	job = claim(&slot);
	if (!job)
		return answer(fallback(&a, 1U << AM_RENAME, AM_DENY, AM_NO_SCRATCH, 0));
	job->policy = a.policy;
	job->ops = 1U << AM_RENAME;
	job->exe_tags = a.proc.exe_tags;
	why = follow(slot, job, mnt, dentry);
	below = job->below;
	sticky = job->sticky;
	if (!why) {
		v = blocked_below(slot, AM_WRITE);
		w = blocked_below(slot, AM_CREATE);
		v = w > v ? w : v;
		why = follow(slot, job, old_mnt, old);
	}
	inode_of(job, inode);
	if (why) {
		job->off = AM_PATH_END;
		judge(slot, why);
		job->verdict = AM_DENY;
	} else if (below == job->below && sticky == job->sticky) {
		release(job);
		return 0;
	} else {
		w = blocked_below(slot, AM_READ);
		v = w > v ? w : v;
		w = blocked_below(slot, AM_WRITE);
		v = w > v ? w : v;
		w = fence_between(a.policy, job->below, below, job->sticky ^ sticky);
		v = w > v ? w : v;
		if (v < 0) {
			release(job);
			return 0;
		}
		job->op = AM_RENAME;
		job->verdict = AM_DENY;
		job->rule = am_packed_rule(v);
		job->reason = AM_CONTENTS;
		job->pinned = 0;
	}
	report(job, &a, 0);
	release(job);
	count(AM_C_BLOCKED);
	return answer(AM_DENY);
}

static __always_inline bool is_directory(struct dentry *d)
{
	struct inode *i = d->d_inode;

	return i && (i->i_mode & S_IFMT) == S_IFDIR;
}

/* `old` comes to be called as `d` is. */
static __always_inline int judge_rename(struct path *old_dir, struct dentry *old, struct path *dir,
					struct dentry *d)
{
	__u64 target = (__u64)d->d_inode;
	int err = judge_path(AM_CARRY | 1U << AM_RENAME, (__u64)old_dir->mnt, (__u64)old,
			     (__u64)old->d_inode, 0);

	/* what is there under the new name is lost: that is a write */
	if (!err)
		err = judge_path(1U << AM_CREATE | (target ? 1U << AM_WRITE : 0), (__u64)dir->mnt,
				 (__u64)d, target, 0);
	if (!err && is_directory(old))
		err = judge_move((__u64)old_dir->mnt, (__u64)old, (__u64)dir->mnt, (__u64)d,
				 (__u64)old->d_inode);
	return err;
}

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
	struct am_actor a;
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
 * AF_UNSPEC for AF_INET in sendto (net/ipv4/udp.c), so a send must too.
 */
static __always_inline bool read_address(struct am_address *to, const void *from, int len,
					 bool unspec_is_v4)
{
	struct any_address x = {};

	if (len < 8)
		return false;
	bpf_probe_read_kernel(&x, 8, from);
	to->family = x.family;
	to->port = bpf_ntohs(x.port_be);
	if (x.family == AM_AF_INET || (x.family == AM_AF_UNSPEC && unspec_is_v4)) {
		fold4(to, x.v4_be);
		return true;
	}
	if (x.family != AM_AF_INET6 || len < 24)
		return false;
	bpf_probe_read_kernel(x.v6_be, 16, from + 8);
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
	struct am_actor a;
	int who = identify(&a);

	if (!who)
		return 0;
	if (who < 0) {
		count(AM_C_NO_STATE);
		return -EPERM;
	}
	if (!read_address(&to, address, len, false))
		return 0; /* AF_UNSPEC disconnects; AF_UNIX is another operation */
	to.protocol = am_load(struct sock, sock->sk, sk_protocol);
	return answer(decide_net(&a, AM_CONNECT, &to, 0));
}

SEC("lsm/socket_sendmsg")
int BPF_PROG(send_check, struct socket *sock, struct msghdr *msg, int size)
{
	struct sock *sk = sock->sk;
	__u16 family;
	struct am_address to = {};
	struct am_actor a;
	__u32 flags = 0;
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
	/* a stream ignores the name, unless it opens the connection with it */
	if (!(msg->msg_name && (sock->type != AM_SOCK_STREAM || msg->msg_flags & MSG_FASTOPEN) &&
	      read_address(&to, msg->msg_name, msg->msg_namelen, family == AM_AF_INET))) {
		if (!read_peer(&to, sk))
			return 0;
		flags = AM_F_CONNECTED;
	}
	to.protocol = am_load(struct sock, sk, sk_protocol);
	return answer(decide_net(&a, AM_SEND, &to, flags));
}

SEC("lsm/task_alloc")
int BPF_PROG(fork_check, struct task_struct *child, unsigned long clone_flags)
{
	struct am_actor a;
	__u64 address = (__u64)child;
	int who;

	if (clone_flags & AM_CLONE_THREAD)
		return 0;
	who = identify(&a);
	if (!who)
		return 0;
	if (who < 0 || nprocs + AM_FORK_SLACK >= knobs.procs_max ||
	    bpf_map_update_elem(&newborn, &address, &a.proc, BPF_ANY)) {
		count(AM_C_FORK_REFUSED);
		return -AM_EAGAIN;
	}
	__sync_fetch_and_add(&nnewborn, 1);
	count(AM_C_JOINED);
	return 0;
}

/* What process_exit missed. Also called for a fork that failed, whose task still bears its parent's numbers. */
SEC("lsm/task_free")
int BPF_PROG(task_forget, struct task_struct *t)
{
	struct am_proc_key k = {};

	no_newborn(t);
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
	struct am_actor a;

	if (identify(&a) == 1) {
		retag(&a, (void *)bpf_get_current_task_btf());
		send_execed(&a);
	}
	return 0;
}
