# SPDX-License-Identifier: Apache-2.0
"""What docs/plans.md shows is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentmon.cli.main import main
from agentmon.plan.schema import PartModel, PlanModel, StepModel
from agentmon.policy.schema import keys

TEXT = (Path(__file__).parents[3] / "docs" / "plans.md").read_text()


def test_the_plan_that_is_shown_is_drawn_as_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (plan,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "release.yaml"
    path.write_text(plan)
    assert main(["plan", "check", str(path), "--strict"]) == 0
    capsys.readouterr()
    assert main(["plan", "show", str(path)]) == 0
    assert f"$ agentmon plan show release.yaml\n{capsys.readouterr().out}```" in TEXT


@pytest.mark.parametrize("key", sorted({*keys(PlanModel), *keys(StepModel), *keys(PartModel)}))
def test_each_key_is_told_of(key: str) -> None:
    assert re.search(rf"^\| .*`{key}`.* \|", TEXT, re.MULTILINE)
