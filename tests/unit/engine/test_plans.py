# SPDX-License-Identifier: Apache-2.0
"""Where a session is in its plan, and what people are told of it."""

from __future__ import annotations

import pytest

from agentmon.engine.plans import PlanView, Progress, states_of
from agentmon.model.events import ProcessKey, StepEvent, Stepping
from agentmon.model.operations import Reason
from agentmon.model.plans import OUTSIDE, StepState
from agentmon.plan.bind import bind_plan, compile_plan
from agentmon.plan.load import load_text
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.rules import Variables

BOUND = bind_plan(
    load_text(
        """
plan: p
steps:
  - {id: fetch, starts: mark}
  - {id: build, starts: mark, needs: fetch, on-violation: pause}
  - {id: push, starts: mark, needs: [fetch, build]}
""",
        "p.yaml",
    ),
    Variables.of(workspace="/w", home="/home/me", user="me"),
)
COMPILED = compile_plan(BOUND)


def view() -> PlanView:
    return PlanView(COMPILED, lambda step: Evaluator(BOUND.parts[step]))  # type: ignore[arg-type, return-value]


def stepped(what: Stepping, step: int, status: int = 0) -> StepEvent:
    return StepEvent(1, ProcessKey(10, 20), 0, 1, what, step, None, status)


def test_why_a_step_may_not_begin_names_what_is_left() -> None:
    progress = Progress()
    said = "step push may not begin yet: it comes after "
    assert progress.why(view(), 2, Reason.PLAN_ORDER) == f"{said}fetch, build"
    assert progress.stepped(stepped(Stepping.BEGAN, 0)) == "began"
    assert progress.why(view(), 2, Reason.PLAN_ORDER) == f"{said}fetch, build"
    progress.stepped(stepped(Stepping.DONE, 0))
    assert progress.why(view(), 2, Reason.PLAN_ORDER) == f"{said}build"
    assert progress.stepped(stepped(Stepping.FAILED, 1, 3)) == "failed"
    assert progress.why(view(), 2, Reason.PLAN_ORDER) == f"{said}build"


@pytest.mark.parametrize(
    ("step", "reason", "text"),
    [
        (OUTSIDE, Reason.PLAN_CLOSED, "it is of no step of the plan, and outside of them it is not allowed"),
        (1, Reason.PLAN_RULE, "step build forbids this"),
        (0, Reason.PLAN_BYTES, "step fetch has written as much as it may"),
        (0, Reason.PLAN_TIME, "step fetch has had its time"),
    ],
)
def test_why_something_is_forbidden_names_the_step(step: int, reason: Reason, text: str) -> None:
    assert Progress().why(view(), step, reason) == text


def test_who_pauses() -> None:
    assert [view().pauses(step) for step in (0, 1, 2, OUTSIDE)] == [False, True, False, False]


def test_where_each_step_is() -> None:
    def state(**known: object) -> StepState:
        none = {"done": False, "ended": False, "begun": False, "alive": 0, "status": 0, "began_ns": 0, "written": 0}
        return StepState(**{**none, "files": 0, **known})  # type: ignore[arg-type]

    first = state(done=True, ended=True, begun=True)
    words = [
        [step["state"] for step in states_of(COMPILED, states)]
        for states in (
            (state(), state(), state()),
            (first, state(), state()),
            (first, state(begun=True, alive=2), state()),
            (first, state(begun=True, ended=True, status=3), state()),
            (first, first, state()),
        )
    ]
    assert words == [
        ["enabled", "waiting", "waiting"],
        ["done", "enabled", "waiting"],
        ["done", "active", "waiting"],
        ["done", "failed", "waiting"],
        ["done", "done", "enabled"],
    ]
    assert Progress.of((first, state(ended=True), state())).ended == 0b11
