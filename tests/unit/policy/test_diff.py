# SPDX-License-Identifier: Apache-2.0
"""What changes from one policy to another."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmon.model.operations import Action
from agentmon.policy.bind import BoundPolicy, bind_policy
from agentmon.policy.cases import parse_object
from agentmon.policy.diff import Difference, Side, default_changes, on_session, rule_changes, verdicts
from agentmon.policy.evaluate import Evaluator, Verdict
from agentmon.policy.load import load, load_text
from agentmon.policy.recorded import sessions
from tests.support.policies import random_case, variables
from tests.support.recorded import Log

DEFAULT = "default: {exec: allow, read: allow, write: deny, create: deny, connect: deny}"
SEEDS = st.integers(0, 1 << 32)
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def policy(rules: str = "", default: str = DEFAULT) -> BoundPolicy:
    text = f"policy: p\n{default}\n" + (f"rules:\n{rules}" if rules else "")
    return bind_policy(load_text(text, "p.yaml"), variables())


def shown(old: BoundPolicy, new: BoundPolicy) -> list[tuple[str, str, str, str, str]]:
    said = verdicts(old, new)
    assert said.complete
    return [(d.operation.word, d.object, d.exe, d.old.action.word, d.new.action.word) for d in said.differences]


def test_structure() -> None:
    old = policy("  - {id: a, on: read, paths: [/a], action: deny}\n  - {id: b, on: read, action: audit}\n")
    new = policy(
        "  - {id: a, on: read, paths: [/a, /b], action: kill}\n  - {id: c, on: connect, action: allow}\n",
        DEFAULT.replace("exec: allow", "exec: deny"),
    )
    a, b, c = rule_changes(old, new)
    assert (a.id, a.fields) == ("a", (("action", "deny", "kill"), ("paths", "/a", "/a, /b")))
    assert (b.id, b.new, c.id, c.old) == ("b", None, "c", None)
    assert [(o.word, x.word, y.word) for o, x, y in default_changes(old, new)] == [("exec", "allow", "deny")]
    assert rule_changes(old, old) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # a hole, and only the hole
        (
            "{id: x, on: read, paths: [/d/**], action: deny}",
            "{id: x, on: read, paths: [/d/**], except: {paths: [/d/open]}, action: deny}",
            [("read", "/d/open", "", "deny", "allow")],
        ),
        # another way of writing the same
        (
            "{id: x, on: read, paths: ['/d/{a,b}'], action: deny}",
            "{id: x, on: read, paths: ['/d/[ab]'], action: deny}",
            [],
        ),
        (
            "{id: x, on: read, paths: ['/d/**/**'], action: deny}",
            "{id: y, on: read, paths: ['/d/**'], action: deny}",
            [],
        ),
        # `*` stays in its directory
        (
            "{id: x, on: read, paths: [/d/*], action: deny}",
            "{id: x, on: read, paths: [/d/**], action: deny}",
            [("read", "/d", "", "allow", "deny")],
        ),
        # what a more severe rule covers makes no difference
        (
            "{id: x, on: read, paths: [/d/**], action: deny}",
            ("{id: x, on: read, paths: [/d/**], action: deny}\n"
            "  - {id: y, on: read, paths: ['/d/*.txt'], action: audit}"),
            [],
        ),
        # only for one program
        (
            "{id: x, on: read, paths: [/d], action: deny}",
            "{id: x, on: read, paths: [/d], except: {exe: [/bin/cat]}, action: deny}",
            [("read", "/d", "/bin/cat", "deny", "allow")],
        ),
        # ports and prefixes at their ends
        (
            "{id: x, on: connect, cidrs: ['10.0.0.0/8:80-443'], action: allow}",
            "{id: x, on: connect, cidrs: ['10.0.0.0/8:80-442'], action: allow}",
            [("connect", "10.0.0.0:443", "", "allow", "deny")],
        ),
        (
            "{id: x, on: connect, cidrs: ['10.0.0.0/9', '10.128.0.0/9'], action: allow}",
            "{id: x, on: connect, cidrs: [10.0.0.0/8], action: allow}",
            [],
        ),
        (
            "{id: x, on: connect, cidrs: ['fd00::/8'], action: allow}",
            "{id: x, on: connect, cidrs: ['fd00::/8'], except: {cidrs: ['fd00::7']}, action: allow}",
            [("connect", "[fd00::7]:443", "", "allow", "deny")],
        ),
    ],
)  # fmt: skip
def test_verdicts(old: str, new: str, expected: list[tuple[str, ...]]) -> None:
    assert shown(policy(f"  - {old}\n"), policy(f"  - {new}\n")) == expected


NAMES = [
    ("", "hosts: 'a.example.com:443'", [("a.example.com:443", "deny", "allow")]),
    ("hosts: 'a.example.com:443'", "hosts: '*.example.com:443'", [("any.example.com:443", "deny", "allow")]),
    ("hosts: '*.example.com'", "hosts: ['*.example.com', b.a.example.com]", []),
    ("hosts: [a.example.com, b.example.com]", "hosts: [B.example.com., a.example.com]", []),
    ("hosts: 'a.example.com:443'", "hosts: 'a.example.com:443-444'", [("a.example.com:444", "deny", "allow")]),
    ("hosts: '*.example.com'", "hosts: ['*.example.com'], cidrs: [1.1.1.1]", [("1.1.1.1:443", "deny", "allow")]),
    ("hosts: '*.example.com'", "cidrs: ['0.0.0.0/0', '::/0']", [("[::]:443", "deny", "allow")]),
]


@pytest.mark.parametrize(("old", "new", "expected"), NAMES)
def test_names(old: str, new: str, expected: list[tuple[str, ...]]) -> None:
    one, two = (policy(f"  - {{id: x, on: connect, {text}, action: allow}}\n" if text else "") for text in (old, new))
    found = [row for row in shown(one, two) if row[0] == "connect"]
    assert [(where, before, after) for _, where, _, before, after in found] == expected
    back = [(where, after, before) for op, where, _, before, after in shown(two, one) if op == "connect"]
    assert back == expected


def test_a_name_counts_at_each_address() -> None:
    no_ipv4 = "  - {id: four, on: connect, cidrs: ['0.0.0.0/0'], action: deny}\n"
    name = "  - {id: n, on: connect, hosts: 'a.example.com:443', action: allow}\n"
    for denied in (no_ipv4, no_ipv4.replace("]", ", '2000::/3']")):
        (found,) = verdicts(policy(denied), policy(denied + name)).differences
        assert (found.object, found.when) == ("a.example.com:443", "at [::]")
    assert not verdicts(policy(), policy(name), limit=1).complete
    everywhere = no_ipv4.replace("]", ", '::/0']")
    assert shown(policy(everywhere), policy(everywhere + name)) == []


def test_observing() -> None:
    rule = "  - {id: x, on: read, paths: [/d], action: deny}\n"
    observed = rule.replace("}", ", mode: observe}")
    (change,) = rule_changes(policy(rule), policy(observed))
    assert change.fields == (("mode", "enforce", "observe"),)
    (change,) = rule_changes(policy(), policy(observed))
    assert change.new is not None
    assert shown(policy(), policy(observed)) == []
    assert shown(policy(rule), policy(observed)) == [("read", "/d", "", "deny", "allow")]
    all_observed = policy(rule, "mode: observe\n" + DEFAULT)
    assert not rule_changes(policy(rule), all_observed)
    assert not default_changes(policy(rule), all_observed)
    assert ("read", "/d", "", "deny", "allow") in shown(policy(rule), all_observed)


def test_examples_are_true_paths() -> None:
    old = policy("  - {id: x, on: read, paths: ['/a/?*/b', '/.**', '/[.x]*'], action: deny}\n")
    for _, path, *_ in shown(old, policy()):
        assert os.path.normpath(path) == path


def test_the_packs() -> None:
    base, agent = (bind_policy(load(name), variables()) for name in ("base", "coding-agent"))
    found = {(d.operation.word, d.old.rule, d.new.rule) for d in verdicts(base, agent).differences}
    assert {("write", "", "workspace"), ("exec", "", "downloaded-program"), ("write", "", "agent-state")} <= found
    assert not {rule for _, *rules in found for rule in rules} & {"keys", "tokens", "names"}


def test_policies_too_large_are_not_called_equal() -> None:
    rules = "".join(
        f"  - {{id: r{i}, on: read, paths: ['**/{'abcdefgh'[i]}*/**/x'], action: deny}}\n" for i in range(8)
    )
    said = verdicts(
        policy(), bind_policy(load_text(f"policy: p\n{DEFAULT}\nrules:\n{rules}", "p"), variables()), limit=50
    )
    assert not said.complete


def test_recorded_sessions() -> None:
    log = Log()
    log.did("read", "/d/a")
    log.did("read", "/e")
    log.did("read", "/f")
    session = sessions(log.records)["s-1"]
    new = policy(
        "  - {id: d, on: read, paths: [/d/**], action: deny}\n"
        "  - {id: f, on: read, paths: [/f], exe: [/bin/cat], action: deny}\n"
    )
    (one, old_one, new_one), (two, old_two, new_two) = on_session(policy(), new, session)
    assert (one.object, old_one, new_one) == ("/d/a", Side(Action.ALLOW, ""), Side(Action.DENY, "d"))
    assert (two.object, old_two, new_two) == ("/f", Side(Action.ALLOW, ""), None)  # hangs on the program
    assert on_session(new, new, session) == []


def random_policy(seed: int) -> BoundPolicy:
    written, session, _ = random_case(seed)
    return bind_policy(written, session)


def side(bound: BoundPolicy, verdict: Verdict) -> Side:
    return Side(verdict.action, bound.rules[verdict.rule].rule.id if verdict.rule < len(bound.rules) else "")


@QUICK
@given(SEEDS)
def test_a_policy_does_not_differ_from_itself(seed: int) -> None:
    bound = random_policy(seed)
    assert rule_changes(bound, bound) == default_changes(bound, bound) == []
    assert verdicts(bound, bound).differences == ()


@QUICK
@given(SEEDS, SEEDS)
def test_differences_are_the_same_from_the_other_side(one: int, two: int) -> None:
    old, new = random_policy(one), random_policy(two)
    there, back = verdicts(old, new, limit=2000), verdicts(new, old, limit=2000)
    flipped = {Difference(d.operation, d.object, d.exe, d.new, d.old) for d in back.differences}
    assert set(there.differences) == flipped


@QUICK
@given(SEEDS, SEEDS)
def test_examples_are_judged_as_they_say_and_no_difference_is_missing(one: int, two: int) -> None:
    old, new = random_policy(one), random_policy(two)
    said = verdicts(old, new, limit=3000)
    judges = Evaluator(old), Evaluator(new)
    for d in said.differences:
        exe = os.fsencode(d.exe) if d.exe else None
        for bound, judge, expected in ((old, judges[0], d.old), (new, judges[1], d.new)):
            target = (
                parse_object(d.operation, d.object, bound.variables) if d.operation.is_net else os.fsencode(d.object)
            )
            if isinstance(target, bytes):
                assert side(bound, judge.path(d.operation, target, exe)) == expected
            else:
                assert side(bound, judge.net(d.operation, *target, exe)) == expected
    known = {(d.operation, d.old, d.new) for d in said.differences}
    for operation, path, exe in random_case(one)[2] + random_case(two)[2]:
        sides = [side(b, j.path(operation, path, exe)) for b, j in zip((old, new), judges, strict=True)]
        if said.complete and sides[0].action != sides[1].action:
            assert (operation, sides[0], sides[1]) in known, (path, exe)


def test_what_is_part_of_write_is_said_only_where_it_differs_from_it() -> None:
    new = "  - {id: w, on: write, paths: [/d], action: allow}\n"
    assert shown(policy(), policy(new)) == [("write", "/d", "", "deny", "allow")]
    assert shown(policy(), policy(new + "  - {id: keep, on: delete, paths: [/d], action: kill}\n")) == [
        ("delete", "/d", "", "deny", "kill"), ("write", "/d", "", "deny", "allow"),
    ]  # fmt: skip
    changed = default_changes(policy(), policy(default=DEFAULT.replace("write: deny", "write: allow, attr: audit")))
    assert [(o.word, after.word) for o, _, after in changed] == [("write", "allow"), ("attr", "audit")]


def test_operations_without_an_object() -> None:
    gdb = "  - {id: debug, on: ptrace, exe: [/usr/bin/gdb], action: allow}\n"
    assert shown(policy(), policy(gdb)) == [("ptrace", "", "/usr/bin/gdb", "deny", "allow")]
    assert shown(policy(), policy("", DEFAULT.replace("}", ", mount: allow}"))) == [("mount", "", "", "deny", "allow")]
