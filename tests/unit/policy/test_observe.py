# SPDX-License-Identifier: Apache-2.0
"""`mode: observe`: what is tried without blocking."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmon.errors import PolicyError
from agentmon.model.operations import Action, Operation
from agentmon.policy.bind import BoundPolicy, bind_policy
from agentmon.policy.cases import run_cases
from agentmon.policy.check import warnings
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.explain import explain
from agentmon.policy.load import load_text
from agentmon.policy.walk import run_automaton
from tests.support.policies import variables

POLICY = """policy: tried
default: {exec: allow, read: allow, write: deny, create: allow, connect: deny, bind: deny, listen: deny, unix: deny}
rules:
  - {id: new, on: [read, write], paths: ["/srv/**"], exe: [/bin/a], action: deny, mode: observe, reason: why}
  - {id: old, on: read, paths: ["/srv/old/**"], action: deny}
  - {id: ours, on: write, paths: ["/srv/**"], action: allow}
"""


def bound(text: str = POLICY) -> BoundPolicy:
    return bind_policy(load_text(text, "p.yaml"), variables())


def both(policy: BoundPolicy, operation: Operation, path: bytes, exe: bytes = b"/bin/a") -> tuple[str, str]:
    """(in force, if it were enforced); the tables say the same."""
    found = []
    for one in (policy, policy.observed or policy):
        evaluator, compiled = Evaluator(one), compile_policy(one)
        verdict = evaluator.path(operation, path, exe)
        assert run_automaton(compiled, operation, path, evaluator.exe_tags(exe)) == verdict
        found.append(verdict.action.word)
    return found[0], found[1]


def test_a_rule_that_is_observed_blocks_nothing_and_hides_nothing() -> None:
    policy = bound()
    assert both(policy, Operation.READ, b"/srv/x") == ("allow", "deny")
    assert both(policy, Operation.READ, b"/srv/x", b"/bin/b") == ("allow", "allow")
    assert both(policy, Operation.READ, b"/srv/old/x") == ("deny", "deny")
    assert both(policy, Operation.WRITE, b"/srv/x") == ("allow", "deny")
    assert both(policy, Operation.WRITE, b"/etc/x") == ("deny", "deny")  # it lifts no default


def test_a_policy_that_is_observed_blocks_nothing_at_all() -> None:
    policy = bound(POLICY.replace("policy: tried", "policy: tried\nmode: observe"))
    assert both(policy, Operation.READ, b"/srv/old/x") == ("allow", "deny")
    assert both(policy, Operation.WRITE, b"/etc/x") == ("allow", "deny")
    assert set(policy.severest) == {Action.ALLOW}
    assert Evaluator(policy).bare(Operation.PTRACE).action is Action.ALLOW


def test_programs_have_the_same_bits_in_both() -> None:
    policy = bound()
    assert policy.observed is not None
    assert policy.exe_sets == policy.observed.exe_sets
    assert compile_policy(policy).rules[0].id == "old"


def test_check_and_explain_say_so() -> None:
    policy = bound()
    (said,) = [w for w in warnings(policy, compile_policy(policy)) if "observe" in w]
    assert "p.yaml:4:10: `mode: observe`: rule `new` itself blocks nothing, but the default of `write` does," in said
    found = explain(policy, Operation.READ, b"/srv/x", b"/bin/a")
    assert found.action is Action.ALLOW
    assert found.would is not None
    assert found.would.decided_by is not None
    assert (found.would.action, found.would.decided_by.rule) == (Action.DENY, "new")
    assert explain(policy, Operation.READ, b"/srv/old/x", None).would is None


def test_check_says_that_a_default_blocks_all_the_same() -> None:
    text = "policy: p\ndefault: {read: allow}\nrules:\n"
    text += "  - {id: a, on: [read, connect, send], action: deny, mode: observe}\n"
    policy = bind_policy(load_text(text, "p.yaml"), variables())
    assert Evaluator(policy).net(Operation.CONNECT, bytes(16), 80).action is Action.DENY
    (said,) = [w for w in warnings(policy, compile_policy(policy)) if "observe" in w]
    assert "rule `a` itself blocks nothing, but the default of `connect`, `send` does, where no other" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy: p\nmode: dry", "p.yaml:2:7: unknown mode `dry`"),
        ("policy: p\nrules:\n  - {id: a, on: read, action: allow, mode: observe}", "is for rules that block"),
        ("policy: p\nrules:\n  - {id: a, on: read, action: deny, mode: obsrve}", "did you mean `observe`?"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as error:
        load_text(text, "p.yaml")
    assert message in str(error.value)


def test_a_pack_is_not_observed_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "inner.yaml").write_text("policy: inner\nmode: observe\n")
    with pytest.raises(PolicyError, match="`mode` of pack `inner` would not count here"):
        load_text("policy: p\ninclude: inner\n", "p.yaml", directories=[tmp_path])


def test_cases_say_what_it_comes_to_when_it_is_enforced(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(POLICY)
    cases = tmp_path / "p.test.yaml"
    cases.write_text(
        "cases:\n"
        "  - {op: read, object: /srv/x, exe: /bin/a, expect: allow, would: deny, rule: new}\n"
        "  - {op: read, object: /srv/x, exe: /bin/a, expect: allow, would: allow}\n"
        "  - {op: read, object: /srv/x, exe: /bin/a, expect: deny}\n"
    )
    failures = [result.failure for result in run_cases(str(cases))]
    assert failures[0] == ""
    assert failures[1] == "enforced: expected allow, got deny by rule `new`"
    assert failures[2] == "expected deny, got allow by default"
