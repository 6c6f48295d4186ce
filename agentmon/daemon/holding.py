# SPDX-License-Identifier: Apache-2.0
"""What is held: freezing it, telling the kernel the answer, and taking over what an earlier daemon held."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from agentmon.control.protocol import RefusedError
from agentmon.daemon import warden
from agentmon.daemon.gatekeeping import left_in
from agentmon.daemon.opens import Opens
from agentmon.daemon.untouched import Untouched, root_path
from agentmon.engine.holds import Approval, Waiter
from agentmon.errors import KernelError
from agentmon.host import process
from agentmon.host.parking import Parking, ParkingError, empty, is_thawed
from agentmon.host.shown import lease_at
from agentmon.kernel.fanotify import Gate
from agentmon.kernel.grants import boot_ns
from agentmon.kernel.host import cgroup2_root
from agentmon.model.events import ProcessKey, Shown
from agentmon.model.operations import Action, Operation

if TYPE_CHECKING:
    from pathlib import Path

    from agentmon.daemon.app import Daemon
    from agentmon.policy.bind import BoundPolicy

#: A program that is stopped, and not known here by then, is not let run: what told of it was lost.
LOST_NS = 2_000_000_000

_FIELDS = tuple(field.name for field in fields(Approval))

#: How long the kernel's tables keep an answer. Of a refusal: whoever tries again within that is refused again, unasked.
#: They have room for few, and an agent that asks too much shall not fill them.
KEPT_REFUSED_S = 300.0
KEPT_REFUSED = 256
KEPT_S = 5.0
#: How long who was held may take to hear that it is denied, before its session ends; and how often it is looked for.
HEARD_S = 2.0
_LISTEN_S = 0.001
#: An approval that nobody used: its thread is stopped, maybe.
KEPT_UNUSED_S = 3600.0


@dataclass(frozen=True, slots=True)
class _Settled:
    """An answer that the kernel was given."""

    waiter: Waiter
    action: Action
    at_s: float


class Holding:
    """The side of `engine.holds` that touches the kernel.

    What freezes and lets go may block for long (`host.parking`), so one thread does it, each thing in its turn; another
    one writes the file.
    """

    def __init__(self, daemon: Daemon, gates: dict[str, Gate]) -> None:
        self._daemon = daemon
        self._lot = warden.lot_name(daemon.config.daemon.pins)
        self._parking = Parking(cgroup2_root(), self._lot, self._are_of_its_session)
        self._mover = ThreadPoolExecutor(1, "holding")
        self._writer = ThreadPoolExecutor(1, "held.json")
        self._file = daemon.config.daemon.state / "held.json"
        self._shown: dict[tuple[ProcessKey, int], Shown] = {}  # scripts, as they were
        self._opens = Opens(daemon, gates)
        self.untouched = Untouched()
        self._warden: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unsaved = False
        self._settled: deque[_Settled] = deque()
        self._looked_s = self._asked_s = 0.0
        self._sweep: Future[None] | None = None

    def expect(self, bound: BoundPolicy, uid: int) -> None:
        """A user puts this policy into force: what that takes is made ready before anybody is held by it."""
        self._opens.expect(bound, uid)
        if bound.holds and self._warden is None:
            started = self._mover.submit(self._watch_over)
            if self._daemon.monitor.holds_starts:
                wait([started])  # what is stopped before it is known of here needs it already

    def park(self, waiter: Waiter) -> None:
        """Freeze its process; what cannot be frozen is denied. Who waits in an open need not be."""
        self._loop = self._loop or asyncio.get_running_loop()
        self._show(waiter)  # it may stand still already, and be approved before it is frozen
        if waiter.opens:
            self._mover.submit(self._watch_over)
        else:
            with contextlib.suppress(OSError):
                self._parking.freeze_again(waiter.process)  # at once, if that is all that it takes
            self._mover.submit(self._park, waiter, self._loop)
        self.save_soon()

    def _park(self, waiter: Waiter, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread."""
        why = ""
        try:
            if self._warden is None:
                self._watch_over()
            self._parking.park(waiter.process)
            self._watch_over()  # again, but not first: who is to be frozen has half a second
        except (ParkingError, OSError) as error:
            why = f"it cannot be held: {error}"
        loop.call_soon_threadsafe(self._parked, waiter, why)

    def _are_of_its_session(self, key: ProcessKey, pids: Collection[int]) -> bool:
        """In the thread: only the kernel's tables are asked."""
        sessions = {of.pid: state.session for of, state in self._daemon.monitor.processes().items()}
        return key.pid in sessions and {sessions.get(pid) for pid in pids} == {sessions[key.pid]}

    def _watch_over(self) -> None:
        if self._warden is None or self._warden.poll() is not None:  # somebody may have killed it
            state = self._daemon.config.daemon.state
            self._warden, its_end = warden.start(self._daemon.monitor.pin_directory, state, self._lot)
            self._opens.gates.guarded_by(its_end)

    def _parked(self, waiter: Waiter, why: str) -> None:
        if not self._daemon.engine.holds.waits(waiter):
            return  # it was answered, or has ended, meanwhile; the thread lets it go next
        try:
            if not why:
                self._daemon.monitor.answers.put(waiter.process, waiter.tid, waiter.held, Action.HOLD)
        except KernelError as error:
            why = f"it cannot be held: {error}"
        if why:
            self._daemon.engine.holds.ended(waiter.process)
            self._daemon.engine.holds.why[waiter.held] = why
            self.settle((waiter,), Action.DENY)
        elif waiter.halted:
            _go_on(waiter.process)  # it is frozen: the stop, which others see, is not needed any more

    def settle(self, waiters: tuple[Waiter, ...], action: Action, *, remember: bool = True) -> None:
        """Tell the kernel, then let go on who waits for nothing else; what is denied a program, to its end.

        Who goes on and finds no answer, for the kernel could not be told, is denied there.

        ``remember``: a refusal counts for a while.
        """
        now_s = time.monotonic()
        for waiter in waiters:
            if waiter.opens:
                self._opens.settle(waiter, action, KEPT_REFUSED_S if remember else 0.0)
                continue
            shown = self._shown.pop((waiter.process, waiter.held), None) if waiter.script else None
            try:
                self._daemon.monitor.answers.put(waiter.process, waiter.tid, waiter.held, action, shown)
            except KernelError as error:
                self._no_room(waiter, error)
            self._settled.append(_Settled(waiter, action, now_s if remember else now_s - KEPT_REFUSED_S + KEPT_S))
        for key in {waiter.process for waiter in waiters}:
            halted = any(waiter.halted for waiter in waiters if waiter.process == key)
            if (halted and action is Action.DENY) or not self._daemon.engine.holds.of(key):
                self._move(self._unhalt if halted else self._parking.unpark, key)
        self.save_soon()

    def _no_room(self, waiter: Waiter, error: KernelError) -> None:
        from agentmon.daemon.app import log

        self._daemon.engine.holds.cannot[waiter.held] = f"it cannot be held: {error}"
        log(f"process {waiter.process.pid} was held, and is denied: {error}")

    def _unhalt(self, key: ProcessKey) -> None:
        """In the thread: behind what froze it, which may still be to come when it is answered."""
        self._parking.unpark(key)
        _go_on(key)

    def _move(self, what: Callable[..., None], *arguments: ProcessKey) -> Future[None]:
        def do() -> None:
            try:
                what(*arguments)
            except ParkingError as error:
                from agentmon.daemon.app import log

                log(f"what was held goes on, but is not where it was: {error}")

        return self._mover.submit(do)

    def changed(self, approval: Approval) -> Approval | None:
        """The question that takes the place of this one, if the program's file is not what was shown; else None.

        Raises RefusedError: it could become another one unseen.
        """
        daemon = self._daemon
        seen = [waiter for waiter in approval.waiters if waiter.halted or waiter.opens]
        if self.untouched.is_open(approval.id):
            raise RefusedError(
                f"`{approval.object}` is open for writing, or mapped so: it could change after you looked."
                f" `{approval.id}` is not approved, and waits on: end who writes it (`fuser -v FILE`), or deny it",
                "failed",
            )  # fmt: skip
        same = all(self._look(waiter, approval.object) == _shown(approval) for waiter in seen)
        if same and not self.untouched.was_opened(approval.id):
            return None
        new, commands = daemon.engine.ask_again(approval, time.time_ns())
        for waiter in new.waiters:
            self._show(waiter)
        daemon.execute_all(commands)
        daemon.settle()
        self.save_soon()
        return new

    def _show(self, waiter: Waiter) -> None:
        """Whoever is asked may look at it from now on."""
        for approval in self._daemon.engine.holds.of(waiter.process):
            if waiter not in approval.waiters:
                continue
            self._look_after(approval, waiter)
            # what is written to meanwhile is no more than a guess: it counts as changed
            if approval.shown is None and not waiter.restarts and not self.untouched.was_opened(approval.id):
                file = self._look(waiter, approval.object)
                approval.shown = (file.device, file.inode, file.changed_ns, file.size_bytes) if file else None
            self._know_script(approval, waiter)

    def _look_after(self, approval: Approval, waiter: Waiter) -> None:
        """Hear of it when somebody opens the program for writing."""
        if approval.operation != Operation.EXEC.word or self.untouched.knows(approval.id):
            return
        if waiter.restarts:
            self.untouched.keep_soon(approval.id, root_path(waiter.process.pid, approval.object))
        elif waiter.opens:
            self.untouched.keep(approval.id, self._opens.lease(waiter))
        elif waiter.script:
            path = process.resolve_script(waiter.process.pid, os.fsencode(approval.object))
            self.untouched.keep(approval.id, lease_at(path) if path else None)
        else:
            self.untouched.keep(approval.id, lease_at(b"/proc/%d/exe" % waiter.process.pid))

    def _know_script(self, approval: Approval, waiter: Waiter) -> None:
        if not waiter.script:
            return
        if shown := _shown(approval):
            self._shown[waiter.process, waiter.held] = shown
        path = process.resolve_script(waiter.process.pid, os.fsencode(approval.object))
        if path and not approval.file and (name := os.fsdecode(path)) != approval.object:
            approval.file = name

    def _look(self, waiter: Waiter, name: str) -> Shown | None:
        """What it waits for, as it is now: the file that it opens, or its program; None: that is not there."""
        if waiter.opens:
            return self._opens.file(waiter)
        if waiter.script:
            return process.script_file(waiter.process.pid, os.fsencode(name))
        return process.program_file(waiter.process.pid)

    def answer(self, approval: Approval, action: Action, scope: str, for_s: float | None, how: str) -> None:
        """Decide an approval, and with it all that ask the same.

        Raises RefusedError: the kernel's tables have no room for an approval. Then nobody goes on, all wait as before.
        """
        daemon = self._daemon
        same = [approval]
        if scope != "once":
            same += [
                q
                for q in daemon.engine.holds.open
                if q is not approval and (q.slot, q.same) == (approval.slot, approval.same)
            ]
        if action is Action.ALLOW:
            try:
                self._tell_kernel_first(same, scope, for_s)
            except KernelError as error:
                raise RefusedError(_full(approval, scope, error), "failed") from error
        for one in same:
            if action is Action.ALLOW:
                self.untouched.let(one.id)
            daemon.execute_all(daemon.engine.decide(one, action, how, time.time_ns()))
        daemon.settle()

    def _tell_kernel_first(self, approvals: list[Approval], scope: str, for_s: float | None) -> None:
        """Before anybody goes on: all that these approvals take of the kernel's tables, or nothing.

        Raises KernelError.
        """
        answers, approval = self._daemon.monitor.answers, approvals[0]
        session = self._daemon.engine.session(approval.slot)
        with contextlib.ExitStack() as undo:
            for asked, waiter in [(one, waiter) for one in approvals for waiter in one.waiters]:
                if waiter.opens and self._opens.reserve(waiter, _shown(asked)):
                    undo.callback(self._opens.withdraw, waiter)
                elif not waiter.opens and answers.reserve(waiter.process, waiter.tid, waiter.held):
                    undo.callback(answers.withdraw, waiter.process, waiter.tid, waiter.held)
            if scope != "once" and session is not None:
                serial = self._daemon.states[session.id].serial
                if approval.shown and any(waiter.script for waiter in approval.waiters):
                    # first: without the other it counts for nothing
                    answers.approve_script(serial, approval.same, approval.shown[1], for_s)
                    undo.callback(answers.disapprove_script, serial, approval.same, approval.shown[1])
                answers.approve(serial, approval.same, for_s)
            undo.pop_all()

    def deny_all(self, slot: int, why: str) -> bool:
        """Deny all that a session waits for. Whether all have heard of it, in `HEARD_S`: then its fence may go."""
        daemon = self._daemon
        for approval in [q for q in daemon.engine.holds.open if q.slot == slot]:
            daemon.execute_all(daemon.engine.decide(approval, Action.DENY, why, time.time_ns()))
        members = {key for key, state in daemon.monitor.processes().items() if state.session == slot}
        denied = [s.waiter for s in self._settled if s.action is Action.DENY and s.waiter.process in members]
        deadline = time.monotonic() + HEARD_S
        while not all(self._heard(waiter) for waiter in denied):
            if time.monotonic() > deadline:
                return False
            time.sleep(_LISTEN_S)
        return True

    def _heard(self, waiter: Waiter) -> bool:
        """Whether a denial has become an error, or the end of a thread, or of a program that was not to start."""
        if waiter.opens or not process.is_alive(waiter.process) or not process.has_thread(waiter.process, waiter.tid):
            return True
        return waiter.restarts and self._daemon.monitor.answers.used(waiter.process, waiter.tid, 0)

    def tick(self) -> None:
        """Deny what nobody answered; let go on who was frozen by the way."""
        daemon = self._daemon
        daemon.monitor.beat()
        for halted in daemon.monitor.answers.halted():
            if not daemon.engine.holds.of(halted.process) and boot_ns() - halted.asked_ns > LOST_NS:
                warden.deny(daemon.monitor.answers, halted)
        daemon.execute_all(daemon.engine.expire(time.time_ns()))
        self._give_up()
        self._opens.tick()
        self._forget_settled()
        if self._loop is not None and (self._sweep is None or self._sweep.done()):
            self._sweep = self._move(self._parking.sweep)

    def _give_up(self) -> None:
        """Who is frozen handles no signal: what somebody interrupts (^C) waits no more. Else it would for minutes."""
        now_s = time.monotonic()
        if now_s - self._asked_s < 1:
            return
        self._asked_s = now_s
        self.untouched.forget_others({approval.id for approval in self._daemon.engine.holds.open})
        for approval in self._daemon.engine.holds.open:
            for waiter in list(approval.waiters):
                # a program that was just started has no handler yet: it ends by itself
                number = None if waiter.halted else process.interrupted(waiter.tid)
                if number:
                    why = f"interrupted by {number.name} while it was held"
                    self._daemon.execute_all(self._daemon.engine.gave_up(waiter, why))

    def _forget_settled(self) -> None:
        """The kernel's tables are small. Whoever waits for another part of the same call still needs the first."""
        answers, holds = self._daemon.monitor.answers, self._daemon.engine.holds
        now_s = time.monotonic()
        if now_s - self._looked_s < 1:
            return
        self._looked_s = now_s
        too_many = sum(one.action is Action.DENY for one in self._settled) - KEPT_REFUSED
        for _ in range(len(self._settled)):
            one = self._settled.popleft()
            waiter, age_s = one.waiter, now_s - one.at_s
            if holds.waits(waiter):
                continue  # asked again: the next answer is what counts
            if not process.has_thread(waiter.process, waiter.tid):
                answers.forget(waiter.process, waiter.tid, waiter.held)
                answers.forget(waiter.process, waiter.tid, 0)
                continue
            if one.action is Action.DENY:
                over = age_s > KEPT_REFUSED_S or (too_many > 0 and age_s > KEPT_S)
                too_many -= over
            else:
                over = age_s > KEPT_UNUSED_S or (age_s > KEPT_S and self._used(waiter))
            if over and not holds.of(waiter.process):
                answers.forget(waiter.process, waiter.tid, waiter.held)
            else:
                self._settled.append(one)

    def _used(self, waiter: Waiter) -> bool:
        answers = self._daemon.monitor.answers
        if waiter.halted:
            return not answers.is_pending(waiter.process)
        return answers.used(waiter.process, waiter.tid, waiter.held)

    def ended(self, key: ProcessKey) -> None:
        """It is gone."""
        self._move(self._parking.leave, key)
        self._shown = {of: file for of, file in self._shown.items() if of[0] != key}
        self._opens.ended(key)
        self._daemon.monitor.answers.forget_process(key)

    def end(self, why: str) -> None:
        """Nobody will answer any more: deny all."""
        self._daemon.monitor.answers.beat(alive=False)
        for approval in self._daemon.engine.holds.open:
            self._daemon.execute_all(self._daemon.engine.decide(approval, Action.DENY, why, time.time_ns()))
        for halted in self._daemon.monitor.answers.halted():
            warden.deny(self._daemon.monitor.answers, halted)
        self._opens.end()
        self.untouched.end()
        self._move(self._parking.leave_all)
        self._mover.shutdown()
        self._save()
        self._writer.shutdown()
        if self._warden is not None:
            self._warden.kill()  # it does not hear SIGTERM until the daemon is dead
            self._warden.wait()

    def adopt(self) -> None:
        """Know again what an earlier daemon held; what it cannot have asked about is denied."""
        daemon = self._daemon
        self._loop = asyncio.get_running_loop()
        policies = [daemon.book.in_force(state.digest) for state in daemon.states.values()]
        if any(policy is None or policy.bound.holds for policy in policies):
            self._watch_over()
        lots = self._parking.adopt()
        known_before = self._load()
        self._tell_frozen(known_before, lots)
        waiting = set(daemon.monitor.answers.waiting())
        self._opens.adopt(left_in(daemon.config.daemon.state))
        for approval in known_before:
            approval.waiters = [
                w for w in approval.waiters if (w.process, w.tid, w.held) in waiting or self._opens.waits(w)
            ]
            session = daemon.engine.session(approval.slot)
            if approval.waiters and session is not None and session.id == approval.session:
                daemon.engine.holds.resume(approval)
                for waiter in approval.waiters:
                    waiting.discard((waiter.process, waiter.tid, waiter.held))
                    if waiter.process.pid in lots:
                        self._parking.know(waiter.process, lots[waiter.process.pid])
                    self._look_after(approval, waiter)
                    self._know_script(approval, waiter)
        for key, tid, held in waiting:
            daemon.monitor.answers.put(key, tid, held, Action.DENY)
        self._opens.settle_for([waiter for approval in daemon.engine.holds.open for waiter in approval.waiters])
        known = {key.pid for approval in daemon.engine.holds.open for key in (w.process for w in approval.waiters)}
        for lot in set(lots.values()):
            if not any(pid in known for pid, where in lots.items() if where == lot):
                empty(lot)
        self._parking.sweep()

    def _tell_frozen(self, approvals: list[Approval], lots: dict[int, Path]) -> None:
        """The daemon may have died when somebody was frozen and written down, and the kernel not told yet."""
        answers = self._daemon.monitor.answers
        for waiter in [waiter for approval in approvals for waiter in approval.waiters if not waiter.opens]:
            lot = lots.get(waiter.process.pid)
            if lot and not is_thawed(lot) and answers.is_unanswered(waiter.process, waiter.tid, waiter.held):
                with contextlib.suppress(KernelError):  # there is no room: it is denied
                    answers.put(waiter.process, waiter.tid, waiter.held, Action.HOLD)

    def save_soon(self) -> None:
        """Once for all that comes together: with many that wait, this is what costs."""
        if self._loop is not None and not self._unsaved:
            self._unsaved = True
            self._loop.call_soon(self._save_unsaved)

    def _save_unsaved(self) -> None:
        if self._unsaved:  # `end` may have been faster
            self._save()

    def _save(self) -> None:
        self._unsaved = False
        holds = self._daemon.engine.holds
        opens = [one.row() for one in self._opens.left()]
        self._writer.submit(
            self._write,
            {
                "number": holds.number, "open": [_row(a) for a in holds.open], "opens": opens,
                "files": self._opens.marked(),
            },
        )  # fmt: skip

    def _write(self, what: dict[str, Any]) -> None:
        new = self._file.with_suffix(".new")
        try:
            new.write_text(json.dumps(what), encoding="utf-8")
            os.replace(new, self._file)
        except OSError as error:
            from agentmon.daemon.app import log

            log(f"cannot write `{self._file}`: {error.strerror}; what is held would be denied by the next daemon")

    def _load(self) -> list[Approval]:
        """What cannot be read (damaged, or of another version) is denied, and told: a daemon starts without it."""
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
            self._daemon.engine.holds.number = int(known["number"])
            return [_approval(row) for row in known["open"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            from agentmon.daemon.app import log

            log(f"cannot read `{self._file}`: {type(error).__name__}: {error}; what an earlier daemon held is denied")
            return []


def _row(approval: Approval) -> dict[str, Any]:
    row = {name: getattr(approval, name) for name in _FIELDS}
    row["waiters"] = [
        ((w.process.pid, w.process.start_ns), w.tid, w.held, w.halted, w.script, w.opens) for w in approval.waiters
    ]
    return row


def _approval(row: dict[str, Any]) -> Approval:
    waiters = [Waiter(ProcessKey(*process), *rest) for process, *rest in row["waiters"]]
    shown = tuple(row["shown"]) if row["shown"] else None
    return Approval(**{**row, "waiters": waiters, "recent": tuple(row["recent"]), "shown": shown})


def _full(approval: Approval, scope: str, error: KernelError) -> str:
    if scope == "once":
        todo = f"in {KEPT_REFUSED_S / 60:g} minutes old answers are taken out: approve it again then, or end a session"
    else:
        todo = f"`agentmon approve {approval.id}` (once) takes no room there; what a session was approved ends with it"
    return f"`{approval.id}` is not approved, and waits on: {error}; {todo} (`agentmon release`)"


def _shown(approval: Approval) -> Shown | None:
    return Shown(*approval.shown) if approval.shown else None


def _go_on(key: ProcessKey) -> None:
    with contextlib.suppress(PermissionError):
        process.send_signal(key, signal.SIGCONT)
