# SPDX-License-Identifier: Apache-2.0
"""Records of the kernel, decoded. One class a kind of ``bpf/events.h``."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from agentmon.model.operations import Action, Operation, Reason, Tier
from agentmon.model.plans import OUTSIDE


@dataclass(frozen=True, slots=True)
class ProcessKey:
    """Identity of a process that PID reuse cannot forge: PID and start of its group leader."""

    pid: int
    start_ns: int


@dataclass(frozen=True, slots=True)
class Address:
    """A socket address. ``packed`` is 16 bytes, IPv4 as ``::ffff:a.b.c.d``."""

    family: int
    packed: bytes
    port: int
    protocol: int = 0

    def __str__(self) -> str:
        import ipaddress

        ip = ipaddress.IPv6Address(self.packed)
        four = ip.ipv4_mapped
        return f"{four}:{self.port}" if four is not None else f"[{ip}]:{self.port}"


class Flag(enum.IntFlag):
    """``AM_F_*``."""

    KILLED = 1  # of what is held: stopped, and it has to be killed if it goes on
    SCRIPT = 2
    CREATED = 4
    PINNED = 8
    CONNECTED = 16
    DEVICE = 32
    UNSURE = 64
    ALSO_READ = 128


@dataclass(frozen=True, slots=True)
class Decision:
    """The kernel's verdict on one operation."""

    time_ns: int
    process: ProcessKey
    tid: int
    ppid: int
    uid: int
    comm: str
    session: int  # slot
    generation: int
    operation: Operation
    verdict: Action
    tier: Tier
    flags: Flag
    rule: int  # index, NO_RULE if none
    reason: Reason
    exe_tags: int
    inode: tuple[int, int, int]  # device (kernel form), inode, generation
    object: bytes | Address
    facts: int = 0
    #: Of what is held, or was: what an answer is for, and what an approval for the session covers. 0: neither.
    held: int = 0
    same: int = 0
    #: It waits in an open, and user space judged it (react tier).
    opens: bool = False
    #: The step of the session's plan that it is in, or would begin; `OUTSIDE`: none.
    step: int = OUTSIDE


@dataclass(frozen=True, slots=True)
class Shown:
    """A file as it was when somebody was asked about it (stat(2)); what differs in any of this is another one."""

    device: int
    inode: int
    changed_ns: int
    size_bytes: int


class What(enum.IntEnum):
    """Kinds of a change in the process tree."""

    FORK = 1
    EXEC = 2
    EXIT = 3
    FORK_LOST = 4


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """An enrolled process was forked, ran a new program, or ended."""

    time_ns: int
    process: ProcessKey
    what: What
    session: int
    ppid: int
    parent_start_ns: int
    uid: int
    exit_code: int
    comm: str


class Stepping(enum.IntEnum):
    """What may become of a step (``enum am_stepping``)."""

    BEGAN = 1
    JOINED = 2
    DONE = 3
    FAILED = 4
    REFUSED = 5  # a fork


@dataclass(frozen=True, slots=True)
class StepEvent:
    """A step of a plan began, was joined, was done or failed, or had to refuse a fork, by this process.

    ``status``: the first that does not count as done, as a shell has it; else 0.
    """

    time_ns: int
    process: ProcessKey
    session: int
    generation: int
    what: Stepping
    step: int
    reason: Reason | None
    status: int


Event = Decision | ProcessEvent | StepEvent
