/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps that all programs share, and the knobs that are set before load.
 */
#ifndef AGENTMON_MAPS_H
#define AGENTMON_MAPS_H

#include "compat.bpf.h"
#include "tables.h"

/* Bytes of path in a scratch slot; a path has at most 4,095 (PATH_MAX less its NUL). */
#define AM_PATH_MAX 4096
/* Room in front of the path for the record's fixed part: the record is sent from the slot, uncopied. */
#define AM_HEAD 128
/* Path, one more name, and the longest record: what the verifier must see past any start offset. */
#define AM_ROOM (AM_HEAD + AM_PATH_MAX + AM_PATH_MAX + 256)
/*
 * Hooks are preemptible, so many can be half way at once on each CPU. 256 slots of 8.5 KiB; the
 * notes' stress (six processes a CPU) peaks below 16.
 */
#define AM_SLOTS 256
#define AM_SLOT_TRIES 32

struct am_walk {
	__u64 dentry, mount;
	__u64 sum; /* over what the walk saw; equal sums mean an unchanged path */
	__u64 off; /* of the path in room, less AM_HEAD */
	__u32 why; /* enum am_reason */
	__u32 done;
};

/* Of path_verdict(): sticky bits still to look at, and the first rule so far. */
struct am_bits {
	__u64 left;
	__u64 op;
	__u32 accept_base, list_base;
	__u32 best;
	__u32 pad;
};

/* Mounts that show one file under different names; more, and nobody knows by which of them it was come by. */
#define AM_NAMES 32

/* Of list_names(). */
struct am_names {
	__u64 node, end; /* the next mount of the file system, and what ends the list */
	__u64 ns;
	__u64 mount, root; /* the one looked at */
	__u64 at; /* the ancestor that is to be compared with its root; 0: on to the next mount */
	__u32 found, done;
	__u64 mounts[AM_NAMES];
};

/* Of tail_fits(): a tail's bytes, `length` of them from `ix` in the arena, against the path from `at`. */
struct am_tail {
	__u64 at, ix, length, done; /* `done` of them are the same */
	__u64 differs;
};

/* Of find_name(): a path is read from its end and written to where it ends. */
struct am_tidying {
	__u64 at, to;
	__u64 length; /* of the name under way */
	__u64 up; /* names still to be left out */
	__u64 plain; /* it is not made of dots alone */
};

/* Of leads_through_link(). */
struct am_leading {
	__u64 at, length; /* of a component, in room less AM_HEAD; 0: there is no name */
	__u64 dentry, mount; /* what it is in */
	__u64 node, end; /* of the list that is looked at */
	__u64 child;
	__u32 doing, found;
	__u64 plain; /* it is not made of dots alone */
};

/* Of read_arguments(). */
struct am_args {
	__u64 at; /* where to read on */
	__u64 bytes; /* so far */
	__u32 left, skip; /* arguments: still to read; of them, those that are not matched */
	__u32 inside; /* an argument was begun */
	__u32 pad;
};

/* What loops go by is here rather than on their stacks, where the verifier would follow each value that it can have. */
struct am_job {
	__u64 busy;
	/* of an exec that waits for its arguments, see waiting.bpf.h */
	__u32 generation; /* of the policy that it was judged by */
	__u32 argc; /* before an interpreter was put in front */
	__u32 later; /* files of this exec that were looked at since */
	__u32 owner; /* the session's slot */
	/* in */
	__u64 dentry, mount; /* struct dentry *, struct mount * */
	__u64 inode;
	__u64 exe_tags;
	__u64 asked; /* the facts that one operation is judged by: am_asked() */
	__u32 policy;
	__u32 session;
	__u32 ops; /* bit per operation */
	/* out */
	__u64 sticky;
	__u64 tags;
	__u16 first[AM_PATH_OPS]; /* per operation the first rule that was entered */
	__u32 tail[AM_LANES], tail_at[AM_LANES];
	struct am_walk walk;
	struct am_names names;
	__u64 ino;
	__u32 dev, igen;
	__u64 held, same; /* of what waits for an answer, see hold.bpf.h */
	__u32 off; /* of the path in room, less AM_HEAD */
	__u32 accept[1 + AM_LANES]; /* rows of the final states, absolute */
	__u32 below; /* the state after one more slash */
	__u32 facts, unsure; /* in: of the actor */
	__u32 hoped; /* in: facts that may be true, but what blocks by them waits; see exec.bpf.h */
	__u32 trial; /* in: nothing comes of the verdict */
	__u32 classes; /* of the run under way: 0, or AM_ARGUMENTS */
	__u32 marks; /* that the rules of its operations set; 0: the decision may be remembered */
	__u32 state, at; /* of the run under way: at is an offset in room, less AM_HEAD */
	struct am_bits bits;
	struct am_tail compared;
	struct am_args args;
	struct am_tidying tidying;
	struct am_leading leading;
	__u16 rule, reason;
	__u16 ruled[AM_PATH_OPS]; /* the rule of each operation */
	__u8 verdict, op, pinned, told;
	__u64 ways[2]; /* to start a step, that a program matches */
	/* of the plan's part, which is judged first */
	__u16 plan_rule;
	__u8 plan_verdict, plan_op, plan_reason, plan_pinned;
	__u8 plan_best; /* LSM, of a program: the verdict if its arguments are the best that may be */
	__u8 planned; /* in: it is what is being judged */
	__u32 plan_ops; /* in: bit per operation that it is asked for */
	char room[AM_ROOM];
};

/* The path sits at the end of the first AM_PATH_MAX bytes behind AM_HEAD. */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, AM_SLOTS);
	__type(key, __u32);
	__type(value, struct am_job);
} scratch SEC(".maps");

/* One value, resized before load to the power of two that knobs.arena_mask covers; mapped by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u16[4096]);
} arena SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, AM_MAX_POLICIES);
	__type(key, __u32);
	__type(value, struct am_policy);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, AM_MAX_ACCEPTS);
	__type(key, __u32);
	__type(value, struct am_accept);
} accepts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, AM_MAX_LISTS);
	__type(key, __u32);
	__type(value, struct am_list);
} lists SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, AM_MAX_NET);
	__type(key, struct am_net_key);
	__type(value, struct am_net_list);
} net SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, AM_MAX_PINS);
	__type(key, struct am_pin_key);
	__type(value, __u32);
} pins SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, AM_MAX_USERS);
	__type(key, struct am_user_key);
	__type(value, __u32);
} users SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, AM_MAX_POLICIES);
	__type(key, __u32);
	__type(value, struct am_clock);
} clocks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, AM_MAX_POLICIES);
	__type(key, __u32);
	__type(value, struct am_wants);
} wants SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, AM_MAX_MARKED);
	__type(key, struct am_marked_key);
	__type(value, struct am_marks);
} marked SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, AM_MAX_POLICIES);
	__type(key, __u32);
	__type(value, struct am_plan);
} plans SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, AM_MAX_POLICIES);
	__type(key, __u32);
	__type(value, struct am_parts);
} parts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, AM_MAX_SESSIONS);
	__type(key, __u64);
	__type(value, struct am_steps);
} steps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, AM_MAX_STEP_FILES);
	__type(key, struct am_file_key);
	__type(value, __u8);
} step_files SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, AM_MAX_LINEAGES);
	__type(key, __u32);
	__type(value, struct am_lineage);
} lineages SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, AM_MAX_EFFECTS);
	__type(key, struct am_effect_key);
	__type(value, __u32);
} effects SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, AM_MAX_GRANTED);
	__type(key, struct am_granted_key);
	__type(value, struct am_granted);
} granted SEC(".maps");

/* Ports of resolvers -> session slot. Agents reach theirs by asking for a name, and no other. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, AM_MAX_SESSIONS);
	__type(key, __u32);
	__type(value, __u32);
} doors SEC(".maps");

/*
 * Where a socket's owner sent its question: the answer must seem to come from there. By the socket's cookie, not in the
 * socket's storage: Linux 7.2 could not allocate that in an emulated guest, and every question failed. What is pushed out
 * by 8,192 later questions makes libc refuse a late answer, no more.
 */
struct am_asked {
	__u32 ip6[4]; /* big endian, IPv4 mapped */
	__u32 port; /* of the resolver, big endian */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct am_asked);
} asked SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, AM_MAX_SESSIONS);
	__type(key, __u32);
	__type(value, struct am_session);
} sessions SEC(".maps");

/* Preallocated: adding a process never waits for memory, and fails only when the table is full. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, AM_MAX_PROCS);
	__type(key, struct am_proc_key);
	__type(value, struct am_proc);
} procs SEC(".maps");

#ifndef AM_REACT
/*
 * What a child is born with, by the address of its task. Since Linux 7.0 tracepoints are preemptible, and a program that
 * is preempted in one makes others on its CPU miss theirs (bpf_prog_info.recursion_misses; measured: 5 % of the
 * forks of a busy guest). LSM programs have no such guard: task_alloc leaves this here, process_fork takes it away,
 * and where that was missed the child's first hook finds it. task_free ends it, for a fork that failed too.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, AM_MAX_PROCS);
	__type(key, __u64);
	__type(value, struct am_proc);
} newborn SEC(".maps");

/* Entries of newborn: while there are none, nobody pays for looking. */
__s64 nnewborn;
#endif

/* PIDs that the next run of the mark iterator enrols -> session slot. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} marks SEC(".maps");

/*
 * Objects whose allowed use was reported once, as 64-bit fingerprints in buckets of one cache line. A fingerprint that
 * was pushed out means one more record. Two objects with the same one (2^-64 a pair) would mean one record
 * less of something allowed; what is blocked or audited never comes here. An LRU hash costs five times as much.
 */
#define AM_SEEN_BUCKETS 8192
#define AM_SEEN_WAYS 8

struct am_seen {
	__u64 way[AM_SEEN_WAYS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, AM_SEEN_BUCKETS);
	__type(key, __u32);
	__type(value, struct am_seen);
} seen SEC(".maps");

/*
 * Decisions that were plain allows and reported: fingerprints of everything that such a verdict depends on (the walk's
 * sum, the inode, the operations, session, policy, exe tags and facts). Whoever comes again needs neither path nor automaton.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, AM_SEEN_BUCKETS);
	__type(key, __u32);
	__type(value, struct am_seen);
} allowed SEC(".maps");

/* 4 MiB: 200 ms of the worst flood measured (300,000 records of 64 bytes of path a second). */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, AM_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/*
 * Processes that may do nothing more, and are killed at the end of the system call they are in (react tier): children
 * that could not be added, and those that a network hook wants dead, where Linux before 6.14 has no bpf_send_signal.
 * Entries go when the process ends. Not an LRU: what it forgets runs free. Above AM_CONDEMNED_CALM whoever forks dies,
 * so the rest of the room is for forks that are under way on all CPUs.
 */
#define AM_CONDEMNED 8192
#define AM_CONDEMNED_CALM 1024

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, AM_CONDEMNED);
	__type(key, struct am_proc_key);
	__type(value, __u32);
} condemned SEC(".maps");

struct am_knobs {
	__u64 arena_mask; /* u16 units - 1 */
	__s64 procs_max; /* entries of procs; tests make it small */
	__u64 key; /* random: of the sums and fingerprints of paths */
	__u64 park_ns; /* what is held and not frozen by then is denied */
	__u32 idle_gid
		[2]; /* groups that give no rights; 0: none. agentmon/kernel/objects.py names them */
};

const volatile struct am_knobs knobs SEC(".rodata.knobs") = {.arena_mask = 4095,
							     .procs_max = AM_MAX_PROCS};

/* Enrolled processes; compared with knobs.procs_max before a fork is let through. */
__s64 nprocs;

/* Entries of condemned: while there are none, nobody pays for looking. */
__s64 ncondemned;

/* Never used: carries the contract into the objects' BTF, where the tests hold it against agentmon/kernel/wire.py. */
union am_contract {
	struct am_decision decision;
	struct am_address address;
	struct am_process process;
	struct am_stepped stepped;
	enum am_op op;
	enum am_action action;
	enum am_reason reason;
	enum am_tier tier;
	enum am_kind kind;
	enum am_what what;
	enum am_stepping stepping;
	enum am_counter counter;
} contract;

/* The finalizer of MurmurHash3: every bit of the input moves every bit of the result. */
static __always_inline __u64 mix(__u64 x)
{
	x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdULL;
	x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ULL;
	return x ^ (x >> 33);
}

static __always_inline void count(__u32 which)
{
	__u64 *c = bpf_map_lookup_elem(&counters, &which);

	if (c)
		__sync_fetch_and_add(c, 1); /* hooks nest: a plain increment loses counts */
}

static __always_inline void condemn(const struct am_proc_key *k)
{
	__u32 one = 1;

	if (!bpf_map_update_elem(&condemned, k, &one, BPF_NOEXIST))
		__sync_fetch_and_add(&ncondemned, 1);
	else if (!bpf_map_lookup_elem(&condemned, k))
		count(AM_C_SIGNAL_FAILED);
}

static __always_inline bool is_condemned(const struct am_proc_key *k)
{
	return ncondemned > 0 && bpf_map_lookup_elem(&condemned, k);
}

#endif
