# SPDX-License-Identifier: Apache-2.0
"""`write` says something about delete, rename, link and attr too; each can be told apart."""

from __future__ import annotations

import pytest

from agentmon.model.operations import PART_OF_WRITE, Action, Operation
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.load import load_text
from agentmon.policy.rules import Variables
from agentmon.policy.walk import run_automaton

VARIABLES = Variables.of(workspace="/w", home="/h", user="u")


def verdicts(text: str, path: bytes) -> dict[Operation, Action]:
    """Of each operation on the path; evaluator and automaton agree."""
    policy = load_text(text, "p.yaml")
    evaluator, compiled = Evaluator(policy, VARIABLES), compile_policy(policy, VARIABLES)
    found = {}
    for operation in (Operation.READ, Operation.WRITE, *PART_OF_WRITE):
        found[operation] = evaluator.path(operation, path).action
        assert run_automaton(compiled, operation, path).action == found[operation]
    return found


@pytest.mark.parametrize("action", ["allow", "deny"])
def test_a_default_for_write_is_one_for_all_changes(action: str) -> None:
    found = verdicts(f"policy: p\ndefault: {{read: allow, write: {action}}}", b"/x")
    assert {found[o].word for o in (Operation.WRITE, *PART_OF_WRITE)} == {action}


def test_a_default_of_its_own_counts_more() -> None:
    found = verdicts("policy: p\ndefault: {read: allow, write: allow, attr: deny}", b"/x")
    assert found[Operation.ATTR] is Action.DENY
    assert found[Operation.DELETE] is Action.ALLOW


def test_a_rule_for_write_is_one_for_all_changes() -> None:
    text = "policy: p\ndefault: {write: deny}\nrules:\n  - {id: r, on: write, paths: /w/**, action: allow}"
    found = verdicts(text, b"/w/x")
    assert {found[o] for o in (Operation.WRITE, *PART_OF_WRITE)} == {Action.ALLOW}


def test_a_rule_for_one_change_is_for_it_alone() -> None:
    text = "policy: p\ndefault: {write: allow}\nrules:\n  - {id: r, on: delete, paths: /w/**, action: deny}"
    found = verdicts(text, b"/w/x")
    assert [o for o, a in found.items() if a is Action.DENY and o is not Operation.READ] == [Operation.DELETE]
