# SPDX-License-Identifier: Apache-2.0
"""Reference evaluator, automaton and fast evaluator say the same about everything."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from agentmon.errors import PolicyError
from agentmon.model.conditions import UNSURE_SHIFT, WHATEVER
from agentmon.model.operations import Action, Operation
from agentmon.model.tables import NO_RULE
from agentmon.policy.bind import bind_policy
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.fast import FastEvaluator
from agentmon.policy.load import load_text
from agentmon.policy.walk import exe_tags, run_automaton, run_net
from tests.support.policies import PATH_OPERATIONS, Case, golden, random_case, random_situation, variables

_POLICY, _VARIABLES, _CASES = golden()
_BOUND = bind_policy(_POLICY, _VARIABLES)
_COMPILED = compile_policy(_BOUND)


@pytest.mark.parametrize(
    "case", _CASES, ids=lambda c: f"{c.operation.word}-{c.path.decode('utf-8', 'replace')}-{c.exe}"
)
def test_golden(case: Case) -> None:
    verdict = Evaluator(_BOUND).path(case.operation, case.path, case.exe)
    assert verdict.action == case.action
    assert (None if verdict.rule == NO_RULE else _COMPILED.rules[verdict.rule].id) == case.rule
    tags = exe_tags(_COMPILED, case.exe) if case.exe else 0
    assert run_automaton(_COMPILED, case.operation, case.path, tags) == verdict
    assert FastEvaluator(_COMPILED).path(case.operation, case.path, tags) == verdict


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32), st.booleans())
@example(368755, False)  # a hole that two rules have, one of them beside a hole that a state tells
def test_random_policies(seed: int, split: bool) -> None:
    """In one automaton, and split as large policies are."""
    agree(seed, split, conditions=False)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32), st.booleans())
def test_random_policies_with_conditions(seed: int, split: bool) -> None:
    agree(seed, split, conditions=True)


def agree(seed: int, split: bool, *, conditions: bool) -> None:
    policy, session, questions = random_case(seed, conditions=conditions)
    rng = random.Random(seed)
    bound = bind_policy(policy, session)
    try:
        compiled = compile_policy(bound, split=split)
    except PolicyError:  # refused for its size: that is an answer too
        assume(False)
        raise
    reference, fast = Evaluator(bound), FastEvaluator(compiled)
    for operation, path, exe in questions:
        tags = reference.exe_tags(exe)
        assert exe_tags(compiled, exe) == fast.exe_tags(exe) == tags
        facts = reference.facts(random_situation(rng)) if conditions else 0
        if conditions and rng.random() < 0.7:  # some or all that nobody knows
            facts = rng.choice([WHATEVER, facts | rng.getrandbits(len(bound.conditions)) << UNSURE_SHIFT])
        verdict = reference.path(operation, path, exe, facts)
        assert run_automaton(compiled, operation, path, tags, facts) == verdict, (path, exe)
        assert fast.path(operation, path, tags, facts) == verdict, (path, exe)
        assert fast.path(operation, path, tags, facts) == verdict  # from its cache


def test_a_hole_beside_one_that_is_no_directory_is_not_widened_by_other_rules() -> None:
    policy = load_text(
        "policy: p\ndefault: {read: allow}\nrules:\n"
        "  - {id: fence, on: read, paths: '/**', except: {paths: ['/home/me/**', '/srv/*.txt']}, action: deny}\n"
        "  - {id: seen, on: read, paths: ['/home/me/**', '/bin/**'], action: audit}\n",
        "p.yaml",
    )
    compiled = compile_policy(bind_policy(policy, variables()))
    for path, action in ((b"/bin/x", Action.DENY), (b"/home/me/x", Action.AUDIT), (b"/srv/a.txt", Action.ALLOW)):
        assert Evaluator(policy, variables()).path(Operation.READ, path).action == action
        assert run_automaton(compiled, Operation.READ, path).action == action, path


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([b"a", b"/", b".x", b"\xff", b"b", b"\n"]), max_size=12).map(b"".join))
def test_any_bytes_at_all(tail: bytes) -> None:
    """Not only true paths: the automaton and the regular expressions are the same language."""
    path = b"/srv/fence" + tail
    for operation in PATH_OPERATIONS:
        if path.endswith(b"/") or b"//" in path:
            continue
        assert run_automaton(_COMPILED, operation, path) == Evaluator(_BOUND).path(operation, path)


_ADDRESSES = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3",
    "0.0.0.0/0",
    "::/0",
    "::1",
    "fd00::/8",
    "fd00::1:0/112",
    "::ffff:10.1.0.0/112",
]
_PORTS = ["", ":80", ":80-443", ":443", ":0-65535"]


@st.composite
def _net_policy(draw: st.DrawFn) -> str:
    def cidr() -> str:
        address, ports = draw(st.sampled_from(_ADDRESSES)), draw(st.sampled_from(_PORTS))
        return f"[{address}]{ports}" if ports and address.count(":") > 1 else address + ports

    rules = []
    for i in range(draw(st.integers(1, 6))):
        rule: dict[str, object] = {"id": f"r{i}", "action": draw(st.sampled_from(["allow", "audit", "deny", "kill"]))}
        rule["on"] = draw(st.sampled_from([["connect"], ["send"], ["connect", "send"]]))
        if draw(st.booleans()):
            rule["cidrs"] = [cidr() for _ in range(draw(st.integers(1, 3)))]
        if draw(st.booleans()):
            rule["ports"] = draw(st.lists(st.sampled_from(["80", "1-100", "443", "90-500"]), min_size=1, max_size=2))
        if draw(st.booleans()):
            rule["except"] = {"cidrs": [cidr()]}
        if draw(st.integers(0, 3)) == 0:
            rule["exe"] = ["/bin/a"]
        rules.append(rule)
    default = {"connect": draw(st.sampled_from(["allow", "deny"]))}
    return json.dumps({"policy": "net", "default": default, "rules": rules})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_net_policy(), st.randoms(use_true_random=False))
def test_random_networks(text: str, rng: object) -> None:
    import ipaddress

    bound = bind_policy(load_text(text, "net.yaml"), variables())
    try:
        compiled = compile_policy(bound)
    except PolicyError:  # more port ranges than fit
        assume(False)
        raise
    reference, fast = Evaluator(bound), FastEvaluator(compiled)
    addresses = [
        "10.1.2.3",
        "10.1.2.4",
        "10.2.0.1",
        "11.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "::",
        "::1",
        "fd00::1:1",
        "fe80::1",
    ]
    for text_address in addresses:
        ip = ipaddress.ip_address(text_address)
        packed = bytes(10) + b"\xff\xff" + ip.packed if ip.version == 4 else ip.packed
        for port in (0, 1, 79, 80, 81, 100, 443, 500, 65535):
            for operation in (Operation.CONNECT, Operation.SEND):
                for exe in (b"/bin/a", b"/bin/b"):
                    tags = reference.exe_tags(exe)
                    verdict = reference.net(operation, packed, port, exe)
                    assert run_net(compiled, operation, packed, port, tags) == verdict, (text_address, port)
                    assert fast.net(operation, packed, port, tags) == verdict, (text_address, port)


def test_ipv6_everything_is_not_ipv4() -> None:
    text = "policy: p\ndefault: {connect: deny}\nrules: [{id: six, on: connect, cidrs: '::/0', action: allow}]"
    compiled = compile_policy(load_text(text, "p.yaml"), variables())
    four = bytes(10) + b"\xff\xff" + bytes([8, 8, 8, 8])
    assert run_net(compiled, Operation.CONNECT, four, 443).action == Action.DENY
    assert run_net(compiled, Operation.CONNECT, bytes(15) + b"\1", 443).action == Action.ALLOW


def test_long_paths_and_large_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths that the fast evaluator does not keep, and the table that it does not unfold."""
    monkeypatch.setattr("agentmon.policy.fast.UNFOLD_CELLS", 10)
    reference, fast = Evaluator(_BOUND), FastEvaluator(_COMPILED)
    for middle in (b"a", b"a" * 255, b"/".join([b"a" * 200] * 19), b"/".join([b"a"] * 2000)):
        for end in (b"x", b".ssh/id", b".git/hooks/x", b"x.pem"):
            path = b"/srv/fence/ws/" + middle + b"/" + end
            for operation in PATH_OPERATIONS:
                expected = reference.path(operation, path)
                assert fast.path(operation, path) == expected
                assert fast.path(operation, path) == expected
                assert run_automaton(_COMPILED, operation, path) == expected
    for case in _CASES:
        tags = fast.exe_tags(case.exe) if case.exe else 0
        assert fast.path(case.operation, case.path, tags).action == case.action
