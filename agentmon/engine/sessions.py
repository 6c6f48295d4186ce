# SPDX-License-Identifier: Apache-2.0
"""Sessions and their processes, as the engine knows them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from agentmon.model.events import ProcessKey
from agentmon.model.operations import Action, Operation
from agentmon.model.records import Record
from agentmon.model.tables import RuleInfo

if TYPE_CHECKING:
    from agentmon.engine.plans import PlanView, Progress

#: Addresses of one session whose name is remembered.
NAMED_ADDRESSES = 4096

#: Different blocked objects remembered per session for its summary; more are only counted.
BLOCKED_KINDS = 1000
#: The latest of them, with their circumstances, for the agent that asks why.
LATEST_BLOCKED = 128
#: The latest things that a session did, to be shown to whoever is asked to approve the next; and how many of them are.
DEEDS = 32
SHOWN_DEEDS = 8
#: Of these, allowed reads, where there is enough else: a program reads a lot, and could read more to hide the rest.
SHOWN_READS = 3
#: What every program reads while it starts says nothing of what it is about.
_USUAL = ("/usr/", "/lib", "/proc/", "/sys/", "/dev/", "/bin/", "/sbin/", "/etc/ld.so")
#: Moments that an agent has given a name.
BOOKMARKS = 256


class Judgement(Protocol):
    """A verdict of the reference semantics. ``rule`` is an index, or ``NO_RULE``."""

    @property
    def action(self) -> Action: ...

    @property
    def rule(self) -> int: ...


class Judge(Protocol):
    """The daemon's evaluator of one compiled policy."""

    @property
    def unsure(self) -> int: ...  # of the facts: those on ancestors, if nobody knows them

    def path(self, operation: Operation, path: bytes, exe_tags: int = 0, facts: int = 0) -> Judgement: ...

    def net(self, operation: Operation, packed: bytes, port: int, exe_tags: int = 0, facts: int = 0) -> Judgement: ...

    def bare(self, operation: Operation, exe_tags: int = 0, facts: int = 0) -> Judgement: ...

    def named(self, operation: Operation, name: str, port: int, exe_tags: int = 0, facts: int = 0) -> Judgement: ...


@dataclass(frozen=True, slots=True)
class View:
    """One generation of a session's policy: its rules' names, and how to judge by it.

    ``judge`` is None when the policy in force was compiled by an earlier daemon from text that has changed since.
    """

    rules: Sequence[RuleInfo]
    judge: Judge | None
    #: Rules that name hosts: the kernel may have been told of more addresses than ``judge`` knows.
    by_name: frozenset[int] = frozenset()
    #: What would be blocked if what is only observed were enforced; None: nothing is only observed.
    observed: View | None = None
    #: A flag of each decision by it: which policy of a session that has had several.
    mark: str = ""
    #: The rates of its rules as they are written, and the facts that one is used up.
    rates: Mapping[int, str] = field(default_factory=dict)
    over: int = 0
    #: The plan that goes with it; None: there is none.
    plan: PlanView | None = None


@dataclass(slots=True)
class Process:
    """A live process of a session."""

    key: ProcessKey
    parent_pid: int
    uid: int
    comm: str
    blocked: int = 0
    execs: int = 0  # programs it began to run since it is known


def unseen(key: ProcessKey) -> Process:
    """One of which nothing else is known."""
    return Process(key, 0, -1, "?")


@dataclass(slots=True)
class Denial:
    """Something that was blocked, maybe several times. ``number`` counts what was blocked in the session until then."""

    number: int
    times: int
    last: Record


@dataclass(slots=True)
class Session:
    """One enrolment, with all its processes."""

    id: str
    slot: int
    policy: str
    uid: int  # of the owner
    started_ns: int  # wall clock
    view: View
    workspace: str = ""
    command: str = ""
    risk: str = "normal"
    floor: str = "normal"  # what the operator said: the risk is never less
    rose: Record | None = None  # how its risk rose last
    generations: dict[int, View] = field(default_factory=dict)
    processes: dict[ProcessKey, Process] = field(default_factory=dict)
    decisions: int = 0
    blocked: int = 0
    observed: int = 0  # would have been blocked
    blocked_kinds: dict[tuple[str, str, str, str], int] = field(default_factory=dict)
    latest: OrderedDict[tuple[str, str, str, str], Denial] = field(default_factory=OrderedDict)  # oldest first
    bookmarks: dict[str, int] = field(default_factory=dict)  # name -> number of what was blocked until then
    last_blocked_exec: tuple[int, str, str, bool] | None = None  # pid, rule, reason, was it its first exec
    names: dict[bytes, str] = field(default_factory=dict)  # address -> the name that it was asked for last
    ended_ns: int = 0
    progress: Progress | None = None  # in its plan
    paused: str = ""  # why it was stopped
    #: Oldest first, each with its number; what was read apart from the rest.
    deeds: deque[tuple[int, Record]] = field(default_factory=lambda: deque(maxlen=DEEDS))
    reads: deque[tuple[int, Record]] = field(default_factory=lambda: deque(maxlen=DEEDS))

    def did(self, record: Record) -> None:
        """Remember what it did, if that says anything."""
        reads = record.operation == "read" and not record.blocked
        if reads and record.object.startswith(_USUAL):
            return
        deeds = self.reads if reads else self.deeds
        if deeds and deeds[-1][1].object == record.object and deeds[-1][1].operation == record.operation:
            deeds.pop()  # one that comes again and again is one
        deeds.append((self.decisions, record))

    def recent(self) -> list[dict[str, Any]]:
        """What it did last, the latest first, each once. For JSON."""
        others, reads = _latest(self.deeds), _latest(self.reads)
        kept = others[: SHOWN_DEEDS - min(SHOWN_READS, len(reads))]
        kept += reads[: SHOWN_DEEDS - len(kept)]
        kept.sort(key=lambda deed: deed[0], reverse=True)
        return [
            {
                "time_ns": r.time_ns, "pid": r.pid, "comm": r.comm, "operation": r.operation, "object": r.object,
                "verdict": r.verdict,
            }
            for _, r in kept
        ]  # fmt: skip

    def name_addresses(self, name: str, addresses: Iterable[bytes]) -> None:
        """The session was told that these addresses are a host of this name."""
        for address in addresses:
            self.names.pop(address, None)
            self.names[address] = name
        while len(self.names) > NAMED_ADDRESSES:
            del self.names[next(iter(self.names))]

    def count_blocked(self, record: Record) -> None:
        """Remember one blocked operation, for the summary and for who asks why."""
        self.blocked += 1
        kind = (record.operation, record.object, record.rule, record.reason)
        kinds = self.blocked_kinds
        if kind in kinds or len(kinds) < BLOCKED_KINDS:
            kinds[kind] = kinds.get(kind, 0) + 1
        self.recall(record)

    def recall(self, record: Record) -> None:
        """Remember it for who asks why alone."""
        kind = (record.operation, record.object, record.rule, record.reason)
        known = self.latest.pop(kind, None)
        self.latest[kind] = Denial(self.blocked, known.times + 1 if known else 1, record)
        if len(self.latest) > LATEST_BLOCKED:
            self.latest.popitem(last=False)

    def bookmark(self, name: str) -> None:
        """Give this moment a name: `since` it then finds what was blocked later."""
        self.bookmarks.pop(name, None)
        self.bookmarks[name] = self.blocked
        if len(self.bookmarks) > BOOKMARKS:
            del self.bookmarks[next(iter(self.bookmarks))]

    def since(self, number: int, since_ns: int = 0) -> list[Denial]:
        """What was blocked later than that, oldest first."""
        return [d for d in self.latest.values() if d.number > number and d.last.time_ns >= since_ns]


def _latest(deeds: Iterable[tuple[int, Record]]) -> list[tuple[int, Record]]:
    """The latest first, each once."""
    found: dict[tuple[str, str, str], tuple[int, Record]] = {}
    for number, record in reversed(list(deeds)):
        found.setdefault((record.operation, record.object, record.verdict), (number, record))
    return list(found.values())
