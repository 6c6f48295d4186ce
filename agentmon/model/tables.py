# SPDX-License-Identifier: Apache-2.0
"""A compiled policy: the one form that the kernel maps and the Python automaton both read.

The layout and its meaning are in ``bpf/tables.h``. Everything is relative: accept ids to the policy's own
accept rows, list ids to its own lists. The kernel package adds the bases when it writes the maps.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from agentmon.model.conditions import Condition
from agentmon.model.names import HostPattern
from agentmon.model.operations import OPERATION_SLOTS, PATH_OPERATIONS, Action
from agentmon.model.plans import CompiledPlan

STICKY_BITS = 64
LANES = 2  # continuations of a walk
ACCEPT_NONE = 64
LIST_LENGTH = 8
NET_LENGTH = 16
MAX_STATES = 65_535
NO_RULE = 0xFFFF


@dataclass(frozen=True, slots=True)
class RuleInfo:
    """What people are told about a rule. ``source`` is ``file:line``; ``quiet``: blocking it is expected, not news."""

    id: str
    pack: str
    action: Action
    source: str
    reason: str = ""
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule in a list, with its conditions (``struct am_entry``). ``need``, ``need_not``: bits of facts."""

    rule: int
    action: Action
    sticky_any: int = 0
    sticky_not: int = 0
    exe_any: int = 0
    exe_not: int = 0
    need: int = 0
    need_not: int = 0


@dataclass(frozen=True, slots=True)
class Accept:
    """What a state, a sticky bit, or entering a state stands for (``struct am_accept``).

    ``rules``: per operation the first rule without conditions; ``lists``: those with conditions that come before it.
    ``sticky`` and ``tails`` (offsets in `CompiledPolicy.tails`, 0: none) count when a state is entered; ``enter`` is
    the row that entering a state stands for.
    """

    sticky: int = 0
    exe_tags: int = 0
    lists: tuple[int, ...] = (0,) * PATH_OPERATIONS
    rules: tuple[int, ...] = (NO_RULE,) * PATH_OPERATIONS
    tails: tuple[int, ...] = (0,) * LANES
    enter: int = ACCEPT_NONE


@dataclass(frozen=True, slots=True)
class Fence:
    """What blocking rules say of everything below a directory. Number 0 is the empty one.

    ``rule``: the most severe that something below meets. ``holes``: sticky bits that such rules' exceptions ask for.
    """

    holes: int = 0
    rule: int = NO_RULE


@dataclass(frozen=True, slots=True)
class NetEntry:
    """One rule at an address prefix (``struct am_net_entry``). ``ops``: bit 0 connect, 1 send, 2 bind, 3 listen."""

    port_lo: int
    port_hi: int
    rule: int
    action: Action
    ops: int
    exe_any: int = 0
    exe_not: int = 0
    need: int = 0
    need_not: int = 0


@dataclass(frozen=True, slots=True)
class NetPrefix:
    """A prefix of the folded IPv6 space (IPv4 as ``::ffff:0:0/96`` + its own length).

    ``entries`` already include those of every covering prefix, most severe first.
    """

    address: bytes
    length_bits: int
    entries: tuple[NetEntry, ...]


@dataclass(frozen=True, slots=True)
class Pin:
    """An exact path of a blocking rule; its inode, if it exists, is matched wherever it appears."""

    path: bytes
    accept: int


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """All tables of one policy for one set of variables (workspace, home, …)."""

    name: str
    rules: tuple[RuleInfo, ...]
    classes: bytes  # 256: byte -> class
    stride: int  # classes + 2 (the fence and the accept column)
    states: int
    start: int
    sticky_first: int
    transitions: array[int]  # "H", states * stride
    tails: array[int]  # "H": length, state, bytes of each; offset 0 is no tail
    accepts: tuple[Accept, ...]  # rows 0..63 sticky bits, 64 nothing, then states'
    lists: tuple[tuple[Entry, ...], ...]  # list 0 is empty
    fences: tuple[Fence, ...]  # by the number in a state's fence column
    net: tuple[NetPrefix, ...]
    pins: tuple[Pin, ...]
    bare: tuple[int, ...]  # OPERATION_SLOTS: the list of each operation without an object
    defaults: tuple[Action, ...]  # OPERATION_SLOTS
    severest: tuple[Action, ...]  # OPERATION_SLOTS
    #: What a name gives to the addresses that the resolver finds for it, most severe first. Never a blocking action.
    hosts: tuple[tuple[HostPattern, NetEntry], ...] = ()
    #: What each bit of the facts means.
    conditions: tuple[Condition, ...] = ()
    #: A number for the set of programs of each condition on ancestors, the same in every policy; 0 for the others.
    lineage: tuple[int, ...] = ()
    #: The marks that its rules set, and which rule sets which: (rule, a bit each). From
    #: `MAX_MARKS` on: the rates that it uses.
    marks: tuple[str, ...] = ()
    effects: tuple[tuple[int, int], ...] = ()
    #: The state in which the arguments of a program begin; 0: no condition asks for them.
    arguments_start: int = 0
    #: The facts on arguments that only rules ask for that are observed.
    arguments_watched: int = 0
    #: The plan that its sessions follow besides.
    plan: PlanTables | None = None

    def __post_init__(self) -> None:
        if len(self.defaults) != OPERATION_SLOTS or len(self.severest) != OPERATION_SLOTS:
            raise ValueError("defaults and severest need one action per operation slot")


@dataclass(frozen=True, slots=True)
class PlanTables:
    """A plan as the kernel keeps it.

    Each distinct part is a policy, with the rule numbers, sets of programs and conditions of the session's policy.
    """

    compiled: CompiledPlan
    parts: tuple[CompiledPolicy, ...]
    #: By step, and last for what is outside of all: its number in `parts`.
    part_of: tuple[int, ...]
    #: Policies without rules, whose exe tags (of a program's path, and of its arguments) are ways, 64 each.
    ways: tuple[CompiledPolicy, ...]
    #: The ways that ask for arguments, a bit each.
    wanted: int
