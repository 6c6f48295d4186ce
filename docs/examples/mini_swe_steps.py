# SPDX-License-Identifier: Apache-2.0
"""mini-swe-agent: what the model's commands do is of the steps of an agentmon plan.

    sudo agentmon run --plan mini_swe_steps.yaml -- python3 my_agent.py

Each command runs in a shell of its own, so programs start the steps by themselves, and nothing has to be changed. This
environment is for the rest: it says when the model begins a part of its task (`phase`), and tells it why a command was
refused, so that it can go on with what is due.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minisweagent.environments.local import LocalEnvironment

import agentmon

#: Statuses of a shell whose command could not be run, or was killed.
REFUSED = (126, 128 + 9, -9, -1)


class SteppedEnvironment(LocalEnvironment):
    """Runs commands here, in the step of the plan that was begun last."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Commands in this block are in a step. Raises `AgentmonError` if it is not due."""
        with agentmon.step(name):
            yield

    def execute(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As ever; after what looks like a refusal, how to find out more."""
        result = super().execute(*args, **kwargs)
        if result["returncode"] in REFUSED:
            result["output"] += "\n(If that was refused, `agentmon why` says why, and which step is due.)\n"
        return result
