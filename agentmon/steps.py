# SPDX-License-Identifier: Apache-2.0
"""For agents in Python: a step of the session's plan that this very process does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """This process is in the step, with all its threads and all that it starts, until the block ends.

    A block that raises ends it with status 1, which does not count as done unless the plan says so. Outside of any
    fence (no ``AGENTMON_SOCKET``) it does nothing, so that the same code runs without agentmon.

    Args:
        name: the step's id in the plan; it has to start with ``mark``.

    Raises:
        agentmon.errors.AgentmonError: it is not its turn, there is no such step, or nobody answers; the message says
            which. Then nothing of the block was run.
    """
    socket = os.environ.get("AGENTMON_SOCKET")
    if not socket:
        yield
        return
    _mark(socket, name, ends=False, status=0)
    status = 1
    try:
        yield
        status = 0
    finally:
        _mark(socket, name, ends=True, status=status)


def _mark(socket: str, name: str, *, ends: bool, status: int) -> None:
    from agentmon.control.client import Client

    with Client(Path(socket)) as client:
        client.call("step", name=name, ends=ends, status=status)
