# SPDX-License-Identifier: Apache-2.0
"""What rules ask of who acts."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmon.errors import PolicyError
from agentmon.model.conditions import UNSURE_SHIFT, WHATEVER, During, Marked, Parent, Users, facts_hold
from agentmon.model.operations import Action, Operation
from agentmon.policy.bind import BoundPolicy, bind_policy
from agentmon.policy.cases import run_cases
from agentmon.policy.check import warnings
from agentmon.policy.compile import compile_policy
from agentmon.policy.diff import verdicts
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.explain import explain
from agentmon.policy.fast import FastEvaluator
from agentmon.policy.load import load_text
from agentmon.policy.situation import Situation
from agentmon.policy.walk import run, run_move
from tests.support.policies import variables

DEFAULT = "default: {exec: allow, read: allow, write: deny, create: allow, connect: deny, unix: deny}"
POLICY = f"""policy: who
{DEFAULT}
rules:
  - {{id: tests, on: read, paths: ["/srv/**"], except: {{parent: ["**/pytest"]}}, action: deny}}
  - {{id: root, on: read, paths: ["/etc/**"], user: [root, "7"], action: deny}}
  - {{id: make, on: exec, paths: ["/bin/cc"], parent: ["/bin/make"], action: deny}}
  - {{id: both, on: write, paths: ["/tmp/**"], parent: ["/bin/make"], user: root, action: allow}}
  - {{id: net, on: connect, cidrs: [10.0.0.0/8], except: {{user: ["7"]}}, action: allow}}
  - {{id: name, on: connect, hosts: ["a.example:443"], user: root, action: allow}}
  - {{id: trace, on: ptrace, parent: ["/bin/make"], action: allow}}
"""


def bound(text: str = POLICY) -> BoundPolicy:
    return bind_policy(load_text(text, "p.yaml"), variables())


BOUND = bound()
COMPILED = compile_policy(BOUND)
MAKE, PYTEST = b"/bin/make", b"/usr/bin/pytest"


@pytest.mark.parametrize(
    ("operation", "target", "situation", "action", "rule"),
    [
        (Operation.READ, b"/srv/x", Situation(), "deny", "tests"),
        (Operation.READ, b"/srv/x", Situation((b"/bin/sh", PYTEST)), "allow", ""),
        (Operation.READ, b"/etc/x", Situation(), "allow", ""),
        (Operation.READ, b"/etc/x", Situation(uid=0), "deny", "root"),
        (Operation.READ, b"/etc/x", Situation(uid=7), "deny", "root"),
        (Operation.READ, b"/etc/x", Situation(uid=8), "allow", ""),
        (Operation.EXEC, b"/bin/cc", Situation((MAKE,)), "deny", "make"),
        (Operation.EXEC, b"/bin/cc", Situation((b"/bin/sh",)), "allow", ""),
        (Operation.WRITE, b"/tmp/x", Situation((MAKE,)), "deny", ""),
        (Operation.WRITE, b"/tmp/x", Situation(uid=0), "deny", ""),
        (Operation.WRITE, b"/tmp/x", Situation((MAKE,), 0), "allow", "both"),
        (Operation.CONNECT, (bytes(10) + b"\xff\xff\x0a\0\0\1", 1), Situation(), "allow", "net"),
        (Operation.CONNECT, (bytes(10) + b"\xff\xff\x0a\0\0\1", 1), Situation(uid=7), "deny", ""),
        (Operation.CONNECT, ("a.example", 443), Situation(uid=0), "allow", "name"),
        (Operation.CONNECT, ("a.example", 443), Situation(uid=1), "deny", ""),
        (Operation.PTRACE, None, Situation(), "deny", ""),
        (Operation.PTRACE, None, Situation((MAKE,)), "allow", "trace"),
    ],
)
def test_a_rule_holds_for_whom_it_names(
    operation: Operation, target: object, situation: Situation, action: str, rule: str
) -> None:
    evaluator, fast = Evaluator(BOUND), FastEvaluator(COMPILED)
    facts = evaluator.facts(situation)
    verdict = evaluator.judge(operation, target, None, facts)  # type: ignore[arg-type]  # any kind of object
    assert (verdict.action.word, COMPILED.rules[verdict.rule].id if verdict.rule < 99 else "") == (action, rule)
    assert run(COMPILED, operation, target, 0, facts) == verdict  # type: ignore[arg-type]
    if isinstance(target, bytes):
        assert fast.path(operation, target, 0, facts) == verdict
    elif target is None:
        assert fast.bare(operation, 0, facts) == verdict
    elif isinstance(target, tuple) and isinstance(target[0], bytes):
        assert fast.net(operation, *target, 0, facts) == verdict  # type: ignore[arg-type]


def test_who_starts_a_program_is_its_ancestor() -> None:
    evaluator = Evaluator(BOUND)
    tags = evaluator.exe_tags(MAKE)
    verdict = evaluator.path(Operation.EXEC, b"/bin/cc", MAKE)
    assert verdict.action.word == "deny"
    assert run(COMPILED, Operation.EXEC, b"/bin/cc", tags) == verdict
    assert FastEvaluator(COMPILED).path(Operation.EXEC, b"/bin/cc", tags) == verdict
    assert evaluator.bare(Operation.PTRACE, MAKE).action.word != "allow"


def test_equal_conditions_are_one_bit_and_those_of_ancestors_come_first() -> None:
    kinds = [type(c) for c in COMPILED.conditions]
    assert kinds == [Parent, Parent, Users, Users, Users]
    assert [c.programs for c in COMPILED.conditions if isinstance(c, Parent)] == [0, 1]


def test_a_directory_is_judged_by_what_may_come() -> None:
    text = f"""policy: p
{DEFAULT}
rules:
  - {{id: root, on: read, paths: ["/srv/x/**"], user: root, action: deny}}
"""
    policy = bound(text)
    compiled = compile_policy(policy)
    assert run_move(compiled, b"/srv/x/a", b"/tmp/a").action.blocks
    assert not run_move(compiled, b"/srv/x/a", b"/srv/x/b").action.blocks
    assert Evaluator(policy).path(Operation.READ, b"/srv/x/a", None, WHATEVER).action.blocks


@pytest.mark.parametrize(
    ("facts", "need", "need_not", "blocks", "allows"),
    [
        (0b01, 0b01, 0, True, True),
        (0b00, 0b01, 0, False, False),
        (0b01, 0, 0b01, False, False),
        (0b00, 0, 0b01, True, True),
        (0b01 << UNSURE_SHIFT, 0b01, 0, True, False),
        (0b01 << UNSURE_SHIFT, 0, 0b01, True, False),
        (0b10 << UNSURE_SHIFT, 0b01, 0, False, False),  # another one is unsure
        (0b10 << UNSURE_SHIFT | 0b01, 0b11, 0, True, False),
        (0b01 << UNSURE_SHIFT | 0b01, 0b01, 0, True, True),  # true for sure
        (0b01 << UNSURE_SHIFT | 0b01, 0, 0b01, False, False),
        (WHATEVER, 0b11, 0b11, True, False),
        (WHATEVER, 0, 0, True, True),
    ],
)
def test_what_nobody_knows_holds_for_rules_that_block(
    facts: int, need: int, need_not: int, blocks: bool, allows: bool
) -> None:
    for action in Action:
        assert facts_hold(facts, need, need_not, action) is (blocks if action >= Action.HOLD else allows)


def test_a_set_of_programs_has_the_same_number_in_every_policy() -> None:
    """By it, what is known of ancestors is carried into another policy."""

    def lineage(*rules: str) -> tuple[int, ...]:
        listed = "".join(f"  - {rule}\n" for rule in rules)
        return compile_policy(bound(f"policy: p\n{DEFAULT}\nrules:\n{listed}")).lineage

    make = "{id: make, on: read, paths: [/srv/x], parent: [/bin/make, '/opt/**'], action: deny}"
    turned = "{id: again, on: write, paths: [/srv/y], except: {parent: ['/opt/**', /bin/make]}, action: deny}"
    other = "{id: cc, on: read, paths: [/srv/z], parent: /bin/cc, user: root, action: kill}"
    (one,) = lineage(make)
    assert one
    assert lineage(turned) == (one,)
    both = lineage(other, make)
    assert len(both) == 3
    assert one in both
    assert min(both) == 0  # a user is no ancestor
    assert len(set(both)) == 3


def test_conditional_rules_hide_no_other() -> None:
    """A rule that may not hold dominates nothing, and is not said never to decide."""
    text = f"""policy: p
{DEFAULT}
rules:
  - {{id: first, on: read, paths: ["/srv/**"], user: root, action: deny}}
  - {{id: second, on: read, paths: ["/srv/a/**", "/srv/a/b"], action: deny}}
  - {{id: third, on: read, paths: ["/srv/a/**"], user: root, action: deny}}
"""
    policy = bound(text)
    compiled = compile_policy(policy)
    for uid, rule in ((0, 0), (1, 1)):
        facts = Evaluator(policy).facts(Situation(uid=uid))
        assert run(compiled, Operation.READ, b"/srv/a/b", 0, facts).rule == rule
    told = [w for w in warnings(policy, compiled) if "never decide" in w]
    assert len(told) == 1
    assert "`third`" in told[0]


def test_too_many_conditions_name_the_rules() -> None:
    rules = "".join(f'  - {{id: r{i}, on: read, paths: /a{i}, user: "{i}", action: deny}}\n' for i in range(34))
    with pytest.raises(PolicyError, match=r"p.yaml:36:10: 34 distinct conditions .* 32 fit; those of `r32`, `r33`"):
        bound(f"policy: p\n{DEFAULT}\nrules:\n{rules}")


def test_a_user_must_exist_but_not_in_tests_of_the_policy(tmp_path: Path) -> None:
    text = POLICY.replace('[root, "7"]', "[no-such-user]")
    with pytest.raises(PolicyError, match=r"p.yaml:5:53: this host has no user `no-such-user`; write its number"):
        bound(text)
    (tmp_path / "who.yaml").write_text(text)
    (tmp_path / "who.test.yaml").write_text(
        "cases:\n"
        "  - {op: read, object: /etc/x, user: no-such-user, expect: deny, rule: root}\n"
        "  - {op: read, object: /etc/x, user: another, expect: allow}\n"
        "  - {op: write, object: /tmp/x, user: root, parent: /bin/make, expect: allow, rule: both}\n"
        "  - {op: write, object: /tmp/x, user: '7', parent: [/bin/make], expect: deny}\n"
    )
    assert [r.failure for r in run_cases(str(tmp_path / "who.test.yaml"))] == ["", "", "", ""]


TIMED = f"""policy: timed
{DEFAULT}
rules:
  - {{id: office, on: write, paths: ["/srv/**"], when: {{time: ["Mon-Fri 09:00-18:00 Europe/Berlin"]}}, action: allow}}
  - {{id: night, on: read, paths: ["/srv/**"], except: {{time: "Mon-Fri 09:00-18:00 Europe/Berlin"}}, action: deny}}
  - {{id: risky, on: read, paths: ["/srv/**"], when: {{risk: elevated}}, action: kill}}
"""


def test_hours_and_risk(tmp_path: Path) -> None:
    (tmp_path / "timed.yaml").write_text(TIMED)
    (tmp_path / "timed.test.yaml").write_text(
        "cases:\n"
        "  - {op: write, object: /srv/x, time: 2026-03-30 09:00 Europe/Berlin, expect: allow, rule: office}\n"
        "  - {op: write, object: /srv/x, time: 2026-03-30 09:00, expect: allow}\n"
        "  - {op: write, object: /srv/x, time: 2026-03-30 17:00, expect: deny}\n"
        "  - {op: write, object: /srv/x, expect: deny}\n"
        "  - {op: read, object: /srv/x, expect: deny, rule: night}\n"
        "  - {op: read, object: /srv/x, time: 2026-03-30 09:00, expect: allow}\n"
        "  - {op: read, object: /srv/x, time: 2026-03-30 09:00, risk: high, expect: kill}\n"
    )
    assert [r.failure for r in run_cases(str(tmp_path / "timed.test.yaml"))] == [""] * 7
    (tmp_path / "timed.test.yaml").write_text("cases:\n  - {op: read, object: /srv/x, time: noon, expect: deny}\n")
    with pytest.raises(PolicyError, match="`noon` is not a moment"):
        run_cases(str(tmp_path / "timed.test.yaml"))


def test_hours_that_nobody_knows_count_against_the_session() -> None:
    policy = bound(TIMED)
    assert [(c.unknown) for c in policy.conditions if isinstance(c, During)] == [False]
    other = bound(TIMED.replace("action: allow", "action: deny"))
    assert sorted(c.unknown for c in other.conditions if isinstance(c, During)) == [False, True]
    assert verdicts(policy, bound(TIMED)).differences == ()
    found = verdicts(policy, bound(TIMED.replace("risk: elevated", "risk: high"))).differences
    hours = "time Mon,Tue,Wed,Thu,Fri 09:00-18:00 Europe/Berlin"
    assert [(d.new.rule, d.when) for d in found] == [("night", "risk elevated"), ("", f"risk elevated, {hours}")]


MARKED = f"""policy: marked
{DEFAULT}
rules:
  - {{id: edit, on: [write, create], paths: ["/srv/**"], action: allow, marks: [edited]}}
  - {{id: test, on: exec, paths: ["**/run-tests"], action: allow, marks: [tested]}}
  - {{id: push, on: connect, cidrs: [10.0.0.1], when: {{requires: "tested since edited"}}, action: allow}}
  - {{id: gate, on: read, paths: ["/srv/out"], except: {{requires: tested}}, action: deny}}
"""


def test_marks(tmp_path: Path) -> None:
    (tmp_path / "marked.yaml").write_text(MARKED)
    (tmp_path / "marked.test.yaml").write_text(
        "cases:\n"
        "  - {op: connect, object: '10.0.0.1:1', expect: deny}\n"
        "  - {op: connect, object: '10.0.0.1:1', marks: tested, expect: allow, rule: push}\n"
        "  - {op: connect, object: '10.0.0.1:1', marks: [edited, tested], expect: allow}\n"
        "  - {op: connect, object: '10.0.0.1:1', marks: [edited, tested, edited], expect: deny}\n"
        "  - {op: read, object: /srv/out, marks: [tested, edited], expect: allow}\n"
        "  - {op: read, object: /srv/out, expect: deny, rule: gate}\n"
    )
    assert [r.failure for r in run_cases(str(tmp_path / "marked.test.yaml"))] == [""] * 6
    policy = bound(MARKED)
    compiled = compile_policy(policy)
    assert compiled.marks == ("edited", "tested")
    assert {(compiled.rules[rule].id, mask) for rule, mask in compiled.effects} == {("edit", 1), ("test", 2)}
    assert compiled.conditions == (Marked("tested"), Marked("tested", "edited"))
    (found,) = verdicts(policy, bound(MARKED.replace("tested since edited", "tested"))).differences
    assert found.when == "mark tested"


def test_too_many_marks_name_a_rule() -> None:
    rules = "".join(f"  - {{id: r{i}, on: read, paths: /a{i}, marks: m{i}, action: allow}}\n" for i in range(17))
    with pytest.raises(PolicyError, match=r"p.yaml:13:10: 17 marks, 16 fit"):
        bound(f"policy: p\n{DEFAULT}\nrules:\n{rules}")
    asked = ", ".join(f"m{i}, m{i} since m{(i + 1) % 9}" for i in range(9))
    rules = "".join(f"  - {{id: r{i}, on: read, paths: /a{i}, marks: m{i}, action: allow}}\n" for i in range(9))
    rules += f"  - {{id: all, on: read, when: {{requires: [{asked}]}}, action: deny}}\n"
    with pytest.raises(PolicyError, match=r"p.yaml:13:10: 18 distinct `requires`, 16 fit"):
        bound(f"policy: p\n{DEFAULT}\nrules:\n{rules}")


def test_an_explanation_names_what_is_not_met() -> None:
    said = explain(BOUND, Operation.WRITE, b"/tmp/x", None)
    assert said.action.word == "deny"
    assert [(m.rule, m.hole) for m in said.excepted] == [("both", "needs parent /bin/make, user root")]
    said = explain(BOUND, Operation.WRITE, b"/tmp/x", None, Situation((MAKE,), 0))
    assert said.decided_by
    assert said.decided_by.matched == "/tmp/** under /bin/make as root"


def test_a_difference_names_the_conditions_that_it_takes() -> None:
    other = bound(POLICY.replace('user: [root, "7"]', "user: root"))
    (found,) = verdicts(BOUND, other).differences
    assert (found.operation, found.old.rule, found.new.rule, found.when) == (Operation.READ, "root", "", "user 0 or 7")
    assert verdicts(BOUND, bound(POLICY.replace('[root, "7"]', '["7", "0"]'))).differences == ()


def test_its_own_file_is_open_to_an_agent_that_some_rule_lets_write_it(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    text = POLICY.replace("/tmp/**", str(tmp_path) + "/**")
    file.write_text(text)
    file.chmod(0o644)
    policy = bind_policy(load_text(text, str(file)), variables())
    assert any("lets its own agent write this file" in w for w in warnings(policy, compile_policy(policy)))
