# SPDX-License-Identifier: Apache-2.0
"""``agentmon plan``: output, JSON and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmon.cli.main import main

PLAN = """
plan: release
description: fetch and build
agent: {hosts: [api.example.com:443]}
steps:
  - {id: fetch, starts: {exe: "**/git", argv: [clone, "**"]}, max-write: 1MiB}
  - {id: build, needs: fetch, starts: {exe: "**/make"}, no-network: true}
"""


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "release.yaml"
    path.write_text(PLAN)
    return str(path)


def test_a_good_plan(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "check", plan]) == 0
    out, err = capsys.readouterr()
    assert out == "release: ok, 2 steps, 2 programs to start them, 0 rules\n"
    assert err == ""


def test_a_bad_plan_is_told_as_compilers_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("plan: p\nsteps:\n  - {id: a, starts: mark, needs: b}\n")
    assert main(["plan", "check", str(path), "--json"]) == 3
    out, err = capsys.readouterr()
    assert err == f"{path}:3:34: no step `b`; none is known, so leave it out\n"
    assert json.loads(out)["exit"] == 3
    assert main(["plan", "show", str(path)]) == 3
    assert main(["plan", "check", str(tmp_path / "none.yaml")]) == 3
    assert "cannot read plan" in capsys.readouterr().err


def test_warnings_count_if_one_is_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("plan: p\nsteps:\n  - {id: a, starts: mark, read-only: true}\n")
    assert main(["plan", "check", str(path)]) == 0
    assert "may reach no host" in capsys.readouterr().err
    assert main(["plan", "check", str(path), "--strict"]) == 3


def test_a_plan_is_drawn(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "show", plan]) == 0
    assert capsys.readouterr().out == (
        "release: fetch and build\n"
        "● fetch  **/git clone **  [max-write 1048576 B]\n"
        "● build  **/make  [no-network]\n"
        "outside of the steps: hosts api.example.com:443\n"
    )
    assert main(["plan", "show", plan, "--dot"]) == 0
    assert '"fetch" -> "build"' in capsys.readouterr().out
    assert main(["plan", "show", plan, "--svg"]) == 0
    assert capsys.readouterr().out.startswith("<svg ")
    assert main(["plan", "show", plan, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [step["needs"] for step in shown["steps"]] == [[], ["fetch"]]
    assert shown["steps"][0]["max_write_bytes"] == 1 << 20
