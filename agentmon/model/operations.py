# SPDX-License-Identifier: Apache-2.0
"""Operations, actions and postures: the words of the policy language and of every record.

The numbers are those of ``bpf/events.h``; ``tests/unit/kernel/test_wire.py`` holds the two together.
"""

from __future__ import annotations

import enum
from collections.abc import Collection


class Operation(enum.IntEnum):
    """What a process attempts."""

    EXEC = 0
    READ = 1
    WRITE = 2
    CREATE = 3
    DELETE = 4
    RENAME = 5
    LINK = 6
    ATTR = 7
    UNIX = 8
    CONNECT = 9
    SEND = 10
    BIND = 11
    LISTEN = 12
    PTRACE = 13
    SIGNAL = 14
    MOUNT = 15
    NAMESPACE = 16
    CHROOT = 17
    BPF = 18
    IO_URING = 19
    SETID = 20
    MODULE = 21
    ANON_EXEC = 22

    @property
    def word(self) -> str:
        """The operation as written in a policy."""
        return self.name.lower()

    @property
    def is_path(self) -> bool:
        """Whether the object is a path (or, of `unix`, an abstract name); else it is an address, or nothing."""
        return self < Operation.CONNECT

    @property
    def is_net(self) -> bool:
        """Whether the object is an internet address and port."""
        return Operation.CONNECT <= self <= Operation.LISTEN

    @property
    def is_bare(self) -> bool:
        """Whether there is no object that a rule could name."""
        return self >= Operation.PTRACE


PATH_OPERATIONS = 9
OPERATION_SLOTS = 24

#: What a rule or default for `write` says too, unless others say more about these alone.
PART_OF_WRITE = (Operation.DELETE, Operation.RENAME, Operation.LINK, Operation.ATTR)

#: What could take the fence away, or have somebody outside of it act: denied unless a policy says otherwise.
GUARDED = (
    Operation.PTRACE,
    Operation.SIGNAL,
    Operation.MOUNT,
    Operation.NAMESPACE,
    Operation.CHROOT,
    Operation.BPF,
    Operation.IO_URING,
    Operation.SETID,
    Operation.MODULE,
    Operation.ANON_EXEC,
)

#: What can wait for an answer in the kernel, before it happens (LSM tier; of the others see `HELD`).
HOLDABLE = (
    Operation.EXEC,
    Operation.READ,
    Operation.WRITE,
    Operation.CREATE,
    *PART_OF_WRITE,
    Operation.UNIX,
    Operation.CONNECT,
    Operation.SEND,
)

#: Operations that a policy can name; the others are reserved words.
OPERATIONS = (
    Operation.EXEC,
    Operation.READ,
    Operation.WRITE,
    Operation.CREATE,
    *PART_OF_WRITE,
    Operation.CONNECT,
    Operation.SEND,
    Operation.BIND,
    Operation.LISTEN,
    Operation.UNIX,
    *GUARDED,
)


class Action(enum.IntEnum):
    """What happens to an attempted operation, in order of severity."""

    ALLOW = 0
    AUDIT = 1
    HOLD = 2
    DENY = 3
    KILL = 4

    @property
    def word(self) -> str:
        """The action as written in a policy."""
        return self.name.lower()

    @property
    def blocks(self) -> bool:
        """Whether the operation does not take place."""
        return self >= Action.DENY


class Reason(enum.IntEnum):
    """Why a verdict was reached (``enum am_reason``)."""

    RULE = 0
    DEFAULT = 1
    PATH_TOO_LONG = 2
    PATH_UNREACHABLE = 3
    PATH_UNSTABLE = 4
    NO_SCRATCH = 5
    NO_STATE = 6
    BAD_FAMILY = 7
    FOREIGN_ABI = 8
    RING_OPEN = 9
    CONTENTS = 10
    RESOLVER = 11
    DEVICE = 12
    ROUTED = 13
    APPROVED = 14
    REFUSED = 15
    NOT_PARKED = 16
    UNHOLDABLE = 17
    WOKEN = 18
    PLAN_RULE = 19
    PLAN_CLOSED = 20
    PLAN_ORDER = 21
    PLAN_RUNNING = 22
    PLAN_DONE = 23
    PLAN_BYTES = 24
    PLAN_FILES = 25
    PLAN_PROCS = 26
    PLAN_TIME = 27
    PLAN_MARK = 28

    @property
    def of_plan(self) -> bool:
        """Whether the plan said so, and not the policy."""
        return self >= Reason.PLAN_RULE


class Tier(enum.IntEnum):
    """How this host's kernel lets agentmon act."""

    LSM = 1
    REACT = 2


#: What a tier claims to see, and to punish: it has happened when the process dies.
DETECTED: dict[Tier, tuple[Operation, ...]] = {
    Tier.LSM: (),
    Tier.REACT: (*PART_OF_WRITE, Operation.PTRACE, Operation.SIGNAL, Operation.MOUNT, Operation.MODULE),
}

#: What each tier claims to stop: `enforcing` means that a canary of each was really stopped, and of `DETECTED` seen.
CLAIMED = {
    Tier.LSM: OPERATIONS,
    Tier.REACT: tuple(o for o in OPERATIONS if o not in DETECTED[Tier.REACT]),
}


#: What each tier can hold; the rest of `HOLDABLE` is denied instead.
HELD = {
    Tier.LSM: HOLDABLE,
    Tier.REACT: (Operation.EXEC, Operation.READ, Operation.WRITE, Operation.CONNECT, Operation.SEND),
}


def hold_word(tier: Tier, able: Collection[Operation], operation: Operation) -> str:
    """What becomes of what a rule holds, where `able` can wait: in a word or two; "" if no rule can hold it."""
    if operation not in HOLDABLE:
        return ""
    if operation not in able:
        return "denied"
    by_name = tier is Tier.REACT and operation in (Operation.READ, Operation.WRITE)
    return "waits if named exactly" if by_name else "waits"


class Posture(enum.StrEnum):
    """What is known, by a live canary, about one operation on this host."""

    PREVENTS = "prevents"
    STOPS = "stops"
    DETECTS = "detects"
    BLIND = "blind"


def is_kept(tier: Tier, operation: Operation, posture: Posture) -> bool:
    """Whether this posture keeps what the tier claims of an operation."""
    if operation in CLAIMED[tier]:
        return posture in (Posture.PREVENTS, Posture.STOPS)
    return operation not in DETECTED[tier] or posture is not Posture.BLIND
