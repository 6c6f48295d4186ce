# SPDX-License-Identifier: Apache-2.0
"""The daemon: one loop that reads the ring, asks the engine, and does what it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from agentmon.audit.store import AuditLog
from agentmon.control.protocol import RefusedError, encode
from agentmon.control.server import Server
from agentmon.daemon import adoption, enrolment
from agentmon.daemon.baselines import Baselines
from agentmon.daemon.config import Config
from agentmon.daemon.health import Health, check
from agentmon.daemon.holding import HEARD_S, Holding
from agentmon.daemon.learning import Learning
from agentmon.daemon.names import SessionNames
from agentmon.daemon.notifications import Notifications, open_channels
from agentmon.daemon.notify import notify, watchdog_interval_s
from agentmon.daemon.policies import PolicyBook
from agentmon.daemon.state import SessionState, StateDirectory
from agentmon.daemon.verbs import Verbs
from agentmon.engine import (
    Command,
    EndSession,
    Engine,
    Kill,
    Limits,
    Mismatch,
    Park,
    Pause,
    Questions,
    Recount,
    Report,
    ResolveScript,
    Risks,
    Session,
    SetRisk,
    Settle,
    Tell,
    Unpark,
    Warn,
)
from agentmon.errors import KernelError
from agentmon.host import process
from agentmon.host.freeze import Freezer, thaw
from agentmon.kernel.fanotify import Gate
from agentmon.kernel.monitor import Monitor
from agentmon.model.conditions import Risk
from agentmon.model.events import ProcessKey
from agentmon.model.operations import is_kept
from agentmon.model.records import Record
from agentmon.model.text import clean

#: Ended sessions whose summary can still be asked for.
REMEMBERED = 64
#: The ring wakes us sparingly; this bounds how late a record can be.
POLL_S = 0.1
#: How often the kernel's process table is compared with ours.
RECONCILE_S = 2.0
#: An embedded daemon that nobody uses ends after this long.
EMBEDDED_GRACE_S = 1.0
READ_LIMIT = 2_000
#: Records judged by baselines at once: some milliseconds, then it is the others' turn.
JUDGED_AT_ONCE = 500


class Daemon:
    """Everything that lives as long as the daemon does. `run` returns when it should end."""

    def __init__(
        self, config: Config, monitor: Monitor, *, embedded: bool = False, gates: dict[str, Gate] | None = None
    ) -> None:
        """`gates`: `gatekeeping.take_over`.

        Raises `AgentmonError` when the state directory, the audit log or a webhook's secret cannot be used.
        """
        self.config = config
        self.monitor = monitor
        self.embedded = embedded
        hold = config.hold
        self.engine = Engine(Limits(hold.open_per_session, hold.asked_per_minute, hold.expire_s), process.start)
        self.book = PolicyBook(implied=monitor.refuses_unix, control=config.daemon.socket)
        self.health = Health()
        self.directory = StateDirectory(config.daemon.state)
        self.states: dict[str, SessionState] = {}
        self.names = SessionNames(self)
        self.questions = Questions()
        self.baselines = Baselines(config.fingerprint.directory)
        usual = config.fingerprint
        self.risks = Risks(usual.alerts_per_day, usual.elevated_rate, usual.rate)
        self.unwatched: dict[str, str] = {}  # sessions whose baseline cannot be used, and why
        self.learning = Learning(self)
        self._judging = False
        self.holding = Holding(self, gates or {})
        self.notifications = Notifications(open_channels(config.notify), log)
        self.ended: OrderedDict[str, Session] = OrderedDict()
        self.audit = AuditLog(config.daemon.audit)
        verbs = Verbs(self)
        self.server = Server(config.daemon.socket, verbs.handle, self._disconnected, verbs.opened)
        self.started = time.monotonic()
        self._stop = asyncio.Event()
        self._records: list[Record] = []
        self._idle_since = time.monotonic()
        self._last_reconcile = time.monotonic()
        #: The engine believes that a session has nobody left. At first: what a daemon before this one left is unknown.
        self._recount = True

    # -- life -------------------------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM, SIGINT, or (embedded) until nobody needs it. Raises `AgentmonError`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGIO, self.holding.untouched.heard)
        log(self.audit.notice)
        adoption.adopt(self)
        self.learning.resume()
        self.check()
        self.server.start()
        loop.add_reader(self.monitor.fileno(), self.drain)
        self.report(Record(time.time_ns(), "daemon", operation="started", detail=f"tier {self.tier_word}"))
        self.settle()
        ready()
        notify(f"READY=1\nSTATUS=tier {self.tier_word}, {'enforcing' if self.health.enforcing else 'NOT enforcing'}")
        beat = watchdog_interval_s()
        last_beat = time.monotonic()
        try:
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), POLL_S)
                self.drain()
                self.holding.tick()
                self.learning.tick()
                self.settle()
                if beat is not None and time.monotonic() - last_beat >= beat:
                    notify("WATCHDOG=1")
                    last_beat = time.monotonic()
                if self.embedded and self._unused():
                    break
        finally:
            notify("STOPPING=1")
            loop.remove_reader(self.monitor.fileno())
            self._end()

    def _end(self) -> None:
        self.drain()
        self.judge()  # there may be an alert in it
        self.learning.end()
        self.holding.end("the daemon was stopped")
        # First the socket: whoever finds none starts a daemon of its own, which then finds the pins.
        self.server.stop()
        self.names.end()
        live = len(self.engine.sessions)
        self.report(Record(time.time_ns(), "daemon", operation="stopped", detail=f"{live} sessions live"))
        self.settle()
        self.audit.close()
        if live:
            log(f"{live} session(s) go on: the fence stays in force without the daemon; start it again to see them")
            self.monitor.close()
        else:
            self.monitor.detach()

    def _unused(self) -> bool:
        if self.engine.sessions or self.server.connections or self.learning.busy:
            self._idle_since = time.monotonic()
        return time.monotonic() - self._idle_since > EMBEDDED_GRACE_S

    def _disconnected(self) -> None:
        self._idle_since = time.monotonic()

    @property
    def tier_word(self) -> str:
        """`lsm` or `react`."""
        return self.monitor.tier.name.lower()

    # -- records ----------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Read what the kernel has to say, and act on it."""
        while True:
            events = self.monitor.read(READ_LIMIT)
            now_ns = time.time_ns()
            handle = self.engine.handle
            for event in events:
                for command in handle(event, now_ns):
                    # most commands are these, and there may be tens of thousands
                    if type(command) is Report:
                        self._records.append(command.record)
                    else:
                        self.execute(command)
            self.settle()
            if len(events) < READ_LIMIT:
                break
        if self._recount or time.monotonic() - self._last_reconcile > RECONCILE_S:
            self._reconcile()

    def _reconcile(self) -> None:
        self._recount = False
        self._last_reconcile = time.monotonic()
        self.names.sweep()
        self.book.clocks.wind(self.monitor)
        census = self.monitor.census() if self.engine.sessions else None
        if census is None:
            return  # nobody to ask about, or everybody forks: again after RECONCILE_S
        alive = {key: state.session for key, state in census.processes.items()}
        self.execute_all(self.engine.reconcile(alive, time.time_ns(), census.newborn, enrolment.describe))
        self.settle()

    def report(self, record: Record) -> None:
        """Add a record to the batch that `settle` writes."""
        self._records.append(record)

    def settle(self) -> None:
        """Hand the batch to the audit log and to watchers."""
        records, self._records = self._records, []
        if not records:
            return
        self.audit.append(records)
        self.risks.add(records)
        self._judge_soon()
        if any(connection.watching for connection in self.server.connections):
            for record in records:
                self.server.publish(record, lambda record=record: encode({"event": record.as_json()}))  # type: ignore[misc]

    def _judge(self) -> None:
        """A slice of what sessions under a baseline did; the rest when the loop comes round again."""
        self._judging = False
        self.execute_all(self.risks.turn(JUDGED_AT_ONCE))
        self.settle()
        self._judge_soon()

    def _judge_soon(self) -> None:
        if self.risks.waiting and not self._judging:
            self._judging = True
            asyncio.get_running_loop().call_soon(self._judge)

    def judge(self) -> None:
        """All that waits to be judged, at once: a tenth of a second at the most."""
        while self.risks.waiting:
            self.execute_all(self.risks.turn(JUDGED_AT_ONCE))

    def go_on(self) -> None:
        """What cannot wait, while something else takes long."""
        self.drain()
        self.holding.tick()

    def execute_all(self, commands: Iterable[Command]) -> None:
        """Do what the engine says."""
        for command in commands:
            self.execute(command)

    def execute(self, command: Command) -> None:
        """Do one thing that the engine says."""
        match command:
            case Report(record):
                self._records.append(record)
            case Kill(key, session, why):
                with contextlib.suppress(PermissionError):
                    if process.send_signal(key, signal.SIGKILL):
                        log(f"{session}: killed process {key.pid}: {why}")
            case ResolveScript(decision):
                given = decision.object if isinstance(decision.object, bytes) else b""
                path = process.resolve_script(decision.process.pid, given)
                self.execute_all(self.engine.script(decision, path, time.time_ns()))
            case Mismatch(record, message):
                self._records.append(record)
                log(f"{record.session}: {message}")
            case Park(waiter):
                self.holding.park(waiter)
            case Settle(waiters, action, remember):
                self.holding.settle(waiters, action, remember=remember)
            case Tell(event, approval):
                owner = self.engine.session(approval.slot)
                self.notifications.tell(event, approval, owner.uid if owner else approval.uid)
            case SetRisk(session, level):
                try:
                    self.set_risk(session, level)
                except KernelError as error:
                    log(f"{session.id}: its risk is {level.word}, but the kernel does not know: {error}")
            case Warn(session, record):
                self.notifications.warn(record, session.command)
            case Pause(session, why):
                self._pause(session, why)
            case Unpark(key):
                self.holding.ended(key)
            case Recount():
                self._recount = True
            case EndSession(session):
                self._close(session)

    def set_risk(self, session: Session, level: Risk) -> None:
        """What rules on risk go by from its next operation on. Raises `KernelError`; one that has ended has none."""
        if self.engine.session(session.slot) is session:
            self.monitor.set_risk(session.slot, level)
        session.risk = level.word

    # -- sessions ---------------------------------------------------------------------------------------------

    def new_session_id(self) -> str:
        """An id that no live or lately ended session has."""
        return enrolment.new_id({*self.states, *self.ended})

    def remember(self, session: Session) -> None:
        """Keep an ended session for its summary."""
        self.ended[session.id] = session
        while len(self.ended) > REMEMBERED:
            self.ended.popitem(last=False)

    def release(self, session: Session, how: str) -> None:
        """End a session whose processes run on. What is held is denied first: nobody approved it.

        Raises RefusedError: a call that was held did not come back to hear so. The session goes on.
        """
        if session.paused:
            thaw(self.members(session))
        if not self.holding.deny_all(session.slot, f"its session was {how}"):
            raise RefusedError(
                f"`{session.id}` is held in a call that has not come back within {HEARD_S:g} s (is it stopped?);"
                " release it again",
                "failed",
            )
        self.monitor.close_session(session.slot)
        self.remember(session)
        self.execute_all(self.engine.close(session.slot, time.time_ns(), how))
        self._forget(session.id)
        self.settle()

    def _pause(self, session: Session, why: str) -> None:
        """Stop all of it: who is stopped forks no more, so a few rounds find everybody."""
        if session.paused or session.id not in self.states:
            return
        self.set_paused(session, why or "something was against its plan")  # first: the next daemon has to know
        freezer, seen = Freezer(), set[ProcessKey]()
        while fresh := set(self.members(session)) - seen:
            freezer.freeze(fresh)
            seen |= fresh
        self._records.append(
            Record(time.time_ns(), "session", session.id, uid=session.uid, operation="paused", detail=session.paused)
        )
        log(f"{session.id} is paused: {session.paused}; `agentmon resume {session.id}` lets it go on")

    def set_paused(self, session: Session, why: str) -> None:
        """Remember that a session is stopped, beyond this daemon. ``why``: empty when it goes on."""
        session.paused = self.states[session.id].paused = why
        try:
            self.directory.save(self.states[session.id])
        except OSError as error:
            log(f"{session.id}: the next daemon will not know whether it is paused: {error}")

    def members(self, session: Session) -> list[ProcessKey]:
        """The processes of a session, by the kernel."""
        return [key for key, state in self.monitor.processes().items() if state.session == session.slot]

    def undo(self, session: Session) -> None:
        """An enrolment failed: as if it had never been, but for the record."""
        self.states[session.id].learn = ""
        self.release(session, "refused")

    def _close(self, session: Session) -> None:
        self.engine.holds.closed(session.slot)
        self.monitor.close_session(session.slot)
        self.remember(session)
        self._forget(session.id)

    def _forget(self, session_id: str) -> None:
        self.names.close(session_id)
        self.risks.ended(session_id)
        self.unwatched.pop(session_id, None)
        if self.questions.forget(session_id):
            self.directory.save_questions(self.questions.all())
        state = self.states.pop(session_id, None)
        self.directory.remove(session_id)
        if state is not None:
            if state.learn:
                self.learning.add(state)
            with contextlib.suppress(KernelError):
                self.book.release(self.monitor, state.policy_slot)

    # -- canaries ---------------------------------------------------------------------------------------------

    def check(self) -> Health:
        """Send out the canaries; what they saw is `health`."""
        self.health = health = check(self.monitor, self.book, self.config.daemon.state)
        if health.error:
            log(f"the canaries could not fly: {health.error}")
        for event in health.leftovers:
            self.execute_all(self.engine.handle(event, time.time_ns()))
        health.leftovers = ()
        for finding in health.findings:
            if not is_kept(self.monitor.tier, finding.operation, finding.posture):
                log(f"canary: {finding.operation.word} ({finding.attempt}) is {finding.posture}: {finding.note}")
        return health


def log(message: str) -> None:
    """One line of diagnostics; the journal adds the time."""
    if message:
        print(f"agentmon: {clean(message)}", file=sys.stderr, flush=True)


def is_group_member(uid: int, group: str) -> bool:
    """Whether the user is in the group, by the system's databases as they are now."""
    import grp
    import pwd

    try:
        wanted = grp.getgrnam(group)
        account = pwd.getpwuid(uid)
    except KeyError:
        return False
    return wanted.gr_gid in os.getgrouplist(account.pw_name, account.pw_gid)
