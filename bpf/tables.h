/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Layout of the maps that user space fills: the compiled policy, sessions and processes.
 * agentmon/kernel/tables.py writes them from agentmon/model/tables.py; the layout is tested against BTF.
 *
 * One policy is: a header (`policies`), a transition table (a run of u16 in `arena`), accept rows
 * (a run of `accepts`), entry lists (a run of `lists`), address prefixes (`net`) and pinned inodes (`pins`).
 *
 * The automaton: next = arena[trans_base + state * stride + cls[byte]]; the last column of each row
 * (stride - 1) is the accept id of the state, the one before it the number of its fence. State 0 is dead.
 * Entering a state >= sticky_first means what the row
 * accepts[accepts[id].enter] says: a glob ending in ** has matched for good. Its sticky bits and exe tags are gathered,
 * its rules are taken if they come before those gathered so far, and its tails are noted with the position.
 * Accept ids 0..63 are the rows of the sticky bits themselves; id 64 is "nothing accepted".
 *
 * After the last byte the automaton takes one more step with '/', only for what that enters: a glob that ends
 * in a slash and two stars matches the directory itself too. The final state is the one before that step.
 *
 * A fence says what blocking rules do below a directory: it is that of the state after the slash. Fences follow the
 * transitions in the arena, AM_FENCE_WORDS u16 each: four of sticky bits on which such rules' exceptions depend (the
 * lowest first), the number of the most severe such rule or AM_NO_RULE. Number 0: no such rule.
 *
 * Tails follow the fences: length, state, that many bytes, one u16 each. If the path goes on, from
 * where the tail was noted, with those bytes, the automaton is run again behind them, from that state (entering it).
 * No path meets two different tails of one lane. Of a policy with tails the fences are not known.
 *
 * A verdict is the first rule of: those gathered, and the rows of each final state (of the path, of each lane's tail),
 * each set sticky bit, and the pinned inode. Of a row that is its rule[op], or a rule of its list that comes
 * before: lists hold the rules with conditions, sorted, and the first entry whose conditions hold counts.
 * Conditions on who acts, and when, are facts: a bit each of one word that is gathered once per hook (facts_of()).
 * No rule at all: default_action[op]. Rules are numbered most severe first, so the lowest number is the verdict;
 * rule_ends tells its action. A program's exe tags are the union over those same rows and what was entered.
 */
#ifndef AGENTMON_TABLES_H
#define AGENTMON_TABLES_H

#include "events.h"

/* live policies, and steps of plans, which are policies too; each costs what it needs in the shared tables */
#define AM_MAX_POLICIES 1024
#define AM_MAX_SESSIONS 1024
#define AM_MAX_PROCS 16384 /* enrolled processes; when full, a fork is refused */
#define AM_MAX_ACCEPTS 98304 /* 64 bytes each: 6 MiB; two of the largest policies */
#define AM_MAX_LISTS 8192 /* 392 bytes each: 3.1 MiB */
#define AM_MAX_NET 65536 /* prefixes of all policies */
#define AM_MAX_PINS 16384
#define AM_MAX_USERS 4096 /* users that rules of all policies name */
#define AM_MAX_EFFECTS 8192 /* rules of all policies that set marks */
#define AM_MAX_MARKED 4096 /* sessions, twice while a policy is replaced */
#define AM_MAX_LINEAGES \
	1024 /* generations that ask for ancestors: those in force, and the last before */
#define AM_FACTS 32 /* of one policy */
#define AM_MARKS 16 /* of one policy */
#define AM_WANTS 16 /* conditions on marks, of one policy */
#define AM_RATES 8 /* rules with a rate, of one policy */
#define AM_MAX_GRANTED 16384 /* addresses that sessions know by name; when full, a query fails */
#define AM_LIST_LEN 8 /* a ninth is a compile error that names the rules */
#define AM_NET_LEN 16
/* rules and ports that names give to one address; the one that ends first makes room */
#define AM_GRANT_LEN 8
#define AM_STICKY_BITS 64
#define AM_ACCEPT_NONE 64
#define AM_LANES 2
#define AM_FENCE_WORDS 8
#define AM_STEPS 64 /* of one plan */
#define AM_MAX_STEP_FILES 32768 /* of all sessions; when full, a step has changed too many */
#define AM_WAYS 128 /* to start a step by a program, of one plan */

struct am_entry {
	__u16 rule;
	__u8 action;
	__u8 pad;
	__u32 need; /* all of these facts must be true */
	__u32 need_not; /* and none of these */
	__u32 pad2;
	__u64 sticky_any; /* 0: no condition; else one of these bits must be set */
	__u64 sticky_not; /* none of these may be set (except:) */
	__u64 exe_any; /* 0: no condition; else the process must carry one of these exe tags */
	__u64 exe_not;
};

struct am_list {
	__u32 count;
	__u32 pad;
	struct am_entry e[AM_LIST_LEN];
};

struct am_accept {
	/* first, so that an index masked to 15 stays inside for the verifier */
	__u16 list[AM_PATH_OPS]; /* per operation; 0 is the empty list */
	__u16 rule
		[AM_PATH_OPS]; /* per operation, the first rule without conditions; AM_NO_RULE: none */
	__u32 tail[AM_LANES]; /* noted on entering a state; offset behind the fences, 0: none */
	__u32 enter; /* of a state: the accept id that entering it means */
	__u64 sticky; /* gathered on entering a state */
	__u64 exe_tags; /* carried by a process that runs a program matched here */
};

struct am_policy {
	__u32 generation; /* 0: slot unused. Never the same twice: what was remembered of one is void under the next */
	__u32 retired; /* of an unused slot: its last generation */
	__u32 trans_base; /* in u16 units */
	__u32 stride;
	__u32 states;
	__u32 start;
	__u32 sticky_first;
	__u32 accept_base;
	__u32 list_base;
	__u32 words; /* of the arena, in u16 units */
	__u16 rule_ends[4]; /* rules that kill come before [0], deny [1], hold [2], audit [3] */
	__u8 default_action[AM_OPS];
	__u8 severest[AM_OPS]; /* of any rule or the default, per operation */
	__u8 cls[512]; /* of a path's bytes; then of those of arguments, see arguments.bpf.h */
	__u32 fences;
	__u32 tails; /* in u16 units; 1: none */
	__u16 bare[AM_OPS]; /* lists of operations without an object */
	__u32 facts; /* all that its rules ask for; 0: nothing is gathered */
	__u32 parents; /* facts that are exe tags of the same number, carried by an ancestor */
	__u32 users; /* facts that `users` knows */
	__u32 risks; /* facts that the session's risk says */
	__u32 at_risk[4]; /* which of them, by the risk */
	__u32 clock; /* facts that `clocks` knows */
	__u32 unclocked; /* which of them are true when it knows nothing any more */
	__u32 wants; /* facts that marks of the session say: see struct am_wants */
	__u32 marking; /* whether any rule sets marks */
	__u32 args; /* facts that the arguments of a program say */
	__u32 args_start; /* the state in which they begin */
	__u32 args_watched; /* those that only rules ask for that are observed */
	__u32 rates; /* facts that a rate is used up */
	__u32 plan; /* whether `plans` knows more: its sessions follow a plan as well */
};

struct am_net_key {
	__u32 prefixlen; /* bits of what follows: 32 + prefix */
	__u32 policy; /* slot, big endian: LPM compares from the first byte */
	__u8 addr[16];
};

struct am_net_entry {
	__u16 port_lo, port_hi; /* host byte order, inclusive */
	__u16 rule;
	__u8 action;
	__u8 ops; /* bit 0 connect, 1 send, 2 bind, 3 listen */
	__u32 need, need_not; /* facts */
	__u64 exe_any;
	__u64 exe_not;
};

struct am_net_list {
	__u32 count;
	__u32 pad;
	struct am_net_entry e[AM_NET_LEN];
};

struct am_granted_key {
	__u64 serial; /* of the session */
	__u32 generation; /* of the policy that the rule numbers are of */
	__u32 pad;
	__u8 addr[16];
};

struct am_grant {
	__u64 expires_ns; /* boot time */
	struct am_net_entry e;
};

/* Replaced as a whole, never changed in place. */
struct am_granted {
	__u32 count;
	__u32 pad;
	struct am_grant g[AM_GRANT_LEN];
};

struct am_pin_key {
	__u64 ino;
	__u32 dev; /* kernel form: major << 20 | minor */
	__u32 igen;
	__u32 policy; /* slot */
	__u32 pad;
};

/*
 * Value of `clocks`, by the policy's slot: what the time says, from span to span. User space writes the spans to come, and the
 * kernel follows them alone. Replaced as a whole, never changed in place.
 */
#define AM_SPANS 16

struct am_clock {
	struct {
		__u64 until_ns; /* boot time; 0: no more spans */
		__u32 facts;
		__u32 pad;
	} span[AM_SPANS];
};

/* Value of `wants`, by the policy's slot: which marks of the session make which facts. */
struct am_wants {
	struct {
		__u32 fact; /* 0: no more of them */
		__u16 mark; /* must be set, */
		__u16 since; /* after this one was; AM_MARKS: whenever */
	} want[AM_WANTS];
	struct {
		__u64 interval_ns; /* user space copies it to am_marks: there is no stack left for a second look-up */
		__u64 slack_ns; /* how much may be used at once: one less, in intervals */
		__u32 fact; /* it is used up; 0: no more of them */
		__u32 pad;
	} rate[AM_RATES];
};

/*
 * Of `marked`: when each mark of a session was set last, boot time; 0: never. Another policy's marks are others, and a
 * decision that is still under way sets those of its own.
 */
struct am_marked_key {
	__u32 session; /* slot */
	__u32 generation; /* of the policy */
};

struct am_marks {
	__u64 at[AM_MARKS + 1]; /* the last one is never set */
	/*
	 * The generic cell rate algorithm (ITU-T I.371): when all that was let through would have been, at one each
	 * interval. Two CPUs at once may let one more through.
	 */
	__u64 due[AM_RATES];
	__u64 interval_ns[AM_RATES];
};

/* Value of `effects`: the marks that are set when this rule lets something pass, a bit each; above them the rates that it uses. */
struct am_effect_key {
	__u32 policy; /* slot */
	__u32 rule;
};

/*
 * Value of `lineages`, by a policy's generation: for each fact that is an exe tag of ancestors, a number for its set of
 * programs; 0: it is none. By these, what is known of a process's ancestors is carried from one policy to another.
 */
struct am_lineage {
	__u64 set[AM_FACTS];
};

/* Value of `users`: the facts that are true of that user. */
struct am_user_key {
	__u32 policy; /* slot */
	__u32 uid;
};

/* Value of `pins`: an accept id, relative to the policy's accept_base. */

#define AM_TAGGING 0xffffffff /* am_proc.generation while one of its threads writes exe_tags */

#define AM_S_LIVE 1
#define AM_S_DOOMED 2 /* every operation is denied, every process killed at its next one */

struct am_session {
	__u32 policy; /* slot */
	__u32 flags;
	__u64 serial; /* never reused: two sessions in one slot are told apart */
	__u32 dns_port; /* where its resolver listens; 0: it has none. Never taken back while the session lives */
	__u32 risk; /* 0 normal, 1 elevated, 2 high */
};

struct am_proc_key {
	__u64 start_ns; /* group leader's start_boottime; survives exec from another thread */
	__u32 tgid;
	__u32 pad;
};

/* What the enumerator writes for each process that it added. */
struct am_joined {
	struct am_proc_key key;
	__u64 session; /* slot: a child may be met here before its own fork was told of, in whichever session */
};

#define AM_ROOT 1 /* it began its step, or joined it: its exit status counts */
#define AM_MARKED 2 /* by a mark */
/* `run`: its next program is the agent itself, which its owner starts: no plan is asked */
#define AM_COMMAND 8
#define AM_OPENING 4 /* react: by a script that its interpreter has yet to open */
/* LSM, in `args`: since it runs what it runs, it or who it was forked from has mapped a file that is written by that */
#define AM_MAPS 1

struct am_proc {
	__u16 session; /* slot */
	__u8 step; /* of the session's plan, plus 1; 0: outside of all */
	__u8 stepping; /* AM_ROOT, … */
	__u32 generation; /* of the policy that exe_tags are of; another: they mean nothing (renew_tags()). 0: unknown */
	__u64 exe_tags;
	__u64 parents; /* exe tags of its ancestors, and of what it ran before */
	__u32 kin; /* generation of the policy that parents and unsure are of; 0: nobody ran anything before it */
	__u32 unsure; /* facts on its ancestors that nobody knows: they ran before a policy asked for them (kin_of()) */
	__u64 serial; /* of the session when the process joined it */
	__u64 script; /* react: print of the script's name that its interpreter has yet to open; 0: none */
	__u32 args,
		args_generation; /* react: what that script's arguments say, under which policy; 0: nobody knows */
};

/* Whom an answer is for: a thread of a process, and what it is about to do to what. */
struct am_hold_key {
	__u64 start_ns; /* of the group leader */
	__u32 tgid, tid;
	__u64 object; /* fingerprint of the rule, the operation, the path or address, and what is there; 0: the thread itself */
};

struct am_held {
	__u64 asked_ns; /* boot time; of the thread itself: when it was last made to restart its call */
	__u64 used_ns; /* when it was let through; of the thread itself: or refused; 0: not yet */
	__u64 call; /* fingerprint of the system call */
};

struct am_answer {
	__u32 verdict; /* AM_HOLD: it is frozen, and nobody has answered yet */
	__u32 pad;
	__u64 until_ns; /* boot time */
	/* react, of a script: which file was shown, and what was in it (contents_of()) */
	__u64 ino;
	__u64 contents;
};

/* React: a process that is stopped before the first instruction of its program, see halt.bpf.h. */
struct am_halted {
	__u64 object[2]; /* as in am_hold_key; the second: of a script's interpreter */
	__u64 asked_ns; /* boot time */
	__u32 session; /* slot */
	__u32 generation; /* of the policy whose rule holds it */
	__u32 marks; /* set when it goes on */
	__u8 released; /* it goes on; what is left is for the open of the script */
	__u8 told; /* it is being killed, and that was reported */
	__u8 script; /* the first object is one */
	__u8 any; /* whatever that is: the session was allowed the name */
};

/* What a session was allowed: the rule, the operation and the path or address, whatever is there. */
struct am_approval_key {
	__u64 serial; /* of the session */
	__u64 what;
};

/*
 * Value of `plans`, by the policy's slot (docs/design/0008-plans.md). A step is a policy in a slot of its own, whose rules, exe
 * tags and facts are numbered as those of the session's policy. What is asked for is judged by both; the stricter wins.
 */
struct am_plan {
	__u64 needs[AM_STEPS], after[AM_STEPS]; /* steps that must be done, and have ended */
	__u64 exits[AM_STEPS][4]; /* statuses that count as done */
	__u64 timeout_ns[AM_STEPS], max_write[AM_STEPS]; /* ~0: no limit */
	__u64 ways[AM_STEPS][2]; /* by which each step starts */
	__u64 wanted[2]; /* ways that ask for arguments */
	__u64 once, repeat, marks; /* steps */
	__u32 max_files[AM_STEPS], max_procs[AM_STEPS]; /* ~0: no limit */
	/* slot, plus 1; 0: no such ways. Its exe tags and those of arguments are ways */
	__u32 way_slot[2];
	__u8 way_step[AM_WAYS];
	__u8 on_violation
		[AM_STEPS +
		 8]; /* enum am_action, AM_PAUSES, AM_MAY_ASK; that one too of what is outside of all */
};

/* Value of `parts`, by the policy's slot: what every decision needs to know of its plan, in few lines of cache. */
struct am_parts {
	__u64 timed; /* steps with a limit of time or of bytes */
	__u32 known; /* `plans` has the rest */
	__u32 part[AM_STEPS + 1]; /* slot, plus 1, of each step, and of what is outside of all */
};

#define AM_PAUSES 0x80 /* in on_violation: and user space freezes the session */
#define AM_MAY_ASK 0x40 /* names of hosts may be asked for */
#define am_violation(plan, at) ((plan)->on_violation[at] & 7)

/* A step in a session. */
struct am_step {
	__u32 alive; /* processes; AM_ENDING while the last one settles what comes of it */
	__u32 bad; /* the first status of a root that does not count as done, plus 1 */
	__u64 began_ns; /* of the run under way, boot time; 0: it is not settled yet */
	__u64 written;
	__u32 files;
	__u32 pad;
};

#define AM_ENDING 0x80000000

/* Of `step_files`: a file that a step has changed. One without an inode yet is known by its path. */
struct am_file_key {
	__u64 serial; /* of the session */
	__u64 ino;
	__u32 dev, igen;
	__u32 step; /* number */
	__u32 pad;
};

/* What mark_step() is given. */
struct am_mark {
	__u64 start_ns; /* of whom, as in am_proc_key */
	__u32 tgid;
	__u32 step; /* number */
	__u32 ends;
	__u32 status; /* of one that ends, as a shell has it */
};

/*
 * Value of `steps`, by the session's serial: two sessions never share it, and a reload keeps it. User space makes it before the
 * session's first process is enrolled; without it everything is denied.
 */
struct am_steps {
	__u64 done, ended, begun; /* steps */
	__u64 used[2]; /* ways, in the runs under way */
	struct am_step step[AM_STEPS];
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

_Static_assert(sizeof(struct am_entry) == 48, "am_entry");
_Static_assert(sizeof(struct am_list) == 392, "am_list");
_Static_assert(sizeof(struct am_accept) == 64, "am_accept");
_Static_assert(sizeof(struct am_policy) == 732, "am_policy");
_Static_assert(sizeof(struct am_net_entry) == 32, "am_net_entry");
_Static_assert(sizeof(struct am_net_list) == 520, "am_net_list");
_Static_assert(sizeof(struct am_granted_key) == 32, "am_granted_key");
_Static_assert(sizeof(struct am_granted) == 328, "am_granted");
_Static_assert(sizeof(struct am_pin_key) == 24, "am_pin_key");
_Static_assert(sizeof(struct am_user_key) == 8, "am_user_key");
_Static_assert(sizeof(struct am_clock) == 256, "am_clock");
_Static_assert(sizeof(struct am_wants) == 320, "am_wants");
_Static_assert(sizeof(struct am_marks) == 264, "am_marks");
_Static_assert(sizeof(struct am_marked_key) == 8, "am_marked_key");
_Static_assert(sizeof(struct am_lineage) == 256, "am_lineage");
_Static_assert(sizeof(struct am_effect_key) == 8, "am_effect_key");
_Static_assert(sizeof(struct am_session) == 24, "am_session");
_Static_assert(sizeof(struct am_proc_key) == 16, "am_proc_key");
_Static_assert(sizeof(struct am_joined) == 24, "am_joined");
_Static_assert(sizeof(struct am_proc) == 56, "am_proc");
_Static_assert(sizeof(struct am_file_key) == 32, "am_file_key");
_Static_assert(sizeof(struct am_mark) == 24, "am_mark");
_Static_assert(sizeof(struct am_plan) == 5880, "am_plan");
_Static_assert(sizeof(struct am_parts) == 272, "am_parts");
_Static_assert(sizeof(struct am_steps) == 2088, "am_steps");
_Static_assert(sizeof(struct am_hold_key) == 24, "am_hold_key");
_Static_assert(sizeof(struct am_held) == 24, "am_held");
_Static_assert(sizeof(struct am_answer) == 32, "am_answer");
_Static_assert(sizeof(struct am_halted) == 40, "am_halted");
_Static_assert(sizeof(struct am_approval_key) == 16, "am_approval_key");

#endif
