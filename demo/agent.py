# SPDX-License-Identifier: Apache-2.0
"""The agent, run inside the fence: mini-swe-agent as published, with its scripted model.

Imports nothing of agentmon: it neither knows of the fence nor helps it.
Tells its steps on stdout, one JSON object a line.
"""

import json
import sys
import time

from minisweagent.agents.default import DefaultAgent  # type: ignore[import-not-found]
from minisweagent.environments.local import LocalEnvironment  # type: ignore[import-not-found]
from minisweagent.models.test_models import DeterministicModel, make_output  # type: ignore[import-not-found]


class Told(LocalEnvironment):  # type: ignore[misc]
    """The local environment, which says what it runs and how that ended."""

    number = -1

    def execute(self, action: dict[str, str], *args: object, **options: object) -> dict[str, object]:
        self.number += 1
        time.sleep(pause_seconds)
        told: dict[str, object] = {"step": self.number, "begin_ns": time.time_ns()}
        status, output = 0, ""  # the last step ends the run by an exception
        try:
            result: dict[str, object] = super().execute(action, *args, **options)
            status, output = result["returncode"], result["output"] or result["exception_info"]  # type: ignore[assignment]
            return result
        finally:
            print(json.dumps({**told, "end_ns": time.time_ns(), "status": status, "output": output}), flush=True)


with open(sys.argv[1], encoding="utf-8") as file:
    plan = json.load(file)
pause_seconds = float(plan["pause_seconds"])
model = DeterministicModel(
    outputs=[make_output(step["thought"], [{"command": step["command"]}], cost=0.0) for step in plan["steps"]]
)
agent = DefaultAgent(
    model,
    Told(timeout=120),
    system_template="You are a software engineer. You work in a shell.",
    instance_template="Solve this issue: {{task}}",
)
ended = agent.run(plan["task"])
print(json.dumps({"agent": ended.get("exit_status", "")}), flush=True)
