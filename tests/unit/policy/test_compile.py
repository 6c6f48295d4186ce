# SPDX-License-Identifier: Apache-2.0
"""The tables: their invariants, their size, and what does not fit."""

from __future__ import annotations

import pytest

from agentmon.errors import PolicyError
from agentmon.model.operations import OPERATION_SLOTS, Action, Operation
from agentmon.model.tables import ACCEPT_NONE, LIST_LENGTH, Accept, CompiledPolicy
from agentmon.policy.compile import compile_policy
from agentmon.policy.load import load, load_text
from agentmon.policy.walk import run_automaton
from tests.support.policies import golden, random_case, variables


def build(rules: str, default: str = "{read: allow}") -> CompiledPolicy:
    return compile_policy(load_text(f"policy: p\ndefault: {default}\nrules:\n{rules}", "p.yaml"), variables())


def check_invariants(policy: CompiledPolicy) -> None:
    stride = policy.stride
    assert len(policy.transitions) == policy.states * stride
    assert len(policy.classes) == 256
    assert max(policy.classes) == stride - 3
    dead = policy.transitions[0:stride]
    assert set(dead[:-1]) == {0}
    assert dead[-1] == ACCEPT_NONE
    assert policy.accepts[ACCEPT_NONE] == Accept()
    assert policy.lists[0] == ()
    for state in range(policy.states):
        row = policy.transitions[state * stride : (state + 1) * stride]
        assert max(row[:-2]) < policy.states
        assert row[-2] < len(policy.fences)
        assert (policy.accepts[row[-1]].enter != ACCEPT_NONE) == (state >= policy.sticky_first)
    for entries in policy.lists:
        assert len(entries) <= LIST_LENGTH
        assert [e.rule for e in entries] == sorted(e.rule for e in entries)
        assert [e.action for e in entries] == sorted((e.action for e in entries), reverse=True)
    actions = [r.action for r in policy.rules]
    assert actions == sorted(actions, reverse=True)
    assert len(policy.defaults) == len(policy.severest) == OPERATION_SLOTS


def test_invariants_of_golden_shipped_and_random() -> None:
    check_invariants(compile_policy(*golden()[:2]))
    check_invariants(compile_policy(load("coding-agent"), variables()))
    for seed in range(30):
        policy, session, _ = random_case(seed, 0)
        check_invariants(compile_policy(policy, session))
        check_invariants(compile_policy(policy, session, split=True))


def test_sticky_globs_do_not_multiply() -> None:
    rules = "".join(f"  - {{id: r{i}, on: read, action: deny, paths: '**/.{chr(97 + i)}x/**'}}\n" for i in range(20))
    assert build(rules).states < 110


def test_the_severest_is_over_rules_and_default() -> None:
    policy = build("  - {id: a, on: [read, write], action: audit}\n  - {id: b, on: write, paths: /x, action: kill}\n")
    assert policy.severest[Operation.READ] == Action.AUDIT
    assert policy.severest[Operation.WRITE] == Action.KILL
    assert policy.severest[Operation.CREATE] == Action.DENY  # nothing said: closed


def test_exact_paths_of_blocking_rules_are_pinned() -> None:
    policy = build(
        "  - {id: a, on: [read, exec], action: deny, paths: ['/x/{a,b,c}', '/y/*'], except: {paths: '/x/c'}}\n"
        "  - {id: b, on: read, action: allow, paths: /z}\n"
    )
    assert sorted(p.path for p in policy.pins) == [b"/x/a", b"/x/b"]
    # the inode's row decides whatever name it is reached by
    verdict = run_automaton(policy, Operation.READ, b"/elsewhere", pinned=policy.pins[0].accept)
    assert verdict.action == Action.DENY


def test_more_conditional_rules_than_fit_are_named() -> None:
    rules = "".join(
        f"  - {{id: r{i}, on: read, action: deny, paths: /a/**, except: {{paths: '/a/b{i}/**'}}}}\n" for i in range(9)
    )
    with pytest.raises(PolicyError, match=r"p\.yaml:12:10: 9 rules .* `read` .*`r0`.*`r8`"):
        build(rules)


def test_an_explosion_is_refused_with_the_rules_to_blame() -> None:
    rules = "".join(
        f"  - {{id: r{i}, on: read, action: deny, paths: '**/{c}*/**/x{c}'}}\n" for i, c in enumerate("abcdefghijklmn")
    )
    with pytest.raises(
        PolicyError, match=r"p\.yaml:\d+:\d+: the globs with `\*\*` in the middle need more than 65535 states, .*`r\d+`"
    ):
        build(rules)


def test_too_many_program_sets_are_named() -> None:
    rules = "".join(f"  - {{id: r{i}, on: read, action: deny, paths: /a{i}, exe: /bin/{i}}}\n" for i in range(65))
    with pytest.raises(PolicyError, match="`r64` needs the 65th distinct set"):
        build(rules)


def test_more_than_64_kinds_of_lasting_globs_still_work() -> None:
    rules = "".join(f"  - {{id: r{i}, on: read, action: deny, paths: '/d{i}/**'}}\n" for i in range(80))
    policy = build(rules)
    for i in (0, 63, 64, 79):
        assert run_automaton(policy, Operation.READ, b"/d%d/x" % i).action == Action.DENY
        assert run_automaton(policy, Operation.READ, b"/d%d" % i).action == Action.DENY
        assert run_automaton(policy, Operation.READ, b"/d%dx" % i).action == Action.ALLOW


def test_many_exact_paths_fit_and_are_pinned() -> None:
    paths = "".join(f"      - /srv/{i * 7919 % 9973}/{'abc'[i % 3]}/{i * 104729}.txt\n" for i in range(2000))
    many = load_text(f"policy: p\nrules:\n  - id: r\n    on: read\n    action: deny\n    paths:\n{paths}", "p.yaml")
    assert len(compile_policy(many, variables()).pins) == 2000


def test_more_paths_than_fit_are_refused_before_they_cost_memory() -> None:
    paths = "".join(f"      - /srv/{i * 7919}/*/{i * 104729}/{i * 1299709}\n" for i in range(14_000))
    text = f"policy: p\nrules:\n  - id: many\n    on: read\n    action: deny\n    paths:\n{paths}"
    with pytest.raises(PolicyError, match=r"p\.yaml:3:9: the paths of all rules need more than 65535 states.*`many`"):
        compile_policy(load_text(text, "p.yaml"), variables())
    braces = "".join(f"      - /srv/{i}" + "{aaaaaaaa,bbbbbbbb}" * 9 + "\n" for i in range(60))
    with pytest.raises(PolicyError, match="too many or too long"):
        load_text(text.replace(paths, braces), "p.yaml")
