# SPDX-License-Identifier: Apache-2.0
"""Hosts by name: what a rule means, in the evaluator, the tables, `explain` and for the resolver."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon.errors import PolicyError
from agentmon.model.names import HostPattern
from agentmon.model.operations import Action, Operation
from agentmon.model.tables import NO_RULE
from agentmon.policy.bind import bind_policy
from agentmon.policy.cases import parse_object, run_cases
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.explain import explain
from agentmon.policy.hosts import PolicyNames
from agentmon.policy.load import load_text
from agentmon.policy.rules import Variables
from agentmon.policy.walk import run

VARIABLES = Variables.of(workspace="/w", home="/h", user="u")

POLICY = """
policy: p
default: {exec: allow, read: allow, write: allow, create: allow, connect: deny}
rules:
  - {id: api, on: connect, hosts: ["api.example.com:443", "*.example.org"], ports: [443, 8000-8001], action: allow}
  - {id: watched, on: [connect, send], hosts: ["*.example.org"], action: audit, exe: /usr/bin/curl}
  - {id: no-smtp, on: connect, ports: 25, action: deny}
  - {id: mail, on: connect, hosts: mail.example.com, action: allow}
  - {id: umlaut, on: connect, hosts: "Bücher.Example:80", action: allow}
  - {id: nearby, on: connect, cidrs: ["10.0.0.0/8:22"], action: allow}
"""
BOUND = bind_policy(load_text(POLICY, "p.yaml"), VARIABLES)
COMPILED = compile_policy(BOUND)


@pytest.mark.parametrize(
    "target,action,rule",
    [
        ("api.example.com:443", "allow", "api"),
        ("API.example.com.:443", "allow", "api"),
        ("api.example.com:8000", "deny", None),  # its own port only
        ("x.api.example.com:443", "deny", None),
        ("example.com:443", "deny", None),
        ("a.example.org:443", "allow", "api"),
        ("b.a.example.org:8001", "allow", "api"),
        ("a.example.org:8002", "deny", None),
        ("example.org:443", "deny", None),
        ("notexample.org:443", "deny", None),
        ("mail.example.com:993", "allow", "mail"),
        ("mail.example.com:25", "deny", "no-smtp"),  # a name lifts the default, never a rule
        ("bücher.example:80", "allow", "umlaut"),
        ("xn--bcher-kva.example:80", "allow", "umlaut"),
        ("10.1.2.3:22", "allow", "nearby"),
        ("somewhere.test:22", "deny", None),  # its address is one that no rule names
        ("8.8.8.8:443", "deny", None),  # no name turns the default off
    ],
)
def test_a_verdict_on_a_name(target: str, action: str, rule: str | None) -> None:
    parsed = parse_object(Operation.CONNECT, target, VARIABLES)
    verdict = Evaluator(BOUND).judge(Operation.CONNECT, parsed)
    assert verdict.action == Action[action.upper()]
    assert (None if verdict.rule == NO_RULE else COMPILED.rules[verdict.rule].id) == rule
    assert run(COMPILED, Operation.CONNECT, parsed) == verdict


def test_a_condition_on_the_program_counts_for_names_too() -> None:
    parsed = parse_object(Operation.CONNECT, "a.example.org:443", VARIABLES)
    evaluator = Evaluator(BOUND)
    verdict = evaluator.judge(Operation.CONNECT, parsed, b"/usr/bin/curl")
    assert verdict.action == Action.AUDIT
    assert run(COMPILED, Operation.CONNECT, parsed, evaluator.exe_tags(b"/usr/bin/curl")) == verdict
    assert evaluator.judge(Operation.SEND, parsed).action == Action.DENY


@pytest.mark.parametrize(
    "default,rule,action",
    [
        ("deny", "cidrs: 0.0.0.0/0, action: allow", Action.ALLOW),
        ("deny", "cidrs: '::/0', action: allow", Action.DENY),
        ("allow", "cidrs: 0.0.0.0/0, ports: 443, action: deny", Action.DENY),
        ("allow", "cidrs: 0.0.0.0/1, action: deny", Action.ALLOW),
        ("deny", "cidrs: 0.0.0.0/0, except: {cidrs: 0.0.0.0/0}, action: allow", Action.DENY),
        ("deny", "except: {cidrs: 10.0.0.0/8}, action: allow", Action.ALLOW),
    ],
)
def test_rules_on_addresses_count_for_a_name_if_they_hold_all_of_ipv4(default: str, rule: str, action: Action) -> None:
    text = f"policy: p\ndefault: {{connect: {default}}}\nrules: [{{id: r, on: connect, {rule}}}]"
    bound = bind_policy(load_text(text, "p.yaml"), VARIABLES)
    verdict = Evaluator(bound).judge(Operation.CONNECT, ("a.test", 443))
    assert verdict.action == action
    assert run(compile_policy(bound), Operation.CONNECT, ("a.test", 443)) == verdict


def test_explain_names_the_words_that_matched() -> None:
    said = explain(BOUND, Operation.CONNECT, ("a.example.org", 443), None)
    assert said.decided_by is not None
    assert (said.decided_by.rule, said.decided_by.matched) == ("api", "*.example.org")
    said = explain(BOUND, Operation.CONNECT, ("mail.example.com", 25), None)
    assert said.decided_by is not None
    assert said.decided_by.rule == "no-smtp"
    assert [m.rule for m in said.others] == ["mail"]


def test_cases_may_name_hosts(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(POLICY)
    (tmp_path / "p.test.yaml").write_text(
        "cases:\n"
        "  - {op: connect, object: 'api.example.com:443', expect: allow, rule: api}\n"
        "  - {op: connect, object: 'evil.test:443', expect: allow}\n"
    )
    results = run_cases(str(tmp_path / "p.test.yaml"))
    assert [r.failure for r in results] == ["", "expected allow, got deny by default"]
    (tmp_path / "p.test.yaml").write_text("cases: [{op: connect, object: '*.example.org:443', expect: allow}]")
    with pytest.raises(PolicyError, match="is not one name and port"):
        run_cases(str(tmp_path / "p.test.yaml"))


def packed(text: str) -> bytes:
    return bytes(10) + b"\xff\xff" + ipaddress.IPv4Address(text).packed


def test_the_resolver_learns_which_names_and_which_private_addresses_a_policy_allows() -> None:
    names = PolicyNames(COMPILED)
    assert names.pattern_for("api.example.com") == HostPattern("api.example.com")
    assert names.pattern_for("b.a.example.org") == HostPattern("example.org", wildcard=True)
    assert names.pattern_for("example.org") is None
    assert names.pattern_for("evil.test") is None
    assert names.reachable(packed("10.9.9.9"))
    assert not names.reachable(packed("192.168.0.1"))
    assert [(e.port_lo, e.port_hi, e.action) for e in names.entries("a.example.org")] == [
        (0, 65535, Action.AUDIT),
        (443, 443, Action.ALLOW),
        (8000, 8001, Action.ALLOW),
    ]
    assert names.entries("evil.test") == ()


def test_where_the_default_is_open_any_name_may_be_asked_for() -> None:
    text = "policy: p\ndefault: {connect: allow}\nrules: []"
    names = PolicyNames(compile_policy(bind_policy(load_text(text, "p.yaml"), VARIABLES)))
    assert names.pattern_for("a.test") == HostPattern("a.test")


_NETS = ["0.0.0.0/0", "'::/0'", "10.0.0.0/8", "0.0.0.0/1"]
_HOSTS = ["a.example.org", "'*.example.org'", "b.test:80", "'*.a.example.org:1-443'"]


@st.composite
def _rules(draw: st.DrawFn) -> str:
    lines = []
    for i in range(draw(st.integers(1, 5))):
        by_name = draw(st.booleans())
        parts = [f"id: r{i}", f"on: {draw(st.sampled_from(['connect', 'send', '[connect, send]']))}"]
        if by_name:
            parts.append(f"hosts: [{', '.join(draw(st.lists(st.sampled_from(_HOSTS), min_size=1, max_size=2)))}]")
        if draw(st.booleans()):
            parts.append(f"cidrs: [{', '.join(draw(st.lists(st.sampled_from(_NETS), min_size=1, max_size=2)))}]")
        if draw(st.booleans()):
            parts.append(f"ports: {draw(st.sampled_from(['443', '80-443', '0-65535']))}")
        if draw(st.booleans()):
            parts.append(f"exe: {draw(st.sampled_from(['/bin/a', '/bin/b']))}")
        hole = "exe: /bin/b" if by_name else f"cidrs: {draw(st.sampled_from(_NETS))}"
        if draw(st.booleans()):
            parts.append(f"except: {{{hole}}}")
        actions = ["allow", "audit"] if by_name else ["allow", "audit", "deny", "kill"]
        lines.append(f"  - {{{', '.join(parts)}, action: {draw(st.sampled_from(actions))}}}\n")
    default = draw(st.sampled_from(["allow", "deny"]))
    return f"policy: p\ndefault: {{connect: {default}}}\nrules:\n{''.join(lines)}"


@settings(max_examples=300, deadline=None)
@given(_rules())
def test_evaluator_and_tables_agree_about_names_and_addresses(text: str) -> None:
    bound = bind_policy(load_text(text, "p.yaml"), VARIABLES)
    compiled, evaluator = compile_policy(bound), Evaluator(bound)
    objects = [
        (where, port)
        for where in ("a.example.org", "x.a.example.org", "b.test", "c.test", packed("10.0.0.1"), packed("200.0.0.1"))
        for port in (1, 80, 443, 8080)
    ]
    for operation in (Operation.CONNECT, Operation.SEND):
        for exe in (None, b"/bin/a", b"/bin/b"):
            for target in objects:
                wanted = evaluator.judge(operation, target, exe)
                assert run(compiled, operation, target, evaluator.exe_tags(exe)) == wanted, (target, exe)
