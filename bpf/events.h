/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The wire contract between the kernel programs and user space: every record in the ring buffer
 * starts with struct am_header; a reader rejects a version or a size that it does not know.
 * Compiles for BPF and for the host; tests/unit/kernel/test_wire.py checks agentmon/kernel/wire.py against
 * the BTF of the built objects. All integers are in host byte order, times in nanoseconds since boot.
 */
#ifndef AGENTMON_EVENTS_H
#define AGENTMON_EVENTS_H

#ifndef __bpf__
#include <linux/types.h>
#endif

#define AM_WIRE_VERSION 1

/* Operations; the order is part of the contract (agentmon/model/operations.py). */
enum am_op {
	AM_EXEC = 0,
	AM_READ = 1,
	AM_WRITE = 2,
	AM_CREATE = 3,
	AM_DELETE = 4,
	AM_RENAME = 5,
	AM_LINK = 6,
	AM_ATTR = 7,
	AM_UNIX = 8, /* a path, or the name of an abstract socket behind an `@` */
	AM_PATH_OPS = 9, /* operations below this one name a path */
	AM_CONNECT = 9,
	AM_SEND = 10,
	AM_BIND = 11,
	AM_LISTEN = 12,
	AM_PTRACE = 13,
	AM_SIGNAL = 14,
	AM_MOUNT = 15,
	AM_NAMESPACE = 16,
	AM_CHROOT = 17,
	AM_BPF = 18,
	AM_IO_URING = 19,
	AM_SETID = 20,
	AM_MODULE = 21,
	AM_ANON_EXEC = 22,
	AM_OPS = 24, /* one spare, for alignment */
};

/* In order of severity. */
enum am_action { AM_ALLOW = 0, AM_AUDIT = 1, AM_HOLD = 2, AM_DENY = 3, AM_KILL = 4 };

/* Why a verdict was reached when no rule of the policy gave it (am_decision.reason). */
enum am_reason {
	AM_BY_RULE = 0,
	AM_BY_DEFAULT = 1,
	AM_PATH_TOO_LONG = 2, /* longer than 4,095 bytes: severest verdict of the operation */
	AM_PATH_UNREACHABLE = 3, /* disconnected or detached mount: severest verdict */
	AM_PATH_UNSTABLE = 4, /* renamed under the walk, again and again: severest verdict */
	AM_NO_SCRATCH = 5, /* no free scratch slot: severest verdict */
	AM_NO_STATE = 6, /* the process table is full or its session is gone: denied */
	AM_BAD_FAMILY = 7, /* a socket family that no rule can judge: severest verdict of connect */
	AM_FOREIGN_ABI = 8, /* a system call ABI that this tier does not decode: killed */
	AM_RING_OPEN = 9, /* io_uring opens a file where the tier cannot judge it: killed */
	AM_CONTENTS =
		10, /* rename of a directory: what is below it would become freer, or land where it may not be made */
	AM_RESOLVER = 11, /* a resolver's port, which agents reach by port 53 alone: denied */
	AM_DEVICE = 12, /* a device node is made: severest verdict of create */
	AM_ROUTED = 13, /* the packet would go to another host first: severest verdict of send */
	AM_APPROVED = 14, /* it was held, and somebody let it go on */
	AM_REFUSED = 15, /* it was held, and somebody said no, or nobody answered in time */
	AM_NOT_PARKED = 16, /* it was to be held, and nobody came to freeze it in time: denied */
	AM_UNHOLDABLE = 17, /* it cannot wait (io_uring), or too much waits already: denied */
	AM_WOKEN = 18, /* react: it was held, and made to go on without an answer: killed */
	/* of a plan, see am_decision.step */
	AM_PLAN_RULE = 19, /* a rule of the step */
	AM_PLAN_CLOSED = 20, /* the step allows others of this kind; or it is no step's */
	AM_PLAN_ORDER = 21, /* it would begin a step before what comes before that */
	AM_PLAN_RUNNING = 22, /* … that is under way */
	AM_PLAN_DONE = 23, /* … that has been, and is not to be repeated */
	AM_PLAN_BYTES = 24, /* max-write */
	AM_PLAN_FILES = 25, /* max-files */
	AM_PLAN_PROCS = 26, /* max-procs */
	AM_PLAN_TIME = 27, /* timeout */
	AM_PLAN_MARK = 28, /* a mark that does not fit */
};

enum am_tier { AM_TIER_LSM = 1, AM_TIER_REACT = 2 };

enum am_kind {
	AM_DECISION = 1, /* struct am_decision, then object_size bytes */
	AM_PROCESS = 2, /* struct am_process */
	AM_STEP = 3, /* struct am_stepped */
};

struct am_header {
	__u16 version;
	__u16 kind;
	__u32 size; /* whole record, bytes */
	__u64 ktime_ns; /* CLOCK_BOOTTIME */
	__u32 tgid;
	__u32 tid;
	__u64 start_ns; /* of the group leader: with tgid, the identity of the process */
	__u32 session; /* slot */
	__u32 generation; /* of the policy that decided */
};

#define AM_F_KILLED 1 /* the process was sent SIGKILL; if it is held, SIGSTOP (LSM tier) */
#define AM_F_SCRIPT 2 /* a script: react, by its name as given; LSM, if it is held */
#define AM_F_CREATED 4 /* the open created the file */
#define AM_F_PINNED 8 /* matched by device, inode and generation, not by its path */
#define AM_F_CONNECTED 16 /* send: on a connected socket, judged by its peer */
#define AM_F_DEVICE 32 /* create: of a device node */
#define AM_F_UNSURE 64 /* ancestors or arguments may have facts nobody knows: blocks hold */
#define AM_F_ALSO_READ 128 /* the open is for reading too, and was judged for that */

/* One verdict. The object follows: the path without a NUL, or struct am_address. */
struct am_decision {
	struct am_header h;
	__u8 op;
	__u8 verdict;
	__u8 tier;
	__u8 flags;
	__u16 rule; /* index in the compiled policy; AM_NO_RULE when reason != AM_BY_RULE */
	__u8 reason; /* enum am_reason */
	__u8 step; /* of the session's plan, plus 1: of the acting process, or that it would begin; 0: none */
	__u32 ppid;
	__u32 uid;
	__u64 exe_tags; /* of the acting process, as used in the decision */
	__u64 ino;
	__u32 dev; /* kernel form: major << 20 | minor */
	__u32 igen; /* inode generation */
	char comm[16];
	__u32 object_size; /* bytes after this struct */
	__u32 facts; /* of the acting process and its session, as used in the decision */
	__u64 held; /* of what is held or was: am_hold_key.object */
	__u64 same; /* and am_approval_key.what */
};

#define AM_NO_RULE 0xffff

struct am_address {
	__u16 family; /* AF_* as the program used it */
	__u16 port; /* host byte order */
	__u8 protocol; /* IPPROTO_* where known */
	__u8 pad[3];
	__u8 addr[16]; /* IPv4 as ::ffff:a.b.c.d */
};

enum am_what { AM_FORK = 1, AM_EXECED = 2, AM_EXIT = 3, AM_FORK_LOST = 4 };

/* A change in the tree of an enrolled process. */
struct am_process {
	struct am_header h; /* of the process that the record is about (the child, for AM_FORK) */
	__u32 what;
	__u32 ppid;
	__s32 exit_code; /* AM_EXIT: as in wait(2) */
	__u32 uid;
	__u64 parent_start_ns;
	char comm[16];
};

enum am_stepping {
	AM_STEP_BEGAN = 1,
	AM_STEP_JOINED = 2,
	AM_STEP_DONE = 3,
	AM_STEP_FAILED = 4, /* it ended; its status does not count as done */
	AM_STEP_REFUSED = 5, /* a fork: max-procs, or timeout */
};

/* What became of a step of a plan. */
struct am_stepped {
	struct am_header h; /* of the process by which */
	__u8 what; /* enum am_stepping */
	__u8 step; /* as in am_decision */
	__u8 reason; /* enum am_reason, of what was refused */
	__u8 pad;
	__u32 status; /* the first that does not count as done, 128 + n for signal n, 124 for overtime; else 0 */
};

_Static_assert(sizeof(struct am_stepped) == 48, "am_stepped");
_Static_assert(sizeof(struct am_header) == 40, "am_header");
_Static_assert(sizeof(struct am_decision) == 120, "am_decision");
_Static_assert(sizeof(struct am_address) == 24, "am_address");
_Static_assert(sizeof(struct am_process) == 80, "am_process");

#endif
