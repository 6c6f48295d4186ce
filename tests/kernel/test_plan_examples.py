# SPDX-License-Identifier: Apache-2.0
"""The examples do what they say, where their packages are installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.hosts import REPOSITORY, Host

EXAMPLES = REPOSITORY / "docs" / "examples"


def run(host: Host, plan: Path, *command: str | Path) -> tuple[str, str, list[tuple[str, str]]]:
    """Standard output, standard error, and what became of which step."""
    policy = host.policy("  []\n", "open")
    done = host.agentmon("run", "-p", policy, "--plan", plan, "--", *command)
    found = [json.loads(line) for line in host.agentmon("audit", "log", "--json").stdout.splitlines()]
    session = [r for r in found if r["operation"] == "enrolled"][-1]["session"]
    steps = [(r["operation"], r["object"]) for r in found if r["kind"] == "step" and r["session"] == session]
    return done.stdout, done.stderr, steps


@pytest.mark.parametrize("name", ["langgraph_steps", "mini_swe_steps"])
def test_the_plans_are_valid(served: Host, name: str) -> None:
    done = served.agentmon("plan", "check", EXAMPLES / f"{name}.yaml")
    assert done.returncode == 0, done.stderr


def test_the_nodes_of_a_graph_are_steps(served: Host) -> None:
    pytest.importorskip("langgraph")
    script = EXAMPLES / "langgraph_steps.py"
    out, err, steps = run(served, EXAMPLES / "langgraph_steps.yaml", sys.executable, script)
    assert out == "fetched\nreport on 1 thing(s)\n", err
    assert steps == [("began", "fetch"), ("done", "fetch"), ("began", "report"), ("done", "report")]


def test_commands_of_an_agent_are_in_its_phase(served: Host) -> None:
    pytest.importorskip("minisweagent")
    code = f"""
import sys
sys.path[:0] = [{str(EXAMPLES)!r}]
from mini_swe_steps import SteppedEnvironment
environment = SteppedEnvironment()
with environment.phase("edit"):
    print(environment.execute({{"command": "echo in it"}})["output"], end="")
"""
    out, err, steps = run(served, EXAMPLES / "mini_swe_steps.yaml", sys.executable, "-c", code)
    assert "in it\n" in out, err
    assert steps == [("began", "edit"), ("done", "edit")]
