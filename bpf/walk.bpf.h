/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The true absolute path of a dentry on a mount, from the leaf up to the root of its mount namespace.
 *
 * bpf_d_path is no help: it is relative to the task's root, so chroot evades it, and it is forbidden in many hooks.
 * A rename may run at the same time. Each name and parent is covered by its dentry's d_seq, which
 * __d_move() makes odd while it works (fs/dcache.c); the walk sums what it saw (sequence numbers, the hashes of names,
 * mount ids: no pointers, the verifier forbids arithmetic on them), and a second walk must see the same. Then every
 * component stood still between the end of the first walk and the start of the second: the path was true at that
 * moment. The sum is keyed, so nobody outside the kernel can aim at one.
 */
#ifndef AGENTMON_WALK_H
#define AGENTMON_WALK_H

#include "maps.bpf.h"

#define AM_SB_NOUSER (1UL << 31) /* include/linux/fs.h: a file system that nobody can mount */
#define AM_WALKS 16   /* attempts at a quiet moment; each takes well under a microsecond */

/*
 * The state of a walk lives in the scratch slot, not on the stack: pointers read back from a map
 * are plain numbers to the verifier, so every step looks the same to it (else > 1,000,000 instructions).
 */

#define AM_PATH_END (AM_PATH_MAX - 1) /* one past the last byte of a path, in the path area */

#define AM_MNT_NS_INTERNAL (-22) /* ERR_PTR(-EINVAL) in fs/mount.h: a mount that is in no tree */

/*
 * Whether a mount namespace is the anonymous one of a tree that open_tree(2) or fsmount(2) made and nobody attached:
 * a path from its root says nothing. It has no number (alloc_mnt_ns() in fs/namespace.c), since Linux 6.18 a fixed one.
 */
#define AM_ANON_INO 0xeffffff7

static __always_inline bool detached(struct mnt_namespace *ns)
{
	__u32 inum = am_load(struct mnt_namespace, ns, ns.inum);

	return inum == 0 || inum == AM_ANON_INO;
}

/* One component, or one crossing from a mount to its mount point. Returns 1 to stop: done and why are set. */
static __always_inline long walk_one(struct am_walk *w, char *path)
{
	struct dentry *d = (void *)w->dentry;
	struct mount *m = (void *)w->mount;
	__u32 seq = am_load(struct dentry, d, d_seq.seqcount.sequence);
	__u64 parent = (__u64)am_load(struct dentry, d, d_parent);
	__u64 root = (__u64)am_load(struct mount, m, mnt.mnt_root);

	w->sum = mix(w->sum ^ am_load(struct dentry, d, d_name.hash_len) ^ knobs.key) +
		 ((__u64)am_load(struct mount, m, mnt_id) << 32) + seq;
	if (seq & 1)
		return 1; /* not done: being renamed at this moment */
	if (w->dentry == root) {
		__u64 up = (__u64)am_load(struct mount, m, mnt_parent);

		if (up == w->mount) {
			__s64 ns = (__s64)am_load(struct mount, m, mnt_ns);

			/* NULL: detached */
			if (ns == 0 || ns == AM_MNT_NS_INTERNAL || detached((void *)ns))
				w->why = AM_PATH_UNREACHABLE;
			w->done = 1;
			return 1;
		}
		w->dentry = (__u64)am_load(struct mount, m, mnt_mountpoint);
		w->mount = up;
		return 0;
	}
	if (w->dentry == parent || !parent) {
		w->why = AM_PATH_UNREACHABLE;
		w->done = 1;
		return 1;
	}
	if (path) {
		const unsigned char *name = am_load(struct dentry, d, d_name.name);
		__u64 len = am_load(struct dentry, d, d_name.len);
		__u64 off = w->off;

		if (len > 255 || off < len + 1) {
			w->why = len > 255 ? AM_PATH_UNREACHABLE : AM_PATH_TOO_LONG;
			w->done = 1;
			return 1;
		}
		off -= len + 1;
		am_bound(off, 0xfff);
		am_bound(len, 0xff);
		path[off] = '/';
		if (bpf_probe_read_kernel(path + off + 1, len, name))
			count(AM_C_READ_FAILED);
		w->off = off;
	}
	w->dentry = parent;
	return 0;
}

struct am_walk_ctx {
	struct am_job *job;
};

static long walk_copy(__u32 i, struct am_walk_ctx *c)
{
	return walk_one(&c->job->walk, c->job->room + AM_HEAD);
}

static long walk_sum(__u32 i, struct am_walk_ctx *c)
{
	return walk_one(&c->job->walk, NULL);
}

/*
 * The first pass: no path, only the sum over all that it is made of. Returns 0, a reason (enum am_reason) why there is
 * no path to trust, or -1: try again.
 */
__noinline int walk_look(__u32 slot)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_walk_ctx c = {.job = job};
	struct am_walk *w;

	if (!job)
		return AM_NO_SCRATCH;
	w = &job->walk;
	w->dentry = job->dentry;
	w->mount = job->mount;
	w->off = AM_PATH_END;
	w->sum = w->why = w->done = 0;
	/* a path of 4,095 bytes has at most 2,048 components, and mounts are crossed in between */
	bpf_loop(AM_PATH_MAX, walk_sum, &c, 0);
	if (!w->done)
		return -1;
	return w->why;
}

/*
 * The second pass: writes the path in front of `end` (offset in the path area, exclusive), sets job->off. Returns as
 * walk_look() does; -1 also when it did not see what the first pass saw.
 */
__noinline int walk_read(__u32 slot, __u32 end)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_walk_ctx c = {.job = job};
	struct am_walk *w;
	__u64 sum;

	if (!job)
		return AM_NO_SCRATCH;
	w = &job->walk;
	sum = w->sum;
	w->dentry = job->dentry;
	w->mount = job->mount;
	w->off = end;
	w->sum = w->why = w->done = 0;
	bpf_loop(AM_PATH_MAX, walk_copy, &c, 0);
	job->off = w->off;
	if (!w->done)
		return -1;
	if (w->why)
		return w->why;
	if (w->sum != sum)
		return -1;
	if (job->off == AM_PATH_END) { /* the root itself */
		job->off = AM_PATH_END - 1;
		job->room[AM_HEAD + AM_PATH_END - 1] = '/';
	}
	return 0;
}

/*
 * Both passes until they agree; `why` is what a first walk_look() said. Returns 0 or enum am_reason. Global, so that
 * the verifier looks at it once.
 */
__noinline int walk_on(__u32 slot, __u32 end, int why)
{
	for (int i = 0; i < AM_WALKS; i++) {
		if (why > 0)
			return why;
		if (!why)
			why = walk_read(slot, end);
		if (why >= 0)
			return why;
		count(AM_C_PATH_RETRIED);
		why = walk_look(slot);
	}
	return AM_PATH_UNSTABLE;
}

/* The path of job->dentry on job->mount, in front of `end`. Returns 0 or enum am_reason. */
static __always_inline __u32 walk(__u32 slot, __u32 end)
{
	return walk_on(slot, end, walk_look(slot));
}

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

#endif
