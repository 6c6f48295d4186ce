/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Layout of the maps that user space fills: the compiled policy, sessions and processes.
 * agentmon/kernel/tables.py writes them from agentmon/model/tables.py; the layout is tested against BTF.
 *
 * One policy is: a header (`policies`), a transition table (a run of u16 in `arena`), accept rows
 * (a run of `accepts`), entry lists (a run of `lists`), address prefixes (`net`) and pinned inodes (`pins`).
 *
 * The automaton: next = arena[trans_base + state * stride + cls[byte]]; the last column of each row
 * (stride - 1) is the accept id of the state, the one before it the number of its fence. State 0 is dead. Entering a state >= sticky_first ORs
 * accepts[id].sticky into a mask: a glob ending in ** that has matched for good. Accept ids 0..63
 * are the rows of the sticky bits themselves; id 64 is "nothing accepted".
 *
 * After the last byte the automaton takes one more step with '/', for its sticky bits only: a glob that ends
 * in a slash and two stars matches the directory itself too. The final state is the one before that step.
 * State 0 may end the walk early: nothing is left to match.
 *
 * A fence says what blocking rules do below a directory: it is that of the state after the slash. Fences follow the
 * transitions in the arena, AM_FENCE_WORDS u16 each: four of sticky bits on which such rules' exceptions depend (the
 * lowest first), the number of the most severe such rule or AM_NO_RULE. Number 0: no such rule.
 *
 * A verdict is the most severe over the lists of: the final state's row, each set sticky bit's row,
 * and the pinned inode's row; each list is sorted, most severe first, and its first entry whose conditions
 * hold counts. If no entry of any list holds: default_action[op]. Rules are numbered most severe first:
 * of equal actions the lower rule number is named. A program's exe tags are the union over those same rows.
 */
#ifndef AGENTMON_TABLES_H
#define AGENTMON_TABLES_H

#include "events.h"

#define AM_MAX_POLICIES 64 /* live policies; each costs what it needs in the shared tables */
#define AM_MAX_SESSIONS 1024
#define AM_MAX_PROCS 16384 /* enrolled processes; when full, a fork is refused */
#define AM_MAX_ACCEPTS 32768 /* 32 bytes each: 1 MiB */
#define AM_MAX_LISTS 8192 /* 328 bytes each: 2.6 MiB */
#define AM_MAX_NET 65536 /* prefixes of all policies */
#define AM_MAX_PINS 16384
#define AM_LIST_LEN 8  /* a ninth is a compile error that names the rules */
#define AM_NET_LEN 16
#define AM_STICKY_BITS 64
#define AM_ACCEPT_NONE 64
#define AM_FENCE_WORDS 8

struct am_entry {
	__u16 rule;
	__u8 action;
	__u8 pad[5];
	__u64 sticky_any; /* 0: no condition; else one of these bits must be set */
	__u64 sticky_not; /* none of these may be set (except:) */
	__u64 exe_any;   /* 0: no condition; else the process must carry one of these exe tags */
	__u64 exe_not;
};

struct am_list {
	__u32 count;
	__u32 pad;
	struct am_entry e[AM_LIST_LEN];
};

struct am_accept {
	__u64 sticky;     /* set on entering a state with this id */
	__u64 exe_tags; /* carried by a process that runs a program matched here */
	__u16 list[AM_PATH_OPS];	 /* per operation; 0 is the empty list */
};

struct am_policy {
	__u32 generation; /* 0: slot unused */
	__u32 trans_base; /* in u16 units */
	__u32 stride;
	__u32 states;
	__u32 start;
	__u32 sticky_first;
	__u32 accept_base;
	__u32 list_base;
	__u8 default_action[AM_OPS];
	__u8 severest[AM_OPS]; /* of any rule or the default, per operation */
	__u8 cls[256];
	__u32 fences;
	__u32 pad;
};

struct am_net_key {
	__u32 prefixlen; /* bits of what follows: 32 + prefix */
	__u32 policy;  /* slot, big endian: LPM compares from the first byte */
	__u8 addr[16];
};

struct am_net_entry {
	__u16 port_lo, port_hi; /* host byte order, inclusive */
	__u16 rule;
	__u8 action;
	__u8 ops; /* bit 0 connect, 1 send, 2 bind, 3 listen */
	__u64 exe_any;
	__u64 exe_not;
};

struct am_net_list {
	__u32 count;
	__u32 pad;
	struct am_net_entry e[AM_NET_LEN];
};

struct am_pin_key {
	__u64 ino;
	__u32 dev;  /* kernel form: major << 20 | minor */
	__u32 igen;
	__u32 policy; /* slot */
	__u32 pad;
};

/* Value of `pins`: an accept id, relative to the policy's accept_base. */

#define AM_S_LIVE 1
#define AM_S_DOOMED 2 /* every operation is denied, every process killed at its next one */

struct am_session {
	__u32 policy; /* slot */
	__u32 flags;
	__u64 serial; /* never reused: two sessions in one slot are told apart */
};

struct am_proc_key {
	__u64 start_ns; /* group leader's start_boottime; survives exec from another thread */
	__u32 tgid;
	__u32 pad;
};

struct am_proc {
	__u32 session; /* slot */
	__u32 flags;
	__u64 exe_tags;
	__u64 labels;
	__u64 serial; /* of the session when the process joined it */
	__u64 script; /* react: print of the script's name that its interpreter has yet to open; 0: none */
};

/* One counter per site where something is lost, refused for want of room, or cannot be told. */
enum am_counter {
	AM_C_DECISIONS,
	AM_C_BLOCKED,
	AM_C_RING_LOST,
	AM_C_SCRATCH_EXHAUSTED,
	AM_C_PATH_TOO_LONG,
	AM_C_PATH_UNREACHABLE,
	AM_C_PATH_UNSTABLE,
	AM_C_PATH_RETRIED,
	AM_C_FORK_REFUSED,
	AM_C_FORK_LOST,
	AM_C_NO_STATE,
	AM_C_SIGNAL_FAILED,
	AM_C_READ_FAILED,
	AM_C_FORK_REPAIRED, /* a fork that the tracepoint missed, found by the child's first hook */
	AM_C_JOINED, /* entries that forks added to the process tables, counted while the parent is still in one */
	AM_COUNTERS,
};

_Static_assert(sizeof(struct am_entry) == 40, "am_entry");
_Static_assert(sizeof(struct am_list) == 328, "am_list");
_Static_assert(sizeof(struct am_accept) == 32, "am_accept");
_Static_assert(sizeof(struct am_policy) == 344, "am_policy");
_Static_assert(sizeof(struct am_net_entry) == 24, "am_net_entry");
_Static_assert(sizeof(struct am_net_list) == 392, "am_net_list");
_Static_assert(sizeof(struct am_pin_key) == 24, "am_pin_key");
_Static_assert(sizeof(struct am_session) == 16, "am_session");
_Static_assert(sizeof(struct am_proc_key) == 16, "am_proc_key");
_Static_assert(sizeof(struct am_proc) == 40, "am_proc");

#endif
