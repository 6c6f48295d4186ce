# SPDX-License-Identifier: Apache-2.0
"""A policy and a plan for the kernel: each part says what it says alone, and numbers mean the same everywhere."""

from __future__ import annotations

import pytest

from agentmon.errors import PolicyError
from agentmon.model.operations import Action, Operation
from agentmon.model.plans import MAX_STEPS
from agentmon.plan.bind import bind_plan
from agentmon.plan.fence import Fenced
from agentmon.plan.load import load_text as load_plan
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.fast import FastEvaluator
from agentmon.policy.load import load_text
from agentmon.policy.rules import Variables

HERE = Variables.of(workspace="/w", home="/home/me", user="me")
POLICY = """
policy: mine
default: {read: allow, write: deny, connect: allow}
rules:
  - {id: work, on: [write, create], paths: ["{workspace}/**"], action: allow}
  - {id: keys, on: read, paths: ["~/.ssh/**"], action: deny}
  - {id: by-git, on: write, paths: ["~/.git/**"], exe: ["**/git"], action: allow}
"""
PLAN = """
plan: p
agent: {rules: [{id: notes, on: write, paths: ["/w/notes"], action: allow}]}
steps:
  - {id: a, starts: {exe: "**/a"}, read-only: true}
  - {id: b, starts: [{exe: "**/b", argv: [x, "**"]}, mark], needs: a, read-only: true}
  - id: c
    starts: {exe: "**/c"}
    after: b
    no-network: true
    rules:
      - {id: out, on: [write, create], paths: ["/w/out/**"], action: allow}
      - {id: logs, on: write, paths: ["/w/out/log"], exe: ["**/make"], action: deny}
"""
PATHS = [b"/w/x", b"/w/notes", b"/w/out/f", b"/w/out/log", b"/home/me/.ssh/id", b"/home/me/.git/x", b"/dev/null"]
PROGRAMS = [b"/bin/a", b"/usr/bin/git", b"/usr/bin/make"]


def fenced(policy: str = POLICY, plan: str = PLAN) -> Fenced:
    return Fenced(load_text(policy, "policy.yaml"), load_plan(plan, "plan.yaml"), HERE)


def test_each_part_says_what_it_says_alone() -> None:
    both = fenced()
    compiled = both.compile()
    assert compiled.plan is not None
    alone = bind_plan(load_plan(PLAN, "plan.yaml"), HERE)
    whole = Evaluator(load_text(POLICY, "policy.yaml"), HERE)
    tags = FastEvaluator(compiled).exe_tags
    for number, part in enumerate((*alone.parts, alone.agent)):
        reference = Evaluator(part)
        judge = FastEvaluator(compiled.plan.parts[compiled.plan.part_of[number]])
        for operation in (Operation.READ, Operation.WRITE, Operation.CREATE, Operation.DELETE):
            for path in PATHS:
                for exe in PROGRAMS:
                    said = judge.path(operation, path, tags(exe))
                    wanted = reference.path(operation, path, exe)
                    assert said.action is wanted.action, (number, operation, path, exe)
                    if wanted.rule < len(part.rules):
                        assert compiled.rules[said.rule].id == part.rules[wanted.rule].rule.id
                    expected = whole.path(operation, path, exe)
                    assert FastEvaluator(compiled).path(operation, path, tags(exe)).action is expected.action
        packed = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1])
        assert judge.net(Operation.CONNECT, packed, 443).action is reference.net(Operation.CONNECT, packed, 443).action


def test_equal_parts_are_one_and_ways_know_their_steps() -> None:
    tables = fenced().compile().plan
    assert tables is not None
    assert tables.part_of == (0, 0, 1, 2)
    assert tables.compiled.ways == (0, 1, 2)
    assert tables.wanted == 0b10
    [ways] = tables.ways
    assert [FastEvaluator(ways).exe_tags(path) for path in (b"/x/a", b"/x/b", b"/x/d")] == [1, 2, 0]


def test_what_the_policy_only_observes_the_plan_does_not() -> None:
    both = fenced(POLICY.replace("policy: mine", "policy: mine\nmode: observe"))
    assert Evaluator(both.policy).path(Operation.READ, b"/home/me/.ssh/id").action is Action.ALLOW
    assert Evaluator(both.policy).path(Operation.WRITE, b"/etc/x").action is Action.ALLOW
    assert both.policy.observed is not None
    assert Evaluator(both.policy.observed).path(Operation.READ, b"/home/me/.ssh/id").action is Action.DENY
    assert Evaluator(both.parts[0]).path(Operation.WRITE, b"/w/x").action is Action.DENY


def test_the_control_socket_is_reached_from_each_part() -> None:
    plan = PLAN.replace("no-network: true", "default: {unix: deny}")
    socket = b"/run/agentmon/control.sock"
    both = Fenced(load_text(POLICY, "policy.yaml"), load_plan(plan, "plan.yaml"), HERE, control=socket)
    assert [Evaluator(part).path(Operation.UNIX, socket).action for part in both.parts] == [Action.ALLOW] * 4
    assert Evaluator(both.parts[2]).path(Operation.UNIX, b"/run/other").action is Action.DENY


def test_ways_beyond_a_word_have_tables_of_their_own() -> None:
    steps = "".join(
        f"  - {{id: s{i}, starts: [{{exe: '/bin/x{i}'}}, {{exe: '/bin/y{i}'}}]}}\n" for i in range(MAX_STEPS)
    )
    tables = fenced(plan=f"plan: p\nsteps:\n{steps}").compile().plan
    assert tables is not None
    assert len(tables.ways) == 2
    assert FastEvaluator(tables.ways[1]).exe_tags(b"/bin/x32") == 1
    assert len(tables.parts) == 2


def test_what_does_not_fit_both_is_refused_with_its_place() -> None:
    rules = "".join(
        f'      - {{id: r{i}, on: read, paths: ["/w/{i}"], exe: ["/bin/p{i}"], action: deny}}\n' for i in range(70)
    )
    plan = f'plan: p\nsteps:\n  - id: a\n    starts: {{exe: "**/a"}}\n    rules:\n{rules}'
    with pytest.raises(PolicyError, match=r"plan\.yaml:.*64 fit"):
        fenced(plan=plan)
