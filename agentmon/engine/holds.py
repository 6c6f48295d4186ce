# SPDX-License-Identifier: Apache-2.0
"""What waits for an answer. Sans-IO, as the engine is: approvals and answers in, commands out.

A *waiter* is a thread that the kernel makes restart its call until there is an answer. An *approval* is what people
see: all waiters of a session that want the same (one rule, operation, object) are one approval. Programs that are
stopped at their start, with the same arguments: who was shown one does not approve another.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agentmon.model.events import Decision, Flag, ProcessKey
from agentmon.model.operations import Operation, Tier

BURST_NS = 60_000_000_000

#: Threads that may wait, however few questions they are folded into. All sessions share the kernel's table
#: (`AM_MAX_HELD`, 1,024), where kept answers have room too. A few of each session always may. Else none may have
#: more than `WAITERS_EACH`, nor more than half of what is free: what one takes leaves room to the next (Choudhury and
#: Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998).
WAITERS: Final = 768
WAITERS_EACH: Final = 256
WAITERS_ALWAYS: Final = 4

#: A call of these asks for one object: who asked for one, did not get it, and asks for another, was changed meanwhile.
#: (A program has an interpreter, and a rename two names.)
_ONE_A_CALL = frozenset({"read", "write", "create", "delete", "attr", "unix", "connect", "send"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may ask of people; what is beyond is denied. ``burst``: within `BURST_NS`."""

    open_each: int = 16
    burst: int = 60
    expire_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Waiter:
    """A thread of a process, and the fingerprint of what it was about to do (``struct am_hold_key``)."""

    process: ProcessKey
    tid: int
    held: int
    #: It does not restart a call, but is stopped at the start of a program (react tier, or by its arguments); of a
    #: script, at its name.
    halted: bool = False
    script: bool = False
    #: It waits in an open (react tier): it is not frozen.
    opens: bool = False

    @property
    def place(self) -> tuple[ProcessKey, int, int]:
        """What can wait for one thing at a time: a thread; but a script and its interpreter are asked for together."""
        return self.process, self.tid, self.held if self.halted else 0

    @property
    def restarts(self) -> bool:
        """Whether it asks once more when it goes on; else it does what was shown, or dies."""
        return not (self.halted or self.opens)


def waiter_of(event: Decision) -> Waiter:
    """Who is held by this decision."""
    stopped = event.tier is Tier.REACT or bool(event.flags & Flag.KILLED)
    halted = stopped and event.operation is Operation.EXEC and not event.opens
    script = halted and bool(event.flags & Flag.SCRIPT)
    return Waiter(event.process, event.tid, event.held, halted, script, event.opens)


@dataclass(slots=True)
class Approval:
    """One thing that somebody has to decide."""

    id: str
    session: str
    slot: int
    operation: str
    object: str
    rule: str
    reason: str
    comm: str
    uid: int
    asked_ns: int  # wall clock
    deadline_ns: int
    same: int  # what an approval for the session covers
    also_read: bool = False  # the file is opened for both; `operation` is `write`
    waiters: list[Waiter] = field(default_factory=list)
    changed: bool = False  # asked again: what was shown before is not what is there now
    start: str = ""  # of a program that is stopped, a digest of how it was started
    recent: tuple[dict[str, Any], ...] = ()  # what the session did before, the latest first
    file: str = ""  # react tier: where the name of a script leads, if elsewhere
    #: React tier: the file as it was when it was asked for (device, inode, change time in ns, size in bytes).
    shown: tuple[int, int, int, int] | None = None

    @property
    def does(self) -> str:
        """What it does to its object, for people."""
        return f"read and {self.operation}" if self.also_read else self.operation


@dataclass(slots=True)
class _Asked:
    """How often a session asked lately."""

    times: deque[int] = field(default_factory=deque)

    def too_often(self, now_ns: int, burst: int) -> bool:
        while self.times and now_ns - self.times[0] > BURST_NS:
            self.times.popleft()
        if len(self.times) >= burst:
            return True  # and not counted: an agent that goes on asking is heard again a minute later
        self.times.append(now_ns)
        return False


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a held decision: its approval, or why there is none."""

    approval: Approval | None
    new: bool = False
    changed: bool = False
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an approval that waits no more.

    ``how``: ``answered``, ``expired``, ``changed``, ``missed`` (the kernel's deadline), or who asked has ``ended``.
    """

    approval: Approval
    how: str
    why: str
    at_ns: int  # wall clock; 0: nobody knows


#: Outcomes that are remembered, for whoever answers too late.
OUTCOMES = 256


class Latest(dict[int, Any]):
    """What is known of what was held, by its fingerprint; the latest."""

    KEPT = 4096

    def __setitem__(self, held: int, what: Any) -> None:
        super().__setitem__(held, what)
        if len(self) > self.KEPT:
            del self[next(iter(self))]


class Holds:
    """The open approvals of all sessions."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.timeout_ns = int(self.limits.expire_s * 1e9)
        self._open: dict[str, Approval] = {}
        self._by_waiter: dict[tuple[ProcessKey, int, int], Approval] = {}
        #: Approved and not used yet, by thread: the operation, what an approval for the session covers, the object.
        self._unused: dict[tuple[ProcessKey, int], tuple[str, int, int]] = {}
        self._lately: dict[int, _Asked] = {}
        self._held: set[ProcessKey] = set()
        self.why: dict[int, str] = Latest()  # why the kernel was told what it was told
        self.cannot: dict[int, str] = Latest()  # why it could not be told anything, and denies by itself
        self.what: dict[int, tuple[str, str]] = Latest()  # object and rule of what is stopped
        self._outcomes: OrderedDict[str, Outcome] = OrderedDict()
        #: Of the latest approval: no two have one id, whichever daemon asked, for people answer by it.
        self.number = 0

    @property
    def open(self) -> Sequence[Approval]:
        """Oldest first."""
        return list(self._open.values())

    def find(self, question_id: str) -> Approval | None:
        """The open approval of this id."""
        return self._open.get(question_id)

    def outcome(self, question_id: str) -> Outcome | None:
        """What became of one that waits no more, if that is remembered."""
        return self._outcomes.get(question_id)

    def over(self, approval: Approval, how: str, why: str, at_ns: int = 0) -> None:
        """Remember what became of it."""
        self._outcomes[approval.id] = Outcome(approval, how, why, at_ns)
        while len(self._outcomes) > OUTCOMES:
            self._outcomes.popitem(last=False)

    def waits(self, waiter: Waiter) -> bool:
        """Whether this thread waits for an answer about this very object."""
        approval = self._by_waiter.get(waiter.place)
        return approval is not None and waiter in approval.waiters

    def of(self, process: ProcessKey) -> list[Approval]:
        """The open approvals that a process waits for."""
        return [q for q in self._open.values() if any(w.process == process for w in q.waiters)]

    def asked(
        self,
        event: Decision,
        session: str,
        operation: str,
        object_: str,
        rule: str,
        reason: str,
        now_ns: int,
        recent: Iterable[dict[str, Any]] = (),
        start: str = "",
    ) -> Heard:
        """The kernel holds a thread. Folds it into the session's open approval if that is the same."""
        waiter = waiter_of(event)
        self._held.add(event.process)
        if waiter.halted:
            self.what[waiter.held] = object_, rule
        before = self._by_waiter.get(waiter.place)
        was, same, held = self._unused.pop((waiter.process, waiter.tid), ("", 0, 0))
        if before is not None:
            was, same, held = before.operation, before.same, 0
        changed = (same == event.same or (was == operation and was in _ONE_A_CALL)) and held != event.held
        if before is not None:
            self._leave(before, waiter, "changed" if changed else "ended")
        waiting = sum(len(q.waiters) for q in self._open.values() if q.slot == event.session)
        free = WAITERS - sum(len(q.waiters) for q in self._open.values())
        if waiting >= WAITERS_EACH or waiting > max(free // 2, WAITERS_ALWAYS):
            most = "" if waiting >= WAITERS_EACH else f", and there is room for {max(free, 0)} more on this host"
            return Heard(None, refused=f"{waiting} threads of this session wait already{most}")
        for approval in self._open.values():
            if approval.slot == event.session and approval.same == event.same:
                same_object = approval.start == start and all(w.held == waiter.held for w in approval.waiters)
                if same_object:
                    approval.waiters.append(waiter)
                    self._by_waiter[waiter.place] = approval
                    return Heard(approval)
        lately = self._lately.setdefault(event.session, _Asked())
        limits = self.limits
        if sum(q.slot == event.session for q in self._open.values()) >= limits.open_each:
            return Heard(None, refused=f"{_count(limits.open_each)} of this session wait already")
        if lately.too_often(now_ns, limits.burst):
            return Heard(None, refused=f"this session asked for more than {_count(limits.burst)} in a minute")
        approval = Approval(
            self._new_id(), session, event.session, operation, object_, rule, reason, event.comm, event.uid,
            now_ns, now_ns + self.timeout_ns, event.same, operation == "write" and bool(event.flags & Flag.ALSO_READ),
            [waiter], changed, start, tuple(recent),
        )  # fmt: skip
        self._open[approval.id] = approval
        self._by_waiter[waiter.place] = approval
        return Heard(approval, new=True, changed=changed)

    def _new_id(self) -> str:
        self.number += 1
        return f"a-{self.number}"

    def again(self, approval: Approval, now_ns: int) -> Approval:
        """What was shown is not what is there: the same waiters wait for the answer to a new question."""
        waiters = self.answer(approval)
        self.over(approval, "changed", "", now_ns)
        new = replace(
            approval, id=self._new_id(), asked_ns=now_ns, deadline_ns=now_ns + self.timeout_ns, changed=True,
            file="", shown=None, waiters=list(waiters),
        )  # fmt: skip
        self.resume(new)
        return new

    def answer(self, approval: Approval, *, allowed: bool = False) -> list[Waiter]:
        """It is decided: whom to tell."""
        self._open.pop(approval.id, None)
        for waiter in approval.waiters:
            self._by_waiter.pop(waiter.place, None)
            if allowed and waiter.restarts:
                self._unused[waiter.process, waiter.tid] = (approval.operation, approval.same, waiter.held)
        return approval.waiters

    def used(self, event: Decision) -> None:
        """What was approved has happened."""
        self._unused.pop((event.process, event.tid), None)

    def resume(self, approval: Approval) -> None:
        """It was asked by an earlier daemon."""
        self._open[approval.id] = approval
        for waiter in approval.waiters:
            self._by_waiter[waiter.place] = approval
            self._held.add(waiter.process)
        self.number = max(self.number, int(approval.id.partition("-")[2]))

    def expired(self, now_ns: int) -> list[Approval]:
        """Those that nobody answered in time."""
        return [q for q in self._open.values() if q.deadline_ns <= now_ns]

    def ended(self, process: ProcessKey) -> bool:
        """A process is gone. Returns whether it was ever held."""
        for approval in self.of(process):
            for waiter in [w for w in approval.waiters if w.process == process]:
                self._leave(approval, waiter, "ended")
        known = process in self._held
        self._held.discard(process)
        if known:
            self._unused = {thread: what for thread, what in self._unused.items() if thread[0] != process}
        return known

    def missed(self, waiter: Waiter) -> bool:
        """The kernel denied it: it was not frozen in time. Whether it was known to wait."""
        if not self.waits(waiter):
            return False
        self._leave(self._by_waiter[waiter.place], waiter, "missed")
        return True

    def gave_up(self, waiter: Waiter) -> bool:
        """It shall wait no more. Whether it was known to."""
        if not self.waits(waiter):
            return False
        self._leave(self._by_waiter[waiter.place], waiter, "ended")
        return True

    def closed(self, slot: int) -> list[Approval]:
        """A session has ended."""
        self._lately.pop(slot, None)
        return self._drop(q for q in self._open.values() if q.slot == slot)

    def _drop(self, approvals: Iterable[Approval]) -> list[Approval]:
        dropped = list(approvals)
        for approval in dropped:
            self.answer(approval)
            self.over(approval, "ended", "")
        return dropped

    def _leave(self, approval: Approval, waiter: Waiter, how: str) -> None:
        approval.waiters = [w for w in approval.waiters if w.place != waiter.place]
        self._by_waiter.pop(waiter.place, None)
        if not approval.waiters:
            self._open.pop(approval.id, None)
            self.over(approval, how, "")


def _count(number: int) -> str:
    return f"{number} approval{'s' if number != 1 else ''}"
