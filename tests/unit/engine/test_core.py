# SPDX-License-Identifier: Apache-2.0
"""The engine: what it says about each event."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from agentmon.engine import (
    Command,
    EndSession,
    Engine,
    Kill,
    Mismatch,
    Process,
    Recount,
    Report,
    ResolveScript,
    Session,
    Settle,
    Tell,
    View,
)
from agentmon.model.events import Address, Decision, Flag, ProcessEvent, ProcessKey, What
from agentmon.model.operations import Action, Operation, Reason, Tier
from agentmon.model.tables import NO_RULE, RuleInfo

KEY = ProcessKey(100, 5_000)
RULES = (RuleInfo("secret", "base", Action.DENY, "base.yaml:3", "keys stay private"),)


@dataclass(frozen=True)
class Judgement:
    action: Action
    rule: int = NO_RULE


class Judge:
    """Denies whatever has `secret` in its name, and port 9."""

    def path(self, operation: Operation, path: bytes, exe_tags: int = 0, facts: int = 0) -> Judgement:
        return Judgement(Action.DENY, 0) if b"secret" in path else Judgement(Action.ALLOW)

    def net(self, operation: Operation, packed: bytes, port: int, exe_tags: int = 0, facts: int = 0) -> Judgement:
        return Judgement(Action.DENY, 0) if port == 9 else Judgement(Action.ALLOW)

    def bare(self, operation: Operation, exe_tags: int = 0, facts: int = 0) -> Judgement:
        return Judgement(Action.DENY)


@pytest.fixture
def session() -> Session:
    return Session("s-0001", 3, "test", 1000, 1, View(RULES, Judge()))


@pytest.fixture
def engine(session: Session) -> Engine:
    engine = Engine()
    engine.open(session)
    engine.enrolled(3, [Process(KEY, 1, 1000, "agent")])
    return engine


def decision(**changes: object) -> Decision:
    base = Decision(
        1, KEY, 100, 1, 1000, "agent", 3, 1, Operation.READ, Action.DENY, Tier.LSM, Flag(0), 0, Reason.RULE, 0,
        (1, 2, 3), b"/secret",
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def process(what: What, key: ProcessKey = KEY, **changes: object) -> ProcessEvent:
    return replace(ProcessEvent(1, key, what, 3, 1, 1, 1000, 0, "agent"), **changes)  # type: ignore[arg-type]


def test_a_denial_is_reported_with_rule_and_reason(engine: Engine, session: Session) -> None:
    (command,) = engine.handle(decision(), 7)
    assert isinstance(command, Report)
    record = command.record
    assert (record.session, record.operation, record.object, record.verdict) == ("s-0001", "read", "/secret", "deny")
    assert (record.rule, record.reason, record.time_ns) == ("secret", "keys stay private", 7)
    assert session.blocked == 1
    assert session.blocked_kinds == {("read", "/secret", "secret", "keys stay private"): 1}


def test_what_is_only_observed_is_told_and_not_counted_as_blocked(engine: Engine, session: Session) -> None:
    class Open(Judge):
        def path(self, operation: Operation, path: bytes, exe_tags: int = 0, facts: int = 0) -> Judgement:
            return Judgement(Action.ALLOW)

    session.view = View((), Open(), observed=View(RULES, Judge()))
    (command,) = engine.handle(decision(verdict=Action.ALLOW, rule=NO_RULE, reason=Reason.DEFAULT), 7)
    assert isinstance(command, Report)
    record = command.record
    assert (record.verdict, record.would, record.rule, record.reason) == (
        "allow",
        "deny",
        "secret",
        "keys stay private",
    )
    assert (session.blocked, session.observed, record.blocked) == (0, 1, False)
    (command,) = engine.handle(decision(verdict=Action.ALLOW, rule=NO_RULE, reason=Reason.DEFAULT, object=b"/else"), 7)
    assert isinstance(command, Report)
    assert (command.record.would, session.observed) == ("", 1)


def test_a_name_lifts_the_default_and_nothing_more_severe(engine: Engine, session: Session) -> None:
    here = Address(2, bytes(16), 80)
    rules = (*RULES, RuleInfo("api", "", Action.ALLOW, "x.yaml:1"))
    session.name_addresses("api.example.com", [here.packed])
    allowed = decision(operation=Operation.CONNECT, object=here, verdict=Action.ALLOW, rule=1)

    class Closed(Judge):
        def net(self, operation: Operation, packed: bytes, port: int, exe_tags: int = 0, facts: int = 0) -> Judgement:
            return Judgement(Action.DENY)

    session.view = View(rules, Closed(), by_name=frozenset([1]))
    (command,) = engine.handle(allowed, 7)
    assert isinstance(command, Report)
    assert (command.record.rule, command.record.detail) == ("api", "name api.example.com")
    session.view = View(rules, Closed())
    assert [type(c) for c in engine.handle(allowed, 7)] == [Report, Mismatch]
    session.view = View(rules, Judge(), by_name=frozenset([1]))
    denied = replace(allowed, object=Address(2, bytes(16), 9))
    assert [type(c) for c in engine.handle(denied, 7)] == [Report, Mismatch]


def test_quiet_rules_are_recorded_but_are_no_news(engine: Engine, session: Session) -> None:
    session.view = View((replace(RULES[0], quiet=True),), Judge())
    (command,) = engine.handle(decision(), 7)
    assert isinstance(command, Report)
    assert command.record.flags == "quiet"
    assert session.blocked == 0


@pytest.mark.parametrize(
    "event",
    [
        decision(verdict=Action.ALLOW, rule=NO_RULE, reason=Reason.DEFAULT),
        decision(verdict=Action.KILL),
        decision(object=b"/harmless"),
        decision(operation=Operation.CONNECT, object=Address(2, bytes(16), 80)),
        decision(operation=Operation.CONNECT, object=Address(2, bytes(16), 9), verdict=Action.ALLOW, rule=NO_RULE),
    ],
)
def test_a_verdict_that_differs_from_the_reference_is_loud(engine: Engine, event: Decision) -> None:
    commands = engine.handle(event, 7)
    assert [type(command) for command in commands] == [Report, Mismatch]
    assert engine.mismatches == 1


@pytest.mark.parametrize(
    "event",
    [
        decision(object=b"/harmless", flags=Flag.PINNED),
        decision(object=b"/harmless", flags=Flag.UNSURE),
        decision(object=b"/harmless", rule=NO_RULE, reason=Reason.PATH_TOO_LONG),
        decision(object=b"/harmless", rule=NO_RULE, reason=Reason.NO_STATE),
    ],
)
def test_what_a_path_cannot_tell_is_no_mismatch(engine: Engine, event: Decision) -> None:
    assert [type(command) for command in engine.handle(event, 7)] == [Report]


def test_a_hold_that_cannot_wait_is_denied_and_no_mismatch(engine: Engine, session: Session) -> None:
    class Asks(Judge):
        def path(self, operation: Operation, path: bytes, exe_tags: int = 0, facts: int = 0) -> Judgement:
            return Judgement(Action.HOLD, 0)

    session.view = View(RULES, Asks())
    commands = engine.handle(decision(verdict=Action.HOLD), 7)
    assert [type(command) for command in commands] == [Report]
    assert isinstance(commands[0], Report)
    assert commands[0].record.verdict == "deny"


def test_a_generation_is_judged_by_its_own_policy(engine: Engine, session: Session) -> None:
    engine.new_generation(3, 1, View(RULES, Judge()))
    engine.new_generation(3, 2, View((), None))
    (command,) = engine.handle(decision(generation=1), 7)
    assert isinstance(command, Report)
    assert command.record.rule == "secret"


def test_a_script_is_resolved_and_killed_if_denied(engine: Engine) -> None:
    event = decision(operation=Operation.EXEC, verdict=Action.ALLOW, flags=Flag.SCRIPT, object=b"x.sh", rule=NO_RULE)
    assert engine.handle(event, 7) == [ResolveScript(event)]
    kill, report = engine.script(event, b"/home/secret/x.sh", 8)
    assert isinstance(kill, Kill)
    assert kill.process == KEY
    assert isinstance(report, Report)
    assert (report.record.object, report.record.verdict, report.record.rule) == ("/home/secret/x.sh", "deny", "secret")
    (report,) = engine.script(event, b"/home/x.sh", 8)
    assert isinstance(report, Report)
    assert report.record.verdict == "allow"


def test_the_session_ends_with_its_last_process(engine: Engine, session: Session) -> None:
    child = ProcessKey(101, 6_000)
    engine.handle(process(What.FORK, child), 7)
    engine.handle(process(What.EXIT), 8)
    assert list(session.processes) == [child]
    *_, ask = engine.handle(process(What.EXIT, child), 9)
    assert ask == Recount()
    *_, end = engine.reconcile({}, 9)
    assert end == EndSession(session)
    assert session.ended_ns == 9
    assert not engine.sessions


@pytest.mark.parametrize(("status", "said"), [(0, "status 0"), (3 << 8, "status 3"), (9, "signal 9")])
def test_what_a_process_ended_with(status: int, said: str, engine: Engine, session: Session) -> None:
    report, *_ = engine.handle(process(What.EXIT, exit_code=status), 8)
    assert isinstance(report, Report)
    assert report.record.detail == said


def test_a_pid_reused_is_another_process(engine: Engine, session: Session) -> None:
    engine.handle(process(What.EXIT, ProcessKey(KEY.pid, KEY.start_ns + 1)), 8)
    assert list(session.processes) == [KEY]


def test_ended_processes_are_remembered_for_a_moment(engine: Engine) -> None:
    assert engine.was_enrolled(KEY.pid, 8) == "s-0001"
    engine.handle(process(What.EXIT), 8)
    assert engine.was_enrolled(KEY.pid, 1_000_000_000) == "s-0001"
    assert engine.was_enrolled(KEY.pid, 60_000_000_000) is None
    assert engine.was_enrolled(4, 8) is None


def test_lost_ends_are_found_again(engine: Engine, session: Session) -> None:
    other = ProcessKey(200, 1)
    assert engine.reconcile({KEY: 3, other: 3}, 7) == []
    assert set(session.processes) == {KEY, other}
    *_, end = engine.reconcile({}, 8)
    assert end == EndSession(session)


def test_a_child_whose_record_was_lost_keeps_the_session(engine: Engine, session: Session) -> None:
    child = ProcessKey(101, 6_000)
    engine.handle(process(What.EXIT), 8)
    assert engine.reconcile({}, 9, newborn={session.slot}) == []
    assert engine.reconcile({child: session.slot}, 9) == []
    assert list(engine.sessions) == [session]


def test_events_of_no_session_are_still_reported(engine: Engine) -> None:
    (command,) = engine.handle(decision(session=77), 7)
    assert isinstance(command, Report)
    assert command.record.session == "slot-77"
    assert engine.unattributed == 1


def test_a_lost_child_is_loud(engine: Engine) -> None:
    (command,) = engine.handle(process(What.FORK_LOST, ppid=100), 7)
    assert isinstance(command, Mismatch)


def test_odd_bytes_survive(engine: Engine) -> None:
    (command,) = engine.handle(decision(object=b"/secret\xff\n"), 7)
    assert isinstance(command, Report)
    assert command.record.object.encode("utf-8", "surrogateescape") == b"/secret\xff\n"


def test_the_first_exec_that_is_denied_is_known(engine: Engine, session: Session) -> None:
    denied = decision(operation=Operation.EXEC)
    engine.handle(denied, 7)
    assert session.last_blocked_exec == (100, "secret", "keys stay private", True)
    engine.handle(process(What.EXEC), 8)
    engine.handle(denied, 9)
    assert session.last_blocked_exec == (100, "secret", "keys stay private", False)


def test_a_program_that_was_stopped_and_is_ended_is_told_by_what_was_asked(engine: Engine, session: Session) -> None:
    stopped = decision(verdict=Action.HOLD, operation=Operation.EXEC, tier=Tier.REACT, held=50, same=5)
    engine.handle(stopped, 7)
    ended = replace(stopped, verdict=Action.DENY, rule=NO_RULE, reason=Reason.REFUSED, object=b"", flags=Flag.KILLED)
    approval = engine.holds.open[0]
    engine.decide(approval, Action.DENY, "denied by root: not today", 8)
    (command,) = engine.handle(ended, 9)
    assert isinstance(command, Report)
    assert (command.record.object, command.record.rule) == ("/secret", "secret")
    assert command.record.reason == "denied by root: not today"
    (woken,) = engine.handle(replace(ended, reason=Reason.WOKEN), 10)
    assert isinstance(woken, Report)
    assert "made to go on" in woken.record.reason
    assert session.blocked == 2


def test_people_are_told_of_what_is_new_changed_or_expired_and_of_nothing_twice(engine: Engine) -> None:
    def told(*commands: Command) -> list[str]:
        return [f"{c.event} {c.approval.id}" for c in commands if isinstance(c, Tell)]

    held = decision(verdict=Action.HOLD, held=50, same=5)
    assert told(*engine.handle(held, 7)) == ["asked a-1"]
    assert told(*engine.handle(replace(held, tid=101), 8)) == []  # another thread, the same question
    assert told(*engine.handle(replace(held, held=51), 9)) == ["changed a-2"]
    late = 10 + engine.holds.timeout_ns
    assert told(*engine.expire(late)) == ["expired a-1", "expired a-2"]
    assert told(*engine.expire(late)) == []


def test_what_the_kernel_denied_meanwhile_is_not_frozen_and_nobody_is_asked(engine: Engine, session: Session) -> None:
    session.view = View((RuleInfo("out", "p", Action.HOLD, "p.yaml:3", "ask first"),), None)
    held = decision(verdict=Action.HOLD, held=50, same=5, rule=0, tid=101)
    other = replace(held, tid=102)
    engine.handle(held, 10)
    engine.handle(other, 10)
    (approval,) = engine.holds.open
    late = replace(held, verdict=Action.DENY, reason=Reason.NOT_PARKED)
    commands = engine.handle(late, 11)
    assert [type(command).__name__ for command in commands] == ["Report", "Settle"]
    assert engine.holds.open == [approval]  # the other thread waits
    commands = engine.handle(replace(late, tid=102), 12)
    assert engine.holds.open == []
    report, settle = commands
    assert isinstance(report, Report)
    assert report.record.reason == "it was to be held, and the daemon did not come to freeze it: ask first"
    assert isinstance(settle, Settle)
    assert settle.action is Action.DENY
    outcome = engine.holds.outcome(approval.id)
    assert outcome is not None
    assert outcome.how == "missed"
    assert [type(command).__name__ for command in engine.handle(late, 13)] == ["Report"]
