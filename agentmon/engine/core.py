# SPDX-License-Identifier: Apache-2.0
"""The engine: attributes each event, cross-checks each verdict, and says what is to be done.

Sans-IO, after mitmproxy's ``proxy/layer.py``: no clock, no socket, no kernel. The caller hands in events and the
wall clock, and executes the commands that come back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from agentmon.engine.commands import (
    Command,
    EndSession,
    Kill,
    Mismatch,
    Park,
    Pause,
    Recount,
    Report,
    ResolveScript,
    Settle,
    Tell,
    Unpark,
)
from agentmon.engine.holds import Approval, Holds, Limits, Waiter, waiter_of
from agentmon.engine.sessions import Judge, Judgement, Process, Session, View, unseen
from agentmon.model.events import Decision, Event, Flag, ProcessEvent, ProcessKey, StepEvent, Stepping, What
from agentmon.model.operations import Action, Operation, Reason
from agentmon.model.records import BY_CONTENTS, BY_DEFAULT, BY_NAME, BY_PLAN, USED_UP, WOULD, Record

_OPERATION = {int(operation): operation.word for operation in Operation}
_ACTION = {int(action): action.word for action in Action}
_SCRIPT = int(Flag.SCRIPT)
_SCRIPT_OR_PINNED = int(Flag.SCRIPT | Flag.PINNED)
_UNSURE = int(Flag.UNSURE)
_DENY = int(Action.DENY)
_HOLD = int(Action.HOLD)
_CONNECT = int(Operation.CONNECT)
_EXEC = int(Operation.EXEC)

#: The kernel denied what was to be held, without an answer.
_NOT_HELD = (Reason.NOT_PARKED, Reason.UNHOLDABLE)

#: What people read when no rule gave the verdict.
REASONS: Mapping[int, str] = {
    Reason.RULE: "",
    Reason.DEFAULT: BY_DEFAULT,
    Reason.PATH_TOO_LONG: "the path is longer than 4,095 bytes",
    Reason.PATH_UNREACHABLE: "the path cannot be reached from the root",
    Reason.PATH_UNSTABLE: "the path was renamed while it was judged",
    Reason.NO_SCRATCH: "no scratch memory was free",
    Reason.NO_STATE: "the process could not be tracked",
    Reason.BAD_FAMILY: "no rule can judge this socket family",
    Reason.FOREIGN_ABI: "a system call ABI that cannot be judged here",
    Reason.CONTENTS: BY_CONTENTS,
    Reason.RING_OPEN: "io_uring does this where it cannot be judged",
    Reason.DEVICE: "a device node is another name of a device that rules know by its usual one",
    Reason.ROUTED: "a source route leads the packet over a host that is not judged",
    Reason.RESOLVER: "names are asked for at port 53, of any server",
    Reason.APPROVED: "approved",
    Reason.REFUSED: "refused",
    Reason.NOT_PARKED: "it was to be held, and the daemon did not come to freeze it",
    Reason.UNHOLDABLE: "it was to be held, and cannot wait",
    Reason.WOKEN: "it was held, and made to go on before there was an answer",
    Reason.PLAN_RULE: "the plan forbids it",
    Reason.PLAN_CLOSED: "the plan does not allow it",
    Reason.PLAN_ORDER: "it comes before its turn in the plan",
    Reason.PLAN_RUNNING: "this step of the plan is under way",
    Reason.PLAN_DONE: "this step of the plan has been, and is not to be repeated",
    Reason.PLAN_BYTES: "the step has written as much as it may",
    Reason.PLAN_FILES: "the step has changed as many files as it may",
    Reason.PLAN_PROCS: "the step has as many processes as it may",
    Reason.PLAN_TIME: "the step has had its time",
    Reason.PLAN_MARK: "the mark does not fit the plan",
}

#: Verdicts of a plan that can be told from what is asked for.
_BY_PART = (Reason.PLAN_RULE, Reason.PLAN_CLOSED)

#: Ended processes remembered, so that a message sent by one of them is not taken for an outsider's.
_RECENT_EXITS = 4096
RECENT_NS = 5_000_000_000


class Engine:
    """All sessions of one daemon."""

    def __init__(self, limits: Limits | None = None, start_of: Callable[[int], str] | None = None) -> None:
        """`start_of`: a digest of how the program of this PID was started."""
        self._start_of = start_of
        self._sessions: dict[int, Session] = {}
        self._exits: dict[int, tuple[str, int]] = {}  # pid -> session and time, oldest first
        self.holds = Holds(limits)
        self.mismatches = 0
        self.unattributed = 0

    # -- sessions ---------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> Collection[Session]:
        """Live sessions."""
        return self._sessions.values()

    def session(self, slot: int) -> Session | None:
        """The live session in this kernel slot."""
        return self._sessions.get(slot)

    def find(self, session_id: str) -> Session | None:
        """The live session of this id."""
        return next((s for s in self._sessions.values() if s.id == session_id), None)

    def open(self, session: Session) -> None:
        """Know a session, before its first process is enrolled, so that no event of it is unattributed."""
        if session.slot in self._sessions:
            raise ValueError(f"slot {session.slot} is in use by {self._sessions[session.slot].id}")
        self._sessions[session.slot] = session

    def enrolled(self, slot: int, processes: Iterable[Process]) -> None:
        """Add processes that joined by enrolment, not by fork."""
        session = self._sessions[slot]
        for process in processes:
            session.processes.setdefault(process.key, process)

    def new_generation(self, slot: int, generation: int, view: View) -> None:
        """A policy went into force; earlier generations stay, for records still on their way."""
        session = self._sessions[slot]
        session.view = session.generations[generation] = view

    def forget_generation(self, slot: int, generation: int) -> None:
        """No record of this generation is on its way any more."""
        session = self._sessions.get(slot)
        if session is not None and session.generations.get(generation) is not session.view:
            session.generations.pop(generation, None)

    def close(self, slot: int, now_ns: int, how: str) -> list[Command]:
        """Forget a session (released, or refused at enrolment). Returns the record to report."""
        session = self._sessions.pop(slot, None)
        if session is None:
            return []
        session.ended_ns = now_ns
        return [Report(self._session_record(session, now_ns, how))]

    def was_enrolled(self, pid: int, now_ns: int) -> str | None:
        """Id of the session that `pid` belongs to, or belonged to when it ended a moment ago."""
        for session in self._sessions.values():
            if any(key.pid == pid for key in session.processes):
                return session.id
        session_id, ended_ns = self._exits.get(pid, (None, 0))
        return session_id if now_ns - ended_ns < RECENT_NS else None

    def reconcile(
        self,
        alive: Mapping[ProcessKey, int],
        now_ns: int,
        newborn: Collection[int] = frozenset(),
        describe: Callable[[ProcessKey], Process] = unseen,
    ) -> list[Command]:
        """Compare with the kernel's own table (key -> slot): records may have been lost.

        Ends the sessions that have nobody in it and no child on its way (slots in `newborn`). `describe`: what /proc
        says of a process that is not known here.
        """
        commands: list[Command] = []
        for session in list(self._sessions.values()):
            for key in [k for k in session.processes if alive.get(k) != session.slot]:
                del session.processes[key]
                if self.holds.ended(key):
                    commands.append(Unpark(key))
            for key, slot in alive.items():
                if slot == session.slot and key not in session.processes:
                    session.processes[key] = describe(key)
            if not session.processes and session.slot not in newborn:
                commands += self._end(session, now_ns)
        return commands

    # -- events -----------------------------------------------------------------------------------------------

    def handle(self, event: Event, now_ns: int) -> list[Command]:
        """Take one event of the kernel. `now_ns`: wall clock. Never raises for odd events."""
        if type(event) is Decision:
            return self._decision(event, now_ns)
        if type(event) is StepEvent:
            return self._stepped(event, now_ns)
        assert isinstance(event, ProcessEvent)
        return self._process(event, now_ns)

    def _decision(self, event: Decision, now_ns: int) -> list[Command]:
        session = self._sessions.get(event.session)
        operation = event.operation
        object_ = event.object
        verdict = event.verdict
        text = object_.decode("utf-8", "surrogateescape") if type(object_) is bytes else str(object_)
        rule = event.rule
        key = event.process
        if session is None:
            self.unattributed += 1
            return [
                Report(
                    Record(
                        now_ns, "decision", f"slot-{event.session}", key.pid, key.start_ns, event.uid, event.comm,
                        _OPERATION[operation], text, _ACTION[verdict], str(rule), REASONS[event.reason],
                        _flags(event.flags),
                    )
                )
            ]  # fmt: skip
        view = session.generations.get(event.generation) or session.view
        session.decisions += 1
        rule_id = reason = ""
        quiet = False
        if rule < len(view.rules):
            info = view.rules[rule]
            rule_id, reason = info.id, info.reason
            quiet = info.quiet
            if event.reason == Reason.CONTENTS:
                reason = f"{REASONS[Reason.CONTENTS]}: {reason}" if reason else REASONS[Reason.CONTENTS]
        elif verdict or event.reason != Reason.DEFAULT:
            reason = REASONS[event.reason]
            if event.facts & view.over and event.reason == Reason.DEFAULT and verdict >= _DENY:
                reason = _used_up(session, view, event) or reason
        if event.reason >= Reason.PLAN_RULE and view.plan is not None and session.progress is not None:
            said = session.progress.why(view.plan, event.step, event.reason)
            reason = f"{said}: {reason}" if rule < len(view.rules) and reason else said
        judged = verdict
        if verdict == _HOLD:
            if event.held:
                return self._held(event, session, text, rule_id, reason, now_ns)
            verdict = Action.DENY  # it has no object to be asked about, or cannot wait here
            reason = f"{REASONS[Reason.UNHOLDABLE]}: {reason}" if reason else REASONS[Reason.UNHOLDABLE]
        elif event.held:
            self.holds.used(event)
            if event.reason in _NOT_HELD:
                said = self.holds.cannot.pop(event.held, REASONS[event.reason])
                reason = f"{said}: {reason}" if reason and reason != said else said
            elif event.reason == Reason.WOKEN:
                reason = self.holds.cannot.pop(event.held, reason)
            else:
                reason = self.holds.why.get(event.held, reason)
            if not text:  # it was told when it was asked for
                text, rule_id = self.holds.what.get(event.held, (text, rule_id))
        flags = int(event.flags)  # arithmetic on IntFlag costs a microsecond
        if flags & _SCRIPT and not verdict >= _DENY:
            return [ResolveScript(event)]
        record = Record(
            now_ns, "decision", session.id, key.pid, key.start_ns, event.uid, event.comm, _OPERATION[operation],
            text, _ACTION[verdict], rule_id, reason, _flags(flags, quiet) if flags or quiet else "",
        )  # fmt: skip
        if session.names and operation >= _CONNECT and not isinstance(object_, bytes):
            name = session.names.get(object_.packed)
            record = record._replace(detail=BY_NAME + name) if name else record
        if view.observed is not None and verdict < _DENY:
            record = _would(session, view.observed, event, record)
        if view.mark:
            record = _marked(record, view)
        if event.reason >= Reason.PLAN_RULE:
            record = record._replace(flags=",".join(filter(None, [record.flags, BY_PLAN])))
        commands: list[Command] = [Report(record)]
        session.did(record)
        if verdict >= _DENY:
            self._blocked(session, event, record)
            if event.reason >= Reason.PLAN_RULE and view.plan is not None and view.plan.pauses(event.step):
                commands.append(Pause(session, record.reason))
            if event.held and event.reason in _NOT_HELD:
                waiter = waiter_of(event)
                if self.holds.missed(waiter):
                    # it goes on: it must not be frozen any more
                    commands.append(Settle((waiter,), Action.DENY, remember=False))
        # The kernel's own reasons (no memory, unstable path, …), pinned inodes, and what it does not know of ancestors
        # cannot be told from a path.
        if (
            not flags & (_SCRIPT_OR_PINNED | _UNSURE)
            and (event.reason <= Reason.DEFAULT or event.reason in _BY_PART)
            and view.judge is not None
        ):
            if isinstance(object_, bytes) and operation >= _CONNECT:
                return commands
            expected = _judged(view.judge, event)
            # of a program that begins a step the plan's rules are not asked; what is refused says why
            if view.plan is not None and (operation != _EXEC or event.reason in _BY_PART):
                other = _judged(view.plan.part(event.step), event)
                expected = other if other.action > expected.action else expected
            # a name lifts the default, never a more severe rule
            if expected.action != judged and not (rule in view.by_name and rule < expected.rule):
                commands.append(self._mismatch(record, expected.action, expected.rule, view))
        return commands

    # -- what is held -----------------------------------------------------------------------------------------

    def _held(self, event: Decision, session: Session, text: str, rule: str, reason: str, now_ns: int) -> list[Command]:
        word = _OPERATION[event.operation]
        waiter = waiter_of(event)
        start = self._start_of(event.process.pid) if waiter.halted and self._start_of else ""
        heard = self.holds.asked(event, session.id, word, text, rule, reason, now_ns, session.recent(), start)
        if heard.approval is None:
            self.holds.why[event.held] = heard.refused
            return [Settle((waiter,), Action.DENY, remember=False)]
        commands: list[Command] = [Park(waiter)]
        if heard.new:
            commands.append(Report(_asked(heard.approval, event.process)))
            commands.append(Tell("changed" if heard.changed else "asked", heard.approval))
        return commands

    def ask_again(self, approval: Approval, now_ns: int) -> tuple[Approval, list[Command]]:
        """What was shown has been changed: a new question, of the same waiters."""
        new = self.holds.again(approval, now_ns)
        key = new.waiters[0].process if new.waiters else ProcessKey(0, 0)
        return new, [Report(_asked(new, key)), Tell("changed", new)]

    def decide(
        self, approval: Approval, action: Action, how: str, now_ns: int, *, expired: bool = False
    ) -> list[Command]:
        """Somebody answered (or nobody did): `how` is for people."""
        waiters = tuple(self.holds.answer(approval, allowed=action is Action.ALLOW))
        self.holds.over(approval, "expired" if expired else "answered", how, now_ns)
        for waiter in waiters:
            self.holds.why[waiter.held] = how
        record = _asked(approval, waiters[0].process if waiters else ProcessKey(0, 0))
        return [
            Settle(waiters, action),
            Report(record._replace(time_ns=now_ns, verdict=action.word, detail=f"{approval.id} {how}")),
        ]

    def expire(self, now_ns: int) -> list[Command]:
        """What nobody answered in time is denied."""
        seconds = self.holds.timeout_ns / 1e9
        span = f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
        return [
            command
            for approval in self.holds.expired(now_ns)
            for command in (
                Tell("expired", approval),  # first: then its processes still wait, and can be looked at
                *self.decide(approval, Action.DENY, f"nobody answered in {span}", now_ns, expired=True),
            )
        ]

    def gave_up(self, waiter: Waiter, why: str) -> list[Command]:
        """Who waits is asked by others to end (`why`): what it waits for is denied, and nobody is asked any more."""
        if not self.holds.gave_up(waiter):
            return []
        self.holds.why[waiter.held] = why
        return [Settle((waiter,), Action.DENY, remember=False)]

    def _blocked(self, session: Session, event: Decision, record: Record) -> None:
        if "quiet" not in record.flags:  # else expected, not news
            session.count_blocked(record)
        process = session.processes.get(event.process)
        if process is not None:
            process.blocked += 1
        if event.operation == _EXEC:
            first = process is not None and process.execs == 0
            session.last_blocked_exec = (event.process.pid, record.rule, record.reason, first)

    def _mismatch(self, record: Record, action: Action, rule: int, view: View) -> Mismatch:
        self.mismatches += 1
        name = view.rules[rule].id if rule < len(view.rules) else "default"
        message = (
            f"the kernel's verdict `{record.verdict}` ({record.rule or 'default'}) on {record.operation} of "
            f"`{record.object}` differs from the reference `{action.word}` ({name}); please report this"
        )
        return Mismatch(record._replace(kind="mismatch", detail=message), message)

    def script(self, decision: Decision, path: bytes | None, now_ns: int) -> list[Command]:
        """A script's true path was found (None: it is gone, which is judged as its name was given)."""
        session = self._sessions.get(decision.session)
        if session is None:
            return []
        view = session.generations.get(decision.generation) or session.view
        given = decision.object if isinstance(decision.object, bytes) else b""
        target = path if path is not None else given
        action, rule = decision.verdict, decision.rule
        if view.judge is not None and target.startswith(b"/"):
            expected = view.judge.path(Operation.EXEC, target, decision.exe_tags, _facts(view.judge, decision))
            action, rule = expected.action, expected.rule
        info = view.rules[rule] if rule < len(view.rules) else None
        reason = info.reason if info else REASONS[Reason.DEFAULT]
        if not info and action.blocks and decision.facts & view.over:
            reason = _used_up(session, view, replace(decision, object=target)) or reason
        record = Record(
            now_ns, "decision", session.id, decision.process.pid, decision.process.start_ns, decision.uid,
            decision.comm, "exec", target.decode("utf-8", "surrogateescape"), action.word,
            info.id if info else "", reason, _flags(decision.flags),
        )  # fmt: skip
        if view.mark:
            record = _marked(record, view)
        commands: list[Command] = []
        session.did(record)
        if action.blocks:
            self._blocked(session, decision, record)
            commands.append(Kill(decision.process, session.id, f"exec of `{record.object}`"))
        commands.append(Report(record))
        return commands

    def _process(self, event: ProcessEvent, now_ns: int) -> list[Command]:
        session = self._sessions.get(event.session)
        key = event.process
        word = event.what.name.lower().replace("_", "-")
        record = Record(
            now_ns, "process", session.id if session else f"slot-{event.session}", key.pid, key.start_ns,
            event.uid, event.comm, word, detail=f"parent {event.ppid}",
        )  # fmt: skip
        if session is None:
            self.unattributed += 1
            return [Report(record)]
        processes = session.processes
        if event.what is What.EXIT:
            processes.pop(key, None)
            self._remember_exit(key.pid, session.id, now_ns)
            record = record._replace(detail=_ended(event.exit_code))
            commands: list[Command] = [Report(record)]
            if self.holds.ended(key):
                commands.append(Unpark(key))
            if not processes:
                # not yet the end: a child whose record was lost would run on unfenced
                commands.append(Recount())
            return commands
        if event.what is What.FORK_LOST:
            message = f"a child of process {event.ppid} could not be tracked; it was not let go"
            return [Mismatch(record._replace(kind="mismatch", detail=message), message)]
        known = processes.get(key)
        if known is None:
            known = processes[key] = Process(key, event.ppid, event.uid, event.comm)
        known.comm, known.uid = event.comm, event.uid
        known.execs += event.what is What.EXEC
        return [Report(record)]

    def _stepped(self, event: StepEvent, now_ns: int) -> list[Command]:
        session = self._sessions.get(event.session)
        if session is None:
            self.unattributed += 1
            return []
        view = session.generations.get(event.generation) or session.view
        name = view.plan.name(event.step) if view.plan is not None else str(event.step)
        word, detail = "", ""
        if session.progress is not None:
            word = session.progress.stepped(event)
        if event.reason is not None and view.plan is not None and session.progress is not None:
            detail = session.progress.why(view.plan, event.step, event.reason)
        elif event.what is Stepping.FAILED:
            detail = f"status {event.status}"
        key = event.process
        process = session.processes.get(key)
        record = Record(
            now_ns, "step", session.id, key.pid, key.start_ns, session.uid, process.comm if process else "",
            word or event.what.name.lower(), name, "deny" if event.what is Stepping.REFUSED else "", detail=detail,
        )  # fmt: skip
        if event.what is Stepping.REFUSED:
            session.count_blocked(record._replace(reason=detail))
        if event.what is Stepping.REFUSED and view.plan is not None and view.plan.pauses(event.step):
            return [Report(record), Pause(session, detail)]
        return [Report(record)]

    def _remember_exit(self, pid: int, session_id: str, now_ns: int) -> None:
        self._exits.pop(pid, None)
        self._exits[pid] = (session_id, now_ns)
        if len(self._exits) > _RECENT_EXITS:
            del self._exits[next(iter(self._exits))]

    def _end(self, session: Session, now_ns: int) -> list[Command]:
        self._sessions.pop(session.slot, None)
        session.ended_ns = now_ns
        return [
            Report(self._session_record(session, now_ns, "ended")),
            EndSession(session),
        ]

    @staticmethod
    def _session_record(session: Session, now_ns: int, how: str) -> Record:
        return Record(
            now_ns, "session", session.id, uid=session.uid, operation=how,
            detail=f"policy {session.policy}, {session.decisions} decisions, {session.blocked} blocked",
        )  # fmt: skip


def _asked(approval: Approval, key: ProcessKey) -> Record:
    detail = f"{approval.id} changed while held" if approval.changed else approval.id
    return Record(
        approval.asked_ns, "approval", approval.session, key.pid, key.start_ns, approval.uid, approval.comm,
        approval.operation, approval.object, "hold", approval.rule, approval.reason, detail=detail,
    )  # fmt: skip


def _judged(judge: Judge, event: Decision) -> Judgement:
    """What a policy, or a plan, says of an event's path or address."""
    object_ = event.object
    if isinstance(object_, bytes):
        return judge.path(event.operation, object_, event.exe_tags, event.facts)
    return judge.net(event.operation, object_.packed, object_.port, event.exe_tags, event.facts)


def _facts(judge: Judge, event: Decision) -> int:
    """With those that the kernel did not know."""
    return event.facts | judge.unsure if event.flags & _UNSURE else event.facts


def _expected(judge: Judge, event: Decision) -> Judgement:
    """What the policy says of an event's object."""
    object_, operation, facts = event.object, event.operation, _facts(judge, event)
    if operation.is_bare:
        return judge.bare(operation, event.exe_tags, facts)
    if isinstance(object_, bytes):
        return judge.path(operation, object_, event.exe_tags, facts)
    return judge.net(operation, object_.packed, object_.port, event.exe_tags, facts)


def _used_up(session: Session, view: View, event: Decision) -> str:
    """Whose rate is used up, if the default blocks what that rule would let through; empty if that is not why.

    The kernel says which rates are, for all of a policy: which of them counts here, its rules say.
    """
    if view.judge is None:
        return ""
    before = replace(event, facts=event.facts & ~view.over)
    rule, object_ = _expected(view.judge, before).rule, event.object
    if rule >= len(view.rules) and not isinstance(object_, bytes) and (name := session.names.get(object_.packed)):
        facts = _facts(view.judge, before)
        rule = view.judge.named(event.operation, name, object_.port, event.exe_tags, facts).rule
    return f"rule `{view.rules[rule].id}`: {view.rates[rule]}{USED_UP}" if rule in view.rates else ""


def _would(session: Session, observed: View, event: Decision, record: Record) -> Record:
    """The record of something allowed; with what blocks it as soon as what is observed is enforced."""
    assert observed.judge is not None
    expected = _expected(observed.judge, event)
    if not expected.action.blocks:
        return record
    session.observed += 1
    info = observed.rules[expected.rule] if expected.rule < len(observed.rules) else None
    flags = [*filter(None, [record.flags]), WOULD + expected.action.word]
    if info and info.quiet and "quiet" not in record.flags:
        flags.append("quiet")
    reason = info.reason if info else _used_up(session, observed, event) or BY_DEFAULT
    return record._replace(rule=info.id if info else "", reason=reason, flags=",".join(flags))


def _marked(record: Record, view: View) -> Record:
    return record._replace(flags=",".join(filter(None, [record.flags, view.mark])))


def _ended(status: int) -> str:
    """What a process ended with, from its status as in wait(2)."""
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"status {os.WEXITSTATUS(status)}"


def _flags(flags: int, quiet: bool = False) -> str:
    names = [f.name.lower() for f in Flag if flags & f and f.name]
    return ",".join([*names, "quiet"] if quiet else names)
