# SPDX-License-Identifier: Apache-2.0
"""Fuzz the plan loader and compiler with atheris: ``./dev fuzz plan --seconds 600``.

Starts from the plans in ``docs``. What breaks is left in ``build/fuzz`` (``plan-crash-…``): add it to
``tests/unit/plan/test_fuzz.py`` as an example.
"""

from __future__ import annotations

import atheris

with atheris.instrument_imports(include=["agentmon.plan", "agentmon.policy", "agentmon.model"]):
    from tests.support.fuzzing import judge_plan

from agentmon.plan.schema import PlanModel, StartModel, StepModel
from agentmon.policy.schema import ACTION_WORDS, OPERATION_WORDS, RuleModel, keys
from tests.fuzz._run import run
from tests.support.fuzzing import PLANS

WORDS = (
    *keys(PlanModel), *keys(StepModel), *keys(StartModel), *RuleModel.model_fields, *OPERATION_WORDS, *ACTION_WORDS,
    "starts: mark", "10MiB", "1h", "any", "0", "64", "kill", "pause", "{workspace}", "**/git", "{a,b}", "[!a-z]",
    "example.org:443", "- ", ": ", "&a ", "*a", "!!", "<<", "|\\x0a", "\\xff",
)  # fmt: skip

if __name__ == "__main__":
    run("plan", judge_plan, PLANS, WORDS)
