# SPDX-License-Identifier: Apache-2.0
"""Whatever a plan becomes by mistakes: it loads and compiles, or there are clear errors with their lines, soon."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmon.plan.schema import PlanModel, StartModel, StepModel
from agentmon.policy.schema import RuleModel, keys
from tests.support.fuzzing import PLANS, judge_plan

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEYS = st.sampled_from([*keys(PlanModel), *keys(StepModel), *keys(StartModel), *keys(RuleModel), ""])
ODD = [
    "any",
    "mark",
    "0",
    "-1",
    "65",
    "256",
    "10MiB",
    "1h",
    "1e9",
    "{a,b}",
    "/**",
    "[!a-z",
    "{workspace}/**",
    "~",
    "no",
]
SCALARS = st.one_of(st.sampled_from(["", *ODD]), st.text(max_size=8), st.none(), st.booleans(), st.integers())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=8,
)


def written(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False, indent=1).encode("utf-8", "replace")


def test_what_the_fuzzer_found_has_a_remedy() -> None:
    step = {"id": "s", "starts": "mark"}
    both = [
        {"no-network": True, "hosts": "a.example"}, {"once": True, "repeat": True}, {"timeout": "0min"},
        {"max-files": "0"}, {"max-procs": "0"}, {"needs": "r", "after": "r"},
    ]  # fmt: skip
    assert not any(judge_plan(written({"plan": "p", "steps": [step | keys]})) for keys in both)


def test_the_documented_plans_are_sound() -> None:
    assert [judge_plan(text) for text in PLANS] == [True] * len(PLANS)


@given(st.sampled_from(PLANS), st.data())
@QUICK
def test_plans_of_which_bytes_are_changed(text: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text) - 1))
    marks = st.sampled_from([bytes([b]) for b in b"\t\n :-[]{}'\"&*!|#,%@"])
    judge_plan(
        text[:at] + data.draw(st.one_of(marks, st.binary(max_size=6))) + text[at + data.draw(st.integers(0, 6)) :]
    )


@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=3), VALUES)
@QUICK
def test_steps_of_any_data(steps: Any, agent: Any) -> None:
    judge_plan(written({"plan": "p", "steps": [{"id": f"s{i}", "starts": "mark", **s} for i, s in enumerate(steps)]}))
    judge_plan(written({"plan": "p", "agent": agent, "steps": steps}))
