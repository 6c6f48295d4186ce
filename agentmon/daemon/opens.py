# SPDX-License-Identifier: Apache-2.0
"""React tier: opens of exactly named files that rules hold wait for an answer (`kernel.fanotify`).

Everybody who opens such a file comes by here: a thread of its own lets everyone go on at once who is in no session, so
that the daemon's loop keeps nobody waiting. What a session's open waits for is decided in the loop, as of all that is
held.

That somebody said yes is written into the kernel before the open goes on, and is asked for there when it has been done
(`was_let_open` in ``bpf/halt.bpf.h``): without that, whatever let it go on, the process dies. So nothing is lost when
the kernel lets all go on, which it does when nobody has the group any more. Others have it when this daemon dies
(`daemon.gatekeeping`), and who waits does so for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from agentmon.daemon.gatekeeping import Gates, Left, drain, reopened, still_waits, withdraw
from agentmon.daemon.marked import marked_in
from agentmon.engine.holds import Waiter
from agentmon.errors import KernelError
from agentmon.host import process
from agentmon.host.calls import opened_for, waits_in
from agentmon.host.shown import Lease, look
from agentmon.kernel.fanotify import Gate, Opening
from agentmon.kernel.grants import boot_ns
from agentmon.kernel.handle import made_as
from agentmon.model.events import Decision, Flag, ProcessKey, Shown
from agentmon.model.operations import Action, Operation, Reason, Tier

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon
    from agentmon.policy.bind import BoundPolicy

#: A file that is replaced has to be marked anew; until then its opens are denied.
REMARK_S = 1.0
#: Opens of one session that may wait at once, and those of all that the loop has yet to see: each takes a descriptor.
WAITING_EACH = 64
UNSEEN = 128
#: How often the thread looks whether it should end.
_POLL_MS = 500

_LOST = "it was replaced while no daemon was there, or no rule holds it any more"

_OPENS = (Operation.READ, Operation.WRITE)
_RUNS = frozenset((Operation.EXEC,))
_NOTHING: frozenset[Operation] = frozenset()


@dataclass(frozen=True, slots=True)
class _Waiting:
    gate: Gate
    opening: Opening
    decision: Decision
    path: bytes
    operations: frozenset[Operation]
    call: tuple[str, ...]
    shown: Shown | None = None  # a program, as it was approved


@dataclass(frozen=True, slots=True)
class _Mark:
    path: bytes
    to_run: bool
    uid: int  # of an ordinary user, only own files: everybody who opens it comes by


class Opens:
    """The opens that wait, and the files that are marked for it."""

    def __init__(self, daemon: Daemon, taken: dict[str, Gate]) -> None:
        """`taken`: of earlier daemons."""
        self._daemon = daemon
        self.gates = Gates(taken)
        self._gate: Gate | None = None  # of this daemon; the others are there to be answered alone
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False
        self._unseen = threading.Semaphore(UNSEEN)
        self._marked = marked_in(daemon.config.daemon.state)
        self._waiting: dict[tuple[ProcessKey, int], _Waiting] = {}
        self._refused: dict[tuple[ProcessKey, int, int], float] = {}  # by thread and object; until when
        #: Who was let go on in an earlier daemon's group: the same open may come by once more, in ours.
        self._let_there: dict[tuple[ProcessKey, int], tuple[str, ...]] = {}
        self._last_marks = 0.0

    def expect(self, bound: BoundPolicy, uid: int) -> None:
        """A user puts this policy into force: from now on, whoever opens what it names waits."""
        if self._daemon.monitor.tier is Tier.REACT and Operation.READ in self._daemon.monitor.holds:
            self._mark(_wanted(bound, uid))

    def tick(self) -> None:
        """Mark what has been replaced; mark nothing for sessions that have ended."""
        if time.monotonic() - self._last_marks < REMARK_S:
            return
        self._last_marks = now_s = time.monotonic()
        self._refused = {of: until_s for of, until_s in self._refused.items() if until_s > now_s}
        self._forget_gates()
        self._mark_all()

    def _mark_all(self) -> None:
        if Operation.READ not in self._daemon.monitor.holds or self._daemon.monitor.tier is not Tier.REACT:
            return
        wanted: set[_Mark] = set()
        for state in self._daemon.states.values():
            if prepared := self._daemon.book.in_force(state.digest):
                wanted |= _wanted(prepared.bound, 0 if state.by_root else state.uid)
        if wanted:
            self._mark(wanted)
        elif self._marked:
            if self._gate is not None:
                self._gate.unmark_all()
            self._marked.clear()
            self._daemon.holding.save_soon()

    def adopt(self, left: list[Left]) -> None:
        """Take up again who waits since before this daemon; who cannot be taken up is denied."""
        waits: list[tuple[Left, Opening | None]] = []
        for one in left:
            if one.gate not in self.gates:
                continue  # the kernel let it go
            if still_waits(one):
                waits.append((one, reopened(one)))  # before its file is marked
            else:  # somebody else may have got its number since; who is of a session has no answer
                self.gates[one.gate].respond(one.number, allow=True)
        self._mark_all()
        for one, opening in waits:
            gate, waiting = self.gates[one.gate], None
            with contextlib.suppress(OSError, KernelError, LookupError, ValueError):
                waiting = self._judge(gate, opening, one.process, one.operations, one.call) if opening else None
            if waiting is not None:  # whether the file has changed is asked when somebody approves
                decision = replace(waiting.decision, held=one.held)
                self._waiting[one.process, one.tid] = replace(waiting, decision=decision)
                continue
            from agentmon.daemon.app import log

            log(f"{os.fsdecode(one.path)}: process {one.process.pid} waits to open it, and is denied: {_LOST}")
            if opening is not None:
                gate.answer(opening, allow=False)
            else:
                gate.respond(one.number, allow=False)

    def settle_for(self, waiters: Collection[Waiter]) -> None:
        """Of those that were taken up, only these are asked for: deny the others."""
        known = {(waiter.process, waiter.tid) for waiter in waiters if waiter.opens}
        for place in self._waiting.keys() - known:
            self._answer(self._waiting.pop(place), allow=False)
        self._forget_gates()
        for gate in self.gates.all():  # who looked for marks before they were gone may have come since
            if gate is not self._gate:
                drain(gate, [one.opening.name for one in self._waiting.values() if one.gate is gate])

    def waits(self, waiter: Waiter) -> bool:
        """Whether this one is known."""
        waiting = self._waiting.get((waiter.process, waiter.tid))
        return waiting is not None and waiter.opens and waiting.decision.held == waiter.held

    def left(self) -> list[Left]:
        """Who waits, for the next daemon."""
        return [_left(key, tid, one) for (key, tid), one in self._waiting.items()]

    def marked(self) -> list[list[Any]]:
        """What the files are called whose opens wait, for the next daemon."""
        return self._marked.rows()

    def _forget_gates(self) -> None:
        used = {id(self._gate), *(id(one.gate) for one in self._waiting.values())}
        for gate in self.gates.all():
            if id(gate) not in used:
                self.gates.close(gate)

    def file(self, waiter: Waiter) -> Shown | None:
        """What it is about to open, as it is now."""
        waiting = self._waiting.get((waiter.process, waiter.tid))
        return look(waiting.opening.fd) if waiting else None

    def lease(self, waiter: Waiter) -> Lease | None:
        """Of the program that it is about to start."""
        waiting = self._waiting.get((waiter.process, waiter.tid))
        return Lease(os.dup(waiting.opening.fd)) if waiting is not None and waiting.opening.to_run else None

    def reserve(self, waiter: Waiter, shown: Shown | None) -> bool:
        """Let the kernel know that it may go on, if it is what was shown; it does not before `settle`.

        Raises KernelError.
        """
        waiting = self._waiting.get((waiter.process, waiter.tid))
        if waiting is not None:
            waiting = self._waiting[waiter.process, waiter.tid] = replace(waiting, shown=shown)
            self._tell_kernel(waiting)
        return waiting is not None

    def withdraw(self, waiter: Waiter) -> None:
        """Undo `reserve`: it waits on."""
        waiting = self._waiting.get((waiter.process, waiter.tid))
        if waiting is not None:
            inode, to_run = waiting.decision.inode[1], waiting.decision.operation is Operation.EXEC
            self._daemon.monitor.answers.forbid(waiter.process, waiter.tid, inode, to_run=to_run)

    def settle(self, waiter: Waiter, action: Action, kept_s: float) -> None:
        """Let an open go on, or fail with `EPERM`; so long, the same thread is refused the same unasked."""
        waiting = self._waiting.pop((waiter.process, waiter.tid), None)
        if waiting is None:
            return
        if action is Action.ALLOW:
            self._let(waiting)
            return
        self._refused[waiter.process, waiter.tid, waiter.held] = time.monotonic() + kept_s
        self._refuse(waiting)

    def ended(self, key: ProcessKey) -> None:
        """A process is gone."""
        for place in [place for place in self._waiting if place[0] == key]:
            self._answer(self._waiting.pop(place), allow=False)
        self._let_there = {place: call for place, call in self._let_there.items() if place[0] != key}
        self._refused = {of: until_s for of, until_s in self._refused.items() if of[0] != key}

    def end(self) -> None:
        """No open is let go on by this daemon any more."""
        self._ended = True
        for waiting in self._waiting.values():
            self._answer(waiting, allow=False)
        self._waiting.clear()
        if self._gate is not None:
            self._gate.unmark_all()
            self._thread.join()
            drain(self._gate, ())
        for gate in self.gates.all():
            self.gates.close(gate)
        withdraw(self._daemon.config.daemon.state)

    # -- marks ------------------------------------------------------------------------------------------------

    def _mark(self, wanted: set[_Mark]) -> None:
        for mark in wanted:
            with contextlib.suppress(OSError):
                fd = os.open(mark.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    self._mark_file(fd, mark)
                finally:
                    os.close(fd)

    def _mark_file(self, fd: int, mark: _Mark) -> None:
        """By its descriptor: the path may soon be another file's. Raises OSError when it cannot be opened here."""
        name = b"/proc/self/fd/%d" % fd
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or os.readlink(name) != mark.path or mark.uid not in (0, found.st_uid):
            return
        place = found.st_dev, found.st_ino
        if place not in self._marked:  # who cannot open it refuses it to everybody
            os.close(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        # again each time: a number may be another file's by now
        if not self._open_gate().mark(name, to_run=mark.to_run):
            return
        if self._marked.add(place, made_as(fd), mark.path):
            self._daemon.holding.save_soon()

    def _open_gate(self) -> Gate:
        if self._gate is None:
            self._gate = self.gates.new()
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._serve, args=(self._gate,), name="opens", daemon=True)
            self._thread.start()
        return self._gate

    # -- the thread: it opens nothing but files of /proc, which are never marked -----------------------------

    def _serve(self, gate: Gate) -> None:
        poll = select.poll()
        poll.register(gate.fd, select.POLLIN)
        while not self._ended:
            poll.poll(_POLL_MS)
            for opening in gate.read():
                try:
                    self._sort(gate, opening)
                except Exception:  # noqa: BLE001 whatever it is, nobody on this host may wait for it
                    gate.answer(opening, allow=True)  # if it is of a session, the kernel stops it

    def _sort(self, gate: Gate, opening: Opening) -> None:
        key = None
        found = process.status(opening.tid)
        if found.tgid != os.getpid():
            ticks = process.stat(found.tgid).start_ticks
            key = next((k for k in self._daemon.monitor.listed() if process.is_this(k, found.tgid, ticks)), None)
        if key is None or self._loop is None:
            gate.answer(opening, allow=True)
            return
        operations = _NOTHING if opening.to_run else opened_for(opening.tid)
        call = waits_in(opening.tid)
        while not self._unseen.acquire(timeout=_POLL_MS / 1000):
            if self._ended:
                raise RuntimeError("nobody looks at it any more")
        self._loop.call_soon_threadsafe(self._opened, gate, opening, key, operations, call)

    # -- the loop ---------------------------------------------------------------------------------------------

    def _opened(
        self, gate: Gate, opening: Opening, key: ProcessKey, operations: frozenset[Operation], call: tuple[str, ...]
    ) -> None:
        self._unseen.release()
        try:
            waiting = None if self._ended else self._judge(gate, opening, key, operations, call)
        except (OSError, KernelError, LookupError, ValueError):  # it is gone; or nobody can tell: the kernel does
            waiting = None
        if waiting is None or self._was_let_there(waiting):
            gate.answer(opening, allow=True)
            return
        session = self._daemon.engine.session(waiting.decision.session)
        if session is not None and self._is_approved(session.id, waiting.decision.same):
            self._let(waiting)
            return
        if sum(w.decision.session == waiting.decision.session for w in self._waiting.values()) >= WAITING_EACH:
            self._daemon.engine.holds.why[waiting.decision.held] = f"{WAITING_EACH} opens of this session wait already"
            self._refuse(waiting)
            return
        if time.monotonic() < self._refused.get((key, opening.tid, waiting.decision.held), 0.0):
            self._refuse(waiting)  # a shell tries each directory of PATH, and two may be one
            return
        self._waiting[key, opening.tid] = waiting
        self._daemon.execute_all(self._daemon.engine.handle(waiting.decision, time.time_ns()))
        self._daemon.settle()

    def _was_let_there(self, waiting: _Waiting) -> bool:
        decision = waiting.decision
        call = self._let_there.pop((decision.process, decision.tid), None)
        return call == waiting.call and self._daemon.monitor.answers.is_let(
            decision.process, decision.tid, decision.inode[1], to_run=waiting.opening.to_run
        )

    def _judge(
        self, gate: Gate, opening: Opening, key: ProcessKey, operations: frozenset[Operation], call: tuple[str, ...]
    ) -> _Waiting | None:
        """What there is to ask; None: nothing. Whatever else rules say of it, they say in the kernel."""
        daemon = self._daemon
        shown = look(opening.fd)
        names = self._marked.names((shown.device, shown.inode)) if shown else []
        acting = daemon.monitor.process(key)
        session = daemon.engine.session(acting.session) if acting else None
        if shown is None or not names or acting is None or session is None:
            return None
        state = daemon.states[session.id]
        prepared = daemon.book.in_force(state.digest)
        # a script is asked for when it has been started: its file is not known there any more, its name is
        if opening.to_run:
            operations = _RUNS if os.pread(opening.fd, 2, 0) != b"#!" else _NOTHING
        if prepared is None or not operations:
            return None
        tags = prepared.judge.exe_tags(process.executable(key.pid) or b"")
        asks = []  # by each name that it had, the latest first
        for path in names:
            verdicts = {operation: prepared.judge.path(operation, path, tags) for operation in sorted(operations)}
            operation, verdict = max(verdicts.items(), key=lambda item: (item[1].action, item[0]))
            if verdict.action is Action.HOLD and path in prepared.bound.gated(operation, rule=verdict.rule):
                also_read = operation is Operation.WRITE and Operation.READ in operations
                same = _print(path, state.generation, operation, verdict.rule, also_read)
                flags = Flag.ALSO_READ if also_read else Flag(0)
                asks.append((self._is_approved(session.id, same), path, operation, verdict.rule, same, flags))
        if not asks:
            return None
        _, path, operation, rule, same, flags = min(asks, key=itemgetter(0))
        held = _print(path, same, shown.device, shown.inode, shown.changed_ns, shown.size_bytes)
        facts = process.status(opening.tid)
        decision = Decision(
            boot_ns(), key, opening.tid, process.stat(key.pid).ppid, facts.uids[0], process.stat(opening.tid).comm,
            session.slot, state.generation, operation, Action.HOLD, Tier.REACT, flags, rule, Reason.RULE,
            tags, (shown.device, shown.inode, 0), path, 0, held, same, opens=True,
        )  # fmt: skip
        return _Waiting(gate, opening, decision, path, operations, call)

    def _is_approved(self, session: str, same: int) -> bool:
        return self._daemon.monitor.answers.is_approved(self._daemon.states[session].serial, same)

    def _let(self, waiting: _Waiting) -> None:
        """Of whom the kernel cannot be told, for its table is full, may not go on."""
        decision = waiting.decision
        try:
            self._tell_kernel(waiting)
        except KernelError as error:
            self._daemon.engine.holds.why[decision.held] = f"it was approved, and cannot go on: {error}"
            self._refuse(waiting)
            return
        if waiting.gate is not self._gate:
            self._let_there[decision.process, decision.tid] = waiting.call
        self._answer(waiting, allow=True)

    def _tell_kernel(self, waiting: _Waiting) -> None:
        """Raises KernelError."""
        answers, decision = self._daemon.monitor.answers, waiting.decision
        shown = waiting.shown or look(waiting.opening.fd)
        if decision.operation is not Operation.EXEC:
            answers.let_open(decision.process, decision.tid, decision.inode[1], waiting.operations)
        elif shown is not None:
            answers.let_start(decision.process, shown)

    def _refuse(self, waiting: _Waiting) -> None:
        self._answer(waiting, allow=False)
        refused = replace(waiting.decision, verdict=Action.DENY, reason=Reason.REFUSED)
        self._daemon.execute_all(self._daemon.engine.handle(refused, time.time_ns()))

    @staticmethod
    def _answer(waiting: _Waiting, *, allow: bool) -> None:
        waiting.gate.answer(waiting.opening, allow=allow)


def _left(key: ProcessKey, tid: int, one: _Waiting) -> Left:
    opening, decision = one.opening, one.decision
    return Left(
        key, tid, decision.held, one.gate.name, opening.name, opening.to_run, one.operations, decision.inode[:2],
        one.path, one.call,
    )  # fmt: skip


def is_own(path: bytes, uid: int) -> bool:
    """Whether there is such a file now, and it is that user's."""
    try:
        return os.lstat(path).st_uid == uid
    except OSError:
        return False


def _wanted(bound: BoundPolicy, uid: int) -> set[_Mark]:
    files = {_Mark(path, False, uid) for path in bound.gated(*_OPENS)}
    return files | {_Mark(path, True, uid) for path in bound.gated(Operation.EXEC)}


def _print(path: bytes, *numbers: int) -> int:
    """A fingerprint, the same for each daemon; never 0."""
    words = b"".join(struct.pack("=Q", number & (1 << 64) - 1) for number in numbers)
    return int.from_bytes(hashlib.blake2b(words + path, digest_size=8).digest(), "little") | 1
