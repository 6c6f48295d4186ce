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
from agentmon.errors import AgentmonError


class SteppedEnvironment(LocalEnvironment):
    """Runs commands here, in the step of the plan that was begun last."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Commands in this block are in a step. Raises `AgentmonError` if it is not due."""
        with agentmon.step(name):
            yield

    def execute(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As ever; what was refused says so in its output."""
        try:
            return super().execute(*args, **kwargs)
        except (PermissionError, AgentmonError) as error:
            return {"output": f"refused: {error}; `agentmon why` tells more", "returncode": 126}
