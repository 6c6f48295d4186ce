# SPDX-License-Identifier: Apache-2.0
"""Plan files: what is understood, and what people are told of mistakes."""

from __future__ import annotations

import pytest

from agentmon.errors import PolicyError
from agentmon.model.operations import Operation
from agentmon.plan.bind import bind_plan
from agentmon.plan.check import order, warnings
from agentmon.plan.load import load_text
from agentmon.plan.plan import OnViolation, Plan
from agentmon.policy.rules import Variables

PLAN = """
plan: release
description: fetch, build, test and push
on-violation: kill
agent:
  hosts: [api.example.com:443]
  rules:
    - {id: shell, on: exec, exe: /bin/bash, action: allow}
steps:
  - id: push
    needs: [build, lint]
    starts: [{exe: "**/git", argv: [push, "**"]}, mark]
    once: true
    hosts: git.example.com:443
    on-violation: pause
  - id: build
    needs: fetch
    starts: {exe: "**/make"}
    no-network: yes
    timeout: 10min
    repeat: true
    exit: [0, 2]
    max-procs: 40
  - id: lint
    needs: [fetch]
    starts: {exe: ["**/ruff", "**/mypy"]}
    read-only: true
    exit: any
  - id: fetch
    starts: {exe: "**/git", argv: [clone, "**"]}
    max-write: 200MiB
    max-files: 5000
"""


def load(text: str) -> Plan:
    return load_text(text, "p.yaml")


def complaints(text: str) -> list[str]:
    with pytest.raises(PolicyError) as error:
        load(text)
    return str(error.value).splitlines()


def test_a_plan_is_understood() -> None:
    plan = load(PLAN)
    assert (plan.name, plan.on_violation) == ("release", OnViolation.KILL)
    push, build, lint, fetch = plan.steps
    assert [start.text for start in push.starts] == ["**/git push **", "mark"]
    assert push.needs == ("build", "lint")
    assert (push.once, push.on_violation) == (True, OnViolation.PAUSE)
    assert build.needs == ("fetch",)
    assert (build.part.no_network, build.repeat, build.limits.timeout_s, build.limits.max_procs) == (
        True,
        True,
        600,
        40,
    )
    assert build.exits == {0, 2}
    assert build.on_violation is OnViolation.KILL
    assert (lint.part.read_only, lint.exits) == (True, None)
    assert (fetch.exits, fetch.limits.max_write_bytes, fetch.limits.max_files) == ({0}, 200 << 20, 5000)
    assert plan.agent.rules[0].operations == (Operation.EXEC,)
    assert [step.id for step in order(plan.steps)] == ["fetch", "build", "lint", "push"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("[]", "p.yaml:2:1: `steps` is empty; add a step: `- id: NAME`"),
        ("3", "p.yaml:2:8: `steps` must be a list, not `3`; start each item with `- `"),
        ("[3]", "p.yaml:2:9: a step must be a mapping of keys, not `3`; write `key: value`, a line each"),
        ("[{id: a}]", "step `a` has no way to start; add `starts: {exe: …}` or `starts: mark`"),
        ("[{starts: mark}]", "`id` is missing; add `id: …`"),
        ("[{id: a, starts: }]", "`starts` is empty; name a program"),
        ("[{id: a, starts: '**/git'}]", 'is no way to start; write a program as `{exe: "**/git"}`, or `mark`'),
        ("[{id: a, starts: [mark, Mark]}]", 'is no way to start; write a program as `{exe: "**/git"}`, or `mark`'),
        ("[{id: a, starts: mark, max-write: }]", "`max-write` is empty; give it a value, or leave it out"),
        ("[{id: a, starts: mark, max-files: }]", "`max-files` is empty; give it a value, or leave it out"),
        ("[{id: a, starts: mark, max-procs: }]", "`max-procs` is empty; give it a value, or leave it out"),
        ("[{id: a, starts: mark, timeout: null}]", "`timeout` is empty; give it a value, or leave it out"),
        ("[{id: a, starts: mark, on-violation: }]", "`on-violation` is empty; give it a value, or leave it out"),
        ("[{id: a, starts: {argv: [x]}}]", "a way to start names its program; add `exe`, or write `mark`"),
        ("[{id: a, starts: {exe: /x, mark: true}}]", "a mark is no program; write two ways"),
        ("[{id: a, starts: {exe: git}}]", "p.yaml:2:31: in `git`: a pattern starts with `/`, `~`"),
        ("[{id: a, starts: {exe: /x, argv: ['**x']}}]", "in `**x`: `**` stands alone"),
        ("[{id: a, starts: {exa: /x}}]", "unknown key `exa`; did you mean `exe`?"),
        ("[{id: a, starts: mark, needs: b}]", "p.yaml:2:38: no step `b`; none is known, so leave it out"),
        ("[{id: a, starts: mark, needs: a}]", "step `a` needs itself, so it could never begin; take it out"),
        ("[{id: abc, starts: mark}, {id: b, starts: mark, needs: abd}]", "no step `abd`; did you mean `abc`?"),
        ("[{id: a, starts: mark}, {id: a, starts: mark}]", "step `a` is already there at p.yaml:2:14; rename one"),
        ("[{id: a, starts: mark, exit: []}]", "`exit` names no status, so the step would never be done"),
        ("[{id: a, starts: mark, exit: 256}]", "`256` is no exit status; write numbers from 0 to 255"),
        ("[{id: a, starts: mark, exit: [any, 1]}]", "`any` is no exit status"),
        ("[{id: a, starts: mark, max-write: 10X}]", "`10X` is not an amount of bytes; write such as `64KiB`"),
        ("[{id: a, starts: mark, max-files: many}]", "`many` is not a number; write such as `20`"),
        ("[{id: a, starts: mark, timeout: 10}]", "`10` is not a time; write such as `90s`"),
        ("[{id: a, starts: mark, on-violation: kil}]", "unknown `on-violation: kil`; did you mean `kill`?"),
        ("[{id: a, starts: mark, on_violation: kill}]", "unknown key `on_violation`; did you mean `on-violation`?"),
        ("[{id: a, starts: mark, hosts: 10.0.0.1}]", "`10.0.0.1` is an address; allow it in a rule, by `cidrs`"),
        ("[{id: a, starts: mark, hosts: []}]", "`hosts` is empty; write `no-network: true`, or name a host"),
        ("[{id: a, starts: mark, hosts: }]", "`hosts` is empty; write `no-network: true`, or name a host"),
        ("[{id: a, starts: {exe: }}]", "`exe` is empty; name a program such as `**/git`"),
        ("[{id: a, starts: mark, default: {wriet: deny}}]", "unknown operation `wriet`; did you mean `write`?"),
        ("[{id: a, starts: mark, default: {write: hold}}]", "`hold` is no default of a plan; write `allow`"),
        ("[{id: a, starts: mark, rules: [{id: r, on: reed, action: allow}]}]", "unknown operation `reed`"),
        ("[{id: a, starts: mark, rules: [{id: r, on: read}]}]", "`action` is missing; add `action: …`"),
        ("[{id: a, starts: mark, rules: [{id: starts, on: read, action: deny}]}]", "`starts` is what records call"),
        ("[{id: a, starts: mark, rules: [{id: r, on: read, action: allow, marks: m}]}]", "a plan's rules set no marks"),
        ("[{id: a, starts: mark, rules: [{id: r, on: read, action: allow, when: {rate: 1/s}}]}]", "`rate` is the"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_place_and_a_remedy(steps: str, said: str) -> None:
    (complaint,) = complaints(f"plan: p\nsteps: {steps}\n")
    assert said in complaint
    assert complaint.startswith("p.yaml:2:")


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ("once: true, repeat: true", "`once` and `repeat` contradict each other; keep one"),
        ("read-only: true, max-write: 1M", "`read-only` leaves nothing to write, so `max-write` says nothing"),
        ("read-only: true, max-files: 3", "`read-only` leaves no file to change"),
        ("max-files: 0", "`max-files: 0` is `read-only: true`; write that"),
        ("max-procs: 0", "`max-procs: 0` leaves no room for the step itself"),
        ("timeout: 0s", "`timeout: 0` is over before it begins"),
        ("no-network: true, hosts: a.example", "`no-network` and `hosts` contradict each other"),
        ("read-only: true, rules: [{id: w, on: create, action: allow}]", "`read-only` contradicts rule `w`, which"),
        ("no-exec: true, rules: [{id: w, on: exec, action: audit}]", "`no-exec` contradicts rule `w`, which allows `e"),
        ("no-network: true, default: {bind: allow}", "`no-network` contradicts `default: {bind: allow}`"),
        ("hosts: a.example, rules: [{id: w, on: connect, action: kill}]", "`hosts` contradicts rule `w`, which denies"),
        ("hosts: a.example, default: {connect: allow}", "`hosts` says nothing beside `default: {connect: allow}`"),
    ],
)  # fmt: skip
def test_contradictory_constraints_are_refused(constraints: str, said: str) -> None:
    (complaint,) = complaints(f"plan: p\nsteps:\n  - {{id: a, starts: mark, {constraints}}}\n")
    assert "step `a`: " + said in complaint
    assert complaint.startswith("p.yaml:3:")


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ("read-only: true, rules: [{id: w, on: create, action: allow}]", "`read-only` contradicts rule `w`, which"),
        ("no-network: true, hosts: a.example", "`no-network` and `hosts` contradict each other; keep one"),
        ("hosts: a.example, rules: [{id: w, on: [connect, send], action: deny}]", "`hosts` contradicts rule `w`"),
    ],
)
def test_what_the_agent_may_outside_of_steps_is_no_contradiction_either(constraints: str, said: str) -> None:
    (complaint,) = complaints(f"plan: p\nagent: {{{constraints}}}\nsteps: [{{id: a, starts: mark}}]\n")
    assert complaint.startswith("p.yaml:2:")
    assert "`agent`: " + said in complaint


def test_constraints_that_go_together_are_not_refused() -> None:
    load("plan: p\nsteps:\n  - {id: a, starts: mark, read-only: true, max-write: 0, no-exec: true, max-procs: 1}\n")
    load("plan: p\nsteps:\n  - {id: a, starts: mark, read-only: true, rules: [{id: r, on: write, action: deny}]}\n")
    load(
        "plan: p\nsteps:\n  - {id: a, starts: mark, hosts: a.example,"
        " rules: [{id: r, on: connect, cidrs: [10.0.0.0/8], action: deny}]}\n"
    )


def test_a_circle_is_drawn_and_what_waits_for_it_is_named() -> None:
    text = """
plan: p
steps:
  - {id: a, starts: mark, needs: c}
  - {id: b, starts: mark, needs: a}
  - {id: c, starts: mark, needs: [b, e]}
  - {id: d, starts: mark, needs: b}
  - {id: e, starts: mark}
  - {id: f, starts: mark, needs: [g, e]}
  - {id: g, starts: mark, needs: f}
"""
    assert complaints(text) == [
        "p.yaml:4:34: steps wait for each other: a → b → c → a; take one of them out",
        "p.yaml:7:10: step `d` is unreachable: it waits for that circle; mend it first",
        "p.yaml:9:35: steps wait for each other: f → g → f; take one of them out",
    ]


def test_all_mistakes_are_told_at_once() -> None:
    text = """
plan: p
on-violation: dney
agent: {hots: x, rules: [{id: r, on: reed, action: allow}]}
steps:
  - {id: a, starts: mark, max-write: 1X, neds: b}
  - {id: b, starts: {exe: x}, needs: nobody}
  - {id: c, starts: mark, once: 3}
"""
    lines = [complaint.split(": ")[0] for complaint in complaints(text)]
    assert lines == ["p.yaml:3:15", "p.yaml:4:9", "p.yaml:4:38", "p.yaml:6:38", "p.yaml:6:42", "p.yaml:7:27",
                     "p.yaml:7:38", "p.yaml:8:33"]  # fmt: skip


def test_no_more_steps_than_there_are_bits() -> None:
    steps = [f"  - {{id: s{i}, starts: mark}}" for i in range(65)]
    load("\n".join(["plan: p", "steps:", *steps[:64]]))
    (complaint,) = complaints("\n".join(["plan: p", "steps:", *steps]))
    assert complaint.startswith("p.yaml:67:10: 65 steps, 64 fit")
    ways = ", ".join(["{exe: /x}"] * 129)
    (complaint,) = complaints(f"plan: p\nsteps: [{{id: a, starts: [{ways}]}}]")
    assert "more than 128 ways to start" in complaint


def test_what_is_probably_not_meant_is_warned_of() -> None:
    text = """
plan: p
steps:
  - {id: a, starts: {exe: "**"}, read-only: true}
  - {id: b, starts: mark, needs: a}
  - {id: c, starts: mark, needs: [a, b], no-network: true}
"""
    assert list(warnings(load(text))) == [
        (
            "p.yaml:1:1: outside of all steps the agent may reach no host, not even its model's; name it with"
            " `agent: {hosts: [api.example.com:443]}`"
        ),
        "p.yaml:4:21: any program starts step `a`; name it, such as `**/git`",
        "p.yaml:5:10: step `b` may do whatever the policy allows; say what it may, or `read-only: true`",
        "p.yaml:6:10: step `c` waits for `a` by another step already; leave it out",
    ]
    assert list(warnings(load(PLAN))) == []


def test_rules_of_a_step_that_forbid_what_others_allow_are_warned_of() -> None:
    text = """
plan: p
agent: {hosts: "a.example.com:443"}
steps:
  - id: a
    starts: mark
    rules:
      - {id: may, on: write, paths: /srv/x/**, action: allow}
      - {id: not, on: write, paths: /srv/**, action: deny}
      - {id: other, on: write, paths: /home/**, action: allow}
"""
    bound = bind_plan(load(text), Variables(b"/w", b"/home/a", b"a"))
    assert list(warnings(bound.plan, (*bound.parts, bound.agent))) == [
        (
            "p.yaml:8:14: rule `may` can never decide: whatever it matches, `not` (deny, p.yaml:9) decides first;"
            " drop it, or carve a hole with `except` in the other"
        )
    ]
