# SPDX-License-Identifier: Apache-2.0
"""Thousands of rules: they compile into bounded tables and mean the same, or are refused by name."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from agentmon.errors import PolicyError
from agentmon.model.operations import Action, Operation
from agentmon.model.tables import MAX_STATES
from agentmon.policy.bind import BoundPolicy, bind_policy
from agentmon.policy.check import warnings
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.fast import FastEvaluator
from agentmon.policy.load import load_text
from agentmon.policy.walk import run_automaton, run_move, walk
from tests.support import rulesets
from tests.support.policies import random_case, variables


def bound(rules: list[dict[str, Any]]) -> BoundPolicy:
    named = [{"id": f"r{i}", "on": "read", "action": "deny", **rule} for i, rule in enumerate(rules)]
    text = json.dumps({"policy": "p", "default": {"read": "allow"}, "rules": named})
    return bind_policy(load_text(text, "p.yaml"), variables())


def test_ten_thousand_mixed_rules_agree_with_the_reference() -> None:
    text = rulesets.mixed(10_000)
    policy = bind_policy(load_text(text, "p.yaml"), variables())
    compiled = compile_policy(policy)
    assert compiled.states <= MAX_STATES
    assert 2 * (len(compiled.transitions) + len(compiled.tails)) < 8 << 20  # two of them fit beside each other
    reference, fast = Evaluator(policy), FastEvaluator(compiled)
    rng = random.Random(3)
    actions = set()
    for path in rulesets.paths(250, text):
        operation = rng.choice([Operation.READ, Operation.WRITE, Operation.CREATE])
        tags = rng.choice([0, rng.getrandbits(64)])
        wanted = reference.path_by_tags(operation, path, tags)
        assert run_automaton(compiled, operation, path, tags) == wanted, path
        assert fast.path(operation, path, tags) == wanted, path
        actions.add(wanted.action)
    assert actions >= {Action.ALLOW, Action.AUDIT, Action.DENY, Action.KILL}


def test_five_thousand_names_anywhere() -> None:
    """They take states for their letters, and no more."""
    text = rulesets.everywhere(5_000)
    policy = bind_policy(load_text(text, "p.yaml"), variables())
    compiled = compile_policy(policy)
    letters = sum(len(rule["paths"]) for rule in json.loads(text)["rules"])
    assert compiled.states < letters
    reference = Evaluator(policy)
    names = [rule["paths"].split("/")[1] for rule in json.loads(text)["rules"]]
    rng = random.Random(5)
    for _ in range(100):
        path = ("/srv/" + "/".join(rng.sample(names, 3))).encode()[: rng.randint(20, 60)]
        assert run_automaton(compiled, Operation.READ, path) == reference.path(Operation.READ, path), path


@pytest.mark.parametrize("pattern", ["**/x{i}y/*.log", "**/x{i}y/**/z{i}y", "**/*x{i}y*"])
def test_what_multiplies_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(PolicyError, match=r"p\.yaml:1:\d+: .* more than 65535 states, above all in `r\d+`, `r\d+`.*;"):
        compile_policy(bound([{"paths": pattern.replace("{i}", str(i))} for i in range(3_000)]))


def test_what_is_covered_takes_no_states() -> None:
    broad = [{"paths": ["/srv/a/**", "**/.git/hooks/**"], "action": "kill"}]
    narrow = [{"paths": f"/srv/a/{i}/*{i}"} for i in range(50)] + [
        {"paths": f"**/x{i}/.git/hooks/*"} for i in range(50)
    ]
    assert compile_policy(bound(broad + narrow)).states == compile_policy(bound(broad)).states


def test_what_covers_must_be_at_least_as_severe_and_for_the_same_operations() -> None:
    narrow = {"paths": "/srv/a/b", "action": "deny"}
    for broad in (
        {"paths": "/srv/a/**", "action": "audit"},
        {"paths": "/srv/a/**", "action": "kill", "on": "write"},
        {"paths": "/srv/a/**", "action": "kill", "exe": "/bin/x"},
        {"paths": "/srv/a/**", "action": "kill", "except": {"paths": "/srv/a/b"}},
        {"paths": "/srv/a?/**", "action": "kill"},
        {"paths": "**/a/c/**", "action": "kill"},
    ):
        for split in (False, True):
            verdict = run_automaton(compile_policy(bound([broad, narrow]), split=split), Operation.READ, b"/srv/a/b")
            assert verdict.action == Action.DENY, broad


@pytest.mark.parametrize("seed", range(40))
def test_rules_below_one_another(seed: int) -> None:
    """Paths that begin with each other, with and without conditions: what tails are cut by."""
    rng = random.Random(seed)
    rules: list[dict[str, Any]] = []
    for _ in range(12):
        path = "".join("/" + rng.choice(["a", "ab", "b", "a?", "*"]) for _ in range(rng.randint(1, 4)))
        rule: dict[str, Any] = {"paths": path + rng.choice(["", "", "/**", "/**", "**", "/**/b"])}
        rule["action"] = rng.choice(["deny", "kill", "audit", "allow"])
        if rng.random() < 0.3:
            rule["exe"] = rng.choice(["/bin/x", "/bin/**", "/a/**"])
        if rng.random() < 0.3:
            rule["except"] = {"paths": rng.choice(["/a/b/**", "/a/*", "**/ab/**", "**b"])}
        rules.append(rule)
    policy = bound(rules)
    compiled = compile_policy(policy, split=True)
    reference, fast = Evaluator(policy), FastEvaluator(compiled)
    for _ in range(150):
        path = "".join("/" + rng.choice(["a", "ab", "b", "c"]) for _ in range(rng.randint(1, 5))).encode()
        exe = rng.choice([b"/bin/x", b"/bin/y", b"/a/b", b"/c"])
        tags = reference.exe_tags(exe)
        assert walk(compiled, exe).exe_tags == fast.exe_tags(exe) == tags
        wanted = reference.path(Operation.READ, path, exe)
        assert run_automaton(compiled, Operation.READ, path, tags) == wanted, (path, exe)
        assert fast.path(Operation.READ, path, tags) == wanted, (path, exe)


def test_splitting_changes_no_verdict() -> None:
    for seed in range(60):
        policy, session, questions = random_case(seed, 30)
        bound_policy = bind_policy(policy, session)
        one, many = (compile_policy(bound_policy, split=split) for split in (False, True))
        for operation, path, _ in questions:
            for tags in (0, 1, 3):
                assert run_automaton(one, operation, path, tags) == run_automaton(many, operation, path, tags), path


def test_rules_that_never_decide_are_found_among_many() -> None:
    rules: list[dict[str, Any]] = [{"paths": f"/srv/{i}/x"} for i in range(300)]
    rules += [
        {"paths": ["/srv/7/x", "/srv/8/x"]},
        {"paths": ["/srv/9/x", "/srv/9/y"]},
        {"paths": "/srv/9/x", "on": "write"},
    ]
    policy = bound(rules)
    found = [line for line in warnings(policy, compile_policy(policy)) if "can never decide" in line]
    assert len(found) == 1
    assert "rule `r300` can never decide" in found[0]


def test_no_directory_moves_under_a_split_policy() -> None:
    """What is below it is not known there; in one piece, it is."""
    policy = bound([{"paths": "/srv/secret/key"}])
    for old, new in ((b"/srv/secret", b"/srv/x"), (b"/srv/x", b"/srv/secret"), (b"/tmp/a", b"/tmp/b")):
        assert run_move(compile_policy(policy, split=True), old, new).action == Action.DENY
    assert run_move(compile_policy(policy, split=False), b"/tmp/a", b"/tmp/b").action == Action.ALLOW
    told = "no directory can be renamed"
    assert any(told in line for line in warnings(policy, compile_policy(policy, split=True)))
    assert not any(told in line for line in warnings(policy, compile_policy(policy, split=False)))
    assert run_move(compile_policy(policy, split=False), b"/srv/secret", b"/srv/x").action == Action.DENY
