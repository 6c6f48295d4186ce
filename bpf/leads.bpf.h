/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether a name that a call was given leads through a symbolic link, by what the kernel remembers of the directories on the
 * way: then what find_name() found may be another path than the one that was changed. Asked of what is to be denied alone.
 */
#ifndef AGENTMON_LEADS_H
#define AGENTMON_LEADS_H

#include "decide.bpf.h"

#define S_IFLNK_ 0120000
#define S_IFDIR_ 0040000
/* Over bytes, children of directories, and mounts. */
#define AM_LEADING_STEPS 262144

/* What a step looks at. */
#define AM_PARSE 0
#define AM_CHILDREN 1
#define AM_MOUNTS 2

/*
 * Since Linux 6.8 the children of a dentry are a list that ends by NULL; before, it ended where it began. Not inlined: see
 * names.bpf.h.
 */
#define am_siblings() bpf_core_field_exists(((struct dentry *)0)->d_children)

static __noinline void first_sibling(struct am_leading *x, __u64 dentry)
{
	x->node = (__u64)am_load(struct dentry, dentry, d_children.first);
	x->end = 0;
}

static __noinline void first_listed_child(struct am_leading *x, __u64 dentry)
{
	x->node = (__u64)am_load(struct dentry___old, dentry, d_subdirs.next);
	x->end = dentry + bpf_core_field_offset(struct dentry___old, d_subdirs);
}

static __noinline void next_sibling(struct am_leading *x)
{
	x->child = x->node - bpf_core_field_offset(struct dentry, d_sib);
}

static __noinline void next_listed_child(struct am_leading *x)
{
	x->child = x->node - bpf_core_field_offset(struct dentry___old, d_child);
}

/* Whether the child has the name that is looked for, and still has it. Global, so that the verifier looks at it once. */
__noinline int is_called(__u32 slot)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	__u64 child, length, at;
	const void *name;
	char *room;

	if (!job)
		return 0;
	child = job->leading.child;
	length = job->leading.length;
	at = job->leading.at;
	if (am_load(struct dentry, child, d_name.len) != length ||
	    !am_load(struct dentry, child, d_hash.pprev))
		return 0;
	room = job->room + AM_HEAD;
	name = am_load(struct dentry, child, d_name.name);
	am_bound(length, 0xff);
	am_bound(at, 0x1fff);
	if (at > 2 * AM_PATH_MAX - 256)
		return 0;
	/* behind all that is in the room */
	if (bpf_probe_read_kernel(room + 2 * AM_PATH_MAX, length, name))
		return 0;
	for (__u32 i = 0; i < 255; i++) {
		if (i >= length)
			break;
		if (room[at + i] != room[2 * AM_PATH_MAX + i])
			return 0;
	}
	return 1;
}

static __always_inline void enter_mount(struct am_leading *x)
{
	__u64 m = x->mount;

	x->node = (__u64)am_load(struct mount, m, mnt_mounts.next);
	x->end = m + bpf_core_field_offset(struct mount, mnt_mounts);
}

/* One byte of the name; at the end of a component, what it is looked for in. */
static __always_inline long parse_one(struct am_job *job, struct am_leading *x)
{
	char *room = job->room + AM_HEAD;
	__u64 at = x->at + x->length, d = x->dentry, m = x->mount, up;
	char byte;

	am_bound(at, 0x1fff);
	byte = room[at];
	if (!byte || x->length > 255)
		return 1; /* what is changed is in the last directory */
	if (byte != '/') {
		x->length++;
		x->plain |= byte != '.';
		return 0;
	}
	if (x->length == 2 && !x->plain) {
		up = (__u64)am_load(struct mount, m, mnt_parent);
		if (d == (__u64)am_load(struct mount, m, mnt.mnt_root) && up != m) {
			x->dentry = (__u64)am_load(struct mount, m, mnt_mountpoint);
			x->mount = up;
			return 0;
		}
		x->dentry = (__u64)am_load(struct dentry, d, d_parent);
	} else if (x->length > 1 || x->plain) {
		if (am_siblings())
			first_sibling(x, d);
		else
			first_listed_child(x, d);
		x->doing = AM_CHILDREN;
		return 0;
	}
	x->at += x->length + 1;
	x->length = x->plain = 0;
	return 0;
}

struct am_leading_ctx {
	struct am_job *job;
	__u32 slot;
};

static long lead_on(__u32 i, struct am_leading_ctx *c)
{
	struct am_job *job = c->job;
	struct am_leading *x = &job->leading;
	__u64 node = x->node, child, inode;
	__u32 kind;

	if (x->doing == AM_PARSE)
		return parse_one(job, x);
	if (!node || node == x->end) {
		if (x->doing == AM_CHILDREN)
			return 1; /* forgotten: then it is no link */
		x->doing = AM_PARSE;
		return 0;
	}
	if (x->doing == AM_CHILDREN) {
		if (am_siblings())
			next_sibling(x);
		else
			next_listed_child(x);
		x->node = (__u64)am_load(struct list_head, node, next);
		if (!is_called(c->slot))
			return 0;
		child = x->child;
		inode = (__u64)am_load(struct dentry, child, d_inode);
		kind = inode ? am_load(struct inode, inode, i_mode) & S_IFMT_ : 0;
		x->found = kind == S_IFLNK_;
		if (kind != S_IFDIR_)
			return 1;
		x->dentry = child;
		x->at += x->length + 1;
		x->length = x->plain = 0;
		x->doing = AM_MOUNTS;
		enter_mount(x);
		return 0;
	}
	child = node - bpf_core_field_offset(struct mount, mnt_child);
	x->node = (__u64)am_load(struct list_head, node, next);
	if ((__u64)am_load(struct mount, child, mnt_mountpoint) == x->dentry) {
		x->mount = child;
		x->dentry = (__u64)am_load(struct mount, child, mnt.mnt_root);
		enter_mount(x);
	}
	return 0;
}

/* Of the name that find_name() has just found in this slot. Global, so that the verifier looks at it once. */
__noinline int leads_through_link(__u32 slot)
{
	struct am_job *job = bpf_map_lookup_elem(&scratch, &slot);
	struct am_leading_ctx c = {.job = job, .slot = slot};
	struct am_leading *x;

	if (!job || !job->leading.at)
		return 0;
	x = &job->leading;
	x->dentry = job->dentry;
	x->mount = job->mount;
	x->length = x->plain = x->found = 0;
	x->doing = AM_PARSE;
	bpf_loop(AM_LEADING_STEPS, lead_on, &c, 0);
	return x->found ? 1 : 0;
}

#endif
