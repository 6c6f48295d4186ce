# SPDX-License-Identifier: Apache-2.0
"""What an agent is told that it may do instead."""

from __future__ import annotations

import pytest

from agentmon.model.operations import Operation
from agentmon.policy.bind import BoundPolicy, bind_policy
from agentmon.policy.instead import instead
from agentmon.policy.load import load, load_text
from agentmon.policy.rules import Variables

HEAD = "policy: p\ndefault: {exec: allow, read: allow, write: deny, create: deny, connect: deny}\nrules:\n"
VARIABLES = Variables.of(workspace="/home/u/w", home="/home/u", user="u")


def bound(rules: str) -> BoundPolicy:
    return bind_policy(load_text(HEAD + rules, "p.yaml"), VARIABLES)


def test_a_denied_write_is_told_where_it_may_write() -> None:
    policy = bound(
        "  - {id: work, on: [write, create], paths: ['{workspace}/**', ~/notes], action: allow, reason: its work}\n"
        "  - {id: log, on: write, paths: [/var/log/a], except: {exe: [/bin/b]}, action: allow}\n"
        "  - {id: history, on: write, paths: [/h], action: allow, quiet: true}\n"
        "  - {id: seen, on: write, paths: [/seen], action: audit}\n"
    )
    assert instead(policy, Operation.WRITE) == ["write /home/u/w/**, /home/u/notes: its work", "write /var/log/a"]
    assert instead(policy, Operation.CREATE) == ["create /home/u/w/**, /home/u/notes: its work"]
    assert instead(policy, Operation.DELETE)[0] == "delete /home/u/w/**, /home/u/notes: its work"


def test_a_denied_connection_is_told_the_hosts() -> None:
    policy = bound(
        "  - {id: model, on: connect, hosts: ['api.example.com:443'], action: allow, reason: the model}\n"
        "  - {id: web, on: connect, hosts: [a.example, '*.b.example'], ports: [80, 8000-8010], action: allow}\n"
        "  - {id: net, on: connect, cidrs: [192.0.2.0/24], ports: 5432, action: allow}\n"
    )
    assert instead(policy, Operation.CONNECT) == [
        "connect api.example.com:443: the model",
        "connect a.example at port 80, 8000-8010, *.b.example at port 80, 8000-8010",
        "connect 192.0.2.0/24 at port 5432",
    ]


def test_nothing_is_said_to_be_nothing() -> None:
    assert instead(bound("  []\n"), Operation.WRITE) == ["write: nothing"]


def test_where_all_but_a_rule_is_allowed_the_holes_of_that_rule_are_told() -> None:
    policy = bound(
        "  - {id: keys, on: read, paths: ['**/*.key'], except: {paths: ['{workspace}/test.key'], exe: [/bin/b]},"
        " action: deny}\n"
        "  - {id: push, on: exec, exe: ['**/git'], except: {requires: [tests-passed]}, action: deny}\n"
        "  - {id: tests, on: exec, exe: ['**/pytest'], marks: [tests-passed], action: allow}\n"
        "  - {id: all, on: connect, action: deny}\n"
    )
    assert instead(policy, Operation.READ, "keys") == [
        "what rule keys excepts: /home/u/w/test.key",
        "what rule keys excepts: done by /bin/b",
        "read: whatever no rule denies",
    ]
    assert instead(policy, Operation.EXEC, "push")[0] == "what rule push excepts: requires tests-passed"
    assert instead(policy, Operation.CONNECT, "all") == ["connect: nothing"]


def test_what_needs_a_condition_says_so_and_comes_last() -> None:
    policy = bound(
        "  - {id: git, on: write, paths: [/srv/g], exe: ['**/git'], action: allow}\n"
        "  - {id: high, on: write, paths: [/srv/h], when: {requires: [tests-passed]}, action: allow}\n"
        "  - {id: m, on: exec, exe: ['**/pytest'], marks: [tests-passed], action: allow}\n"
        "  - {id: any, on: write, paths: [/srv/a], action: allow}\n"
    )
    assert instead(policy, Operation.WRITE) == [
        "write /srv/a",
        "write /srv/g, by **/git",
        "write /srv/h, needs requires tests-passed",
    ]


def test_of_many_rules_and_patterns_a_few_are_told() -> None:
    names = ", ".join(f"/p{i}" for i in range(9))
    rules = "".join(f"  - {{id: r{i}, on: write, paths: [{names}], action: allow}}\n" for i in range(9))
    assert instead(bound(rules), Operation.WRITE) == [
        *["write /p0, /p1, /p2, /p3, and 5 more"] * 3,
        "and what 6 more rules allow",
    ]


@pytest.mark.parametrize("operation", Operation)
def test_the_shipped_pack_gives_a_few_lines_for_every_operation(operation: Operation) -> None:
    policy = bind_policy(load("coding-agent"), VARIABLES)
    for rule in ("", *(rule.rule.id for rule in policy.rules if operation in rule.operations)):
        assert 1 <= len(instead(policy, operation, rule)) <= 7


def test_the_workspace_comes_first() -> None:
    policy = bind_policy(load("coding-agent"), VARIABLES)
    first, *others = instead(policy, Operation.WRITE)
    assert first == "write /home/u/w/**: the agent's workspace"
    assert not any("/dev/" in line for line in others)
