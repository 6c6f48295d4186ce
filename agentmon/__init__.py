# SPDX-License-Identifier: Apache-2.0
"""agentmon: a host runtime monitor that keeps AI agents inside a fence, decided in the kernel.

``with agentmon.step("fetch"):`` marks a step of the session's plan, see `agentmon.steps`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentmon.steps import step as step

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "step":  # every start of `agentmon` would pay for it
        from agentmon.steps import step

        return step
    raise AttributeError(f"module `agentmon` has no `{name}`")
