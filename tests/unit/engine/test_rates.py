# SPDX-License-Identifier: Apache-2.0
"""What is blocked because a rate is used up says whose, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentmon.cli import render
from agentmon.daemon.policies import PolicyBook, Prepared, Source
from agentmon.engine import Engine, Process, Report, Session
from agentmon.model.conditions import Over
from agentmon.model.events import Address, Decision, Flag, ProcessKey
from agentmon.model.operations import Action, Operation, Reason, Tier
from agentmon.model.records import BY_DEFAULT, Record
from agentmon.model.tables import NO_RULE
from agentmon.policy.recorded import sessions

KEY = ProcessKey(100, 5_000)
POLICY = """\
policy: p
default: {exec: allow, read: allow, write: deny, create: deny, connect: deny, unix: deny}
rules:
  - {id: some, on: write, paths: [/srv/x, /srv/deny], when: {rate: 10/min}, action: allow}
  - {id: others, on: write, paths: [/srv/x, /srv/y], when: {rate: 2/h}, action: allow}
  - {id: never, on: write, paths: [/srv/deny], action: deny, reason: no}
  - {id: push, on: connect, cidrs: [192.0.2.9], when: {rate: 1/s}, action: audit}
  - {id: api, on: connect, hosts: ["api.example.com:443"], when: {rate: 3/day}, action: allow}
  - {id: tool, on: exec, paths: [/srv/tool], when: {rate: 5/s}, action: allow}
"""
HERE = Address(2, bytes(10) + b"\xff\xff\xcb\x00\x71\x07", 443)  # 203.0.113.7
PUSH = Address(2, bytes(10) + b"\xff\xff\xc0\x00\x02\x09", 22)


def prepared(text: str = POLICY) -> Prepared:
    return PolicyBook().prepare(Source("p.yaml", text), workspace="/w", home="/h", user="u")


def facts(policy: Prepared, *over: str) -> int:
    """That the rates of these rules are used up."""
    return sum(1 << i for i, c in enumerate(policy.compiled.conditions) if isinstance(c, Over) and c.rule in over)


def rule(policy: Prepared, name: str) -> int:
    return next(i for i, info in enumerate(policy.compiled.rules) if info.id == name)


def decided(policy: Prepared, object_: bytes | Address, over: int, **changes: object) -> Decision:
    operation = Operation.WRITE if isinstance(object_, bytes) else Operation.CONNECT
    base = Decision(
        1, KEY, 100, 1, 1000, "agent", 3, 1, operation, Action.DENY, Tier.LSM, Flag(0), NO_RULE, Reason.DEFAULT, 0,
        (1, 2, 3), object_, over,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def record(policy: Prepared, event: Decision) -> Record:
    """The record of it, and no complaint."""
    engine = Engine()
    session = Session("s-0001", 3, "p", 1000, 1, policy.view)
    session.name_addresses("api.example.com", [HERE.packed])
    engine.open(session)
    engine.enrolled(3, [Process(KEY, 1, 1000, "agent")])
    (command,) = engine.handle(event, 7)
    assert isinstance(command, Report)
    if event.verdict.blocks:
        assert [kind[3] for kind in session.blocked_kinds] == [command.record.reason]  # what `run` sums up
    return command.record


@pytest.mark.parametrize(
    ("object_", "over", "reason"),
    [
        (b"/srv/x", ("some", "others"), "rule `some`: 10/min used up"),
        (b"/srv/y", ("some", "others"), "rule `others`: 2/h used up"),
        (b"/srv/y", ("others",), "rule `others`: 2/h used up"),
        (b"/srv/z", ("some", "others"), BY_DEFAULT),  # used up, but not of this file
        (b"/srv/z", (), BY_DEFAULT),
        (PUSH, ("push", "some"), "rule `push`: 1/s used up"),
        (HERE, ("push", "api"), "rule `api`: 3/day used up"),  # which the policy knows by its name only
        (replace(HERE, port=80), ("api",), BY_DEFAULT),
    ],
)
def test_the_reason_names_the_rule(object_: bytes | Address, over: tuple[str, ...], reason: str) -> None:
    policy = prepared()
    found = record(policy, decided(policy, object_, facts(policy, *over)))
    assert (found.rule, found.reason) == ("", reason)
    assert found.as_json()["reason"] == reason
    assert f"default: {reason}" in render.record_line(found).plain


def test_a_rule_that_blocks_gives_its_own_reason() -> None:
    policy = prepared()
    event = decided(policy, b"/srv/deny", facts(policy, "some"), rule=rule(policy, "never"), reason=Reason.RULE)
    assert record(policy, event).reason == "no"


def test_what_is_let_through_says_nothing_of_it() -> None:
    policy = prepared()
    event = decided(
        policy, b"/srv/x", facts(policy, "some"), verdict=Action.ALLOW, rule=rule(policy, "others"), reason=Reason.RULE
    )
    assert (record(policy, event).rule, record(policy, event).reason) == ("others", "")


def test_what_is_only_observed_says_it_too() -> None:
    policy = prepared("mode: observe\n" + POLICY)
    event = decided(policy, b"/srv/y", facts(policy, "others"), verdict=Action.ALLOW)
    found = record(policy, event)
    assert (found.would, found.reason) == ("deny", "rule `others`: 2/h used up")


def test_a_script_judged_by_its_true_path_says_it() -> None:
    policy = prepared(POLICY.replace("exec: allow", "exec: deny"))
    engine = Engine()
    engine.open(Session("s-0001", 3, "p", 1000, 1, policy.view))
    engine.enrolled(3, [Process(KEY, 1, 1000, "agent")])
    event = decided(policy, b"./tool", facts(policy, "tool"), operation=Operation.EXEC, flags=Flag.SCRIPT)
    commands = engine.script(replace(event, verdict=Action.ALLOW), b"/srv/tool", 7)
    reports = [c.record.reason for c in commands if isinstance(c, Report)]
    assert reports == ["rule `tool`: 5/s used up"]


def test_it_is_judged_again_as_any_other() -> None:
    """`replay` leaves out what was not decided by the object's name; this was."""
    policy = prepared()
    found = record(policy, decided(policy, b"/srv/y", facts(policy, "others")))
    (action,) = sessions([found])["s-0001"].actions
    assert action.by_name
