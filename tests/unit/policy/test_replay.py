# SPDX-License-Identifier: Apache-2.0
"""What another policy would have said."""

from __future__ import annotations

from agentmon.policy.bind import bind_policy
from agentmon.policy.load import load_text
from agentmon.policy.recorded import sessions
from agentmon.policy.replay import Change, Outcome, Replay, summary
from agentmon.policy.rules import Variables
from tests.support.recorded import Log

POLICY = """
policy: candidate
default: {exec: allow, read: allow, write: deny, create: deny, connect: deny}
rules:
  - {id: workspace, on: [write, create], paths: ["{workspace}/**"], action: allow}
  - {id: secret, on: read, paths: ["~/secret"], action: deny, reason: it is secret}
  - {id: seen, on: read, paths: [/seen], action: audit}
  - {id: curl, on: connect, cidrs: ["10.0.0.0/8:443"], exe: [/usr/bin/curl], action: allow}
  - {id: not-cat, on: read, paths: [/dump], except: {exe: [/usr/bin/cat]}, action: deny}
  - {id: anyway, on: read, paths: [/dump/core], action: deny}
"""


def replay(log: Log) -> dict[str, Outcome]:
    session = sessions(log.records)["s-1"]
    variables = Variables.of(workspace=session.workspace, home=session.home, user=session.user)
    outcomes = Replay(bind_policy(load_text(POLICY, "candidate.yaml"), variables)).session(session)
    return {o.action.object: o for o in outcomes}


def test_each_kind_of_change() -> None:
    log = Log()
    log.did("write", "/etc/x", "allow", "loose")
    log.did("write", "/srv/w/a", "deny")
    log.did("read", "/seen")
    log.did("read", "/home/me/secret")
    log.did("read", "/etc/passwd")
    outcomes = replay(log)
    assert {path: o.change for path, o in outcomes.items()} == {
        "/etc/x": Change.BLOCKED, "/home/me/secret": Change.BLOCKED, "/srv/w/a": Change.ALLOWED,
        "/seen": Change.OTHER, "/etc/passwd": Change.SAME,
    }  # fmt: skip
    assert [o.change for o in outcomes.values()][:2] == [Change.BLOCKED] * 2  # what matters most comes first
    secret = outcomes["/home/me/secret"]
    assert (secret.rule, secret.why, secret.source) == ("secret", "it is secret", "candidate.yaml:6")
    assert summary(outcomes.values()) == {
        "newly blocked": 2, "no longer blocked": 1, "otherwise different": 1, "unknown": 0, "unchanged": 1,
    }  # fmt: skip


def test_an_address_that_was_asked_for_by_name_is_judged_by_it_too() -> None:
    log = Log()
    log.did("connect", "8.8.8.8:443", "allow", "api", detail="name api.example.com")
    log.did("connect", "9.9.9.9:443", "allow", "api", detail="name other.example.com")
    rule = "{id: one, on: connect, hosts: api.example.com, action: allow}"
    policy = f"policy: x\ndefault: {{connect: deny}}\nrules: [{rule}]\n"
    variables = Variables.of(workspace="/w", home="/h", user="u")
    outcomes = Replay(bind_policy(load_text(policy, "x.yaml"), variables)).session(sessions(log.records)["s-1"])
    assert {o.action.object: (o.change, o.rule) for o in outcomes} == {
        "9.9.9.9:443": (Change.BLOCKED, ""), "8.8.8.8:443": (Change.SAME, "one"),
    }  # fmt: skip


def test_an_operation_without_an_object() -> None:
    log = Log()
    log.did("ptrace", "", "allow", "loose")
    log.did("chroot", "/not/an/object", "deny")
    outcomes = replay(log)
    assert (outcomes[""].action.operation.word, outcomes[""].change) == ("ptrace", Change.BLOCKED)
    assert list(outcomes) == [""]
    assert sessions(log.records)["s-1"].unjudged == {"chroot": 1}


def test_rules_for_programs_need_the_program() -> None:
    log = Log()
    log.did("connect", "10.0.0.1:443", "deny")
    log.did("connect", "10.0.0.1:80", "deny")
    log.did("read", "/dump")
    log.did("read", "/dump/core", "deny")
    before = replay(log)
    assert before["10.0.0.1:443"].change is Change.UNKNOWN
    assert before["10.0.0.1:80"].change is Change.SAME  # no rule of it matches, whatever runs
    assert before["/dump"].change is Change.UNKNOWN
    assert before["/dump/core"].change is Change.SAME
    log = Log()
    log.runs("/usr/bin/curl")
    log.did("connect", "10.0.0.1:443", "deny")
    log.runs("/usr/bin/cat")
    log.did("read", "/dump")
    after = replay(log)
    assert after["10.0.0.1:443"].change is Change.ALLOWED
    assert after["/dump"].change is Change.SAME


def test_what_was_not_judged_by_name_stays_unknown() -> None:
    log = Log()
    log.did("read", "/srv/w/hard-link", "deny", "keys", flags="pinned")
    assert replay(log)["/srv/w/hard-link"].change is Change.UNKNOWN
