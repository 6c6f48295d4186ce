# SPDX-License-Identifier: Apache-2.0
"""``run --tell``: what is blocked, and what waits, a line each as it happens, for agents that read their terminal."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

from agentmon.cli.common import say
from agentmon.control.client import Client
from agentmon.errors import AgentmonError
from agentmon.model.text import attempt

INTERVAL_S = 0.5
PATIENCE_S = 5.0
#: Of one look: a flood stays readable, and the summary at the end has all.
LINES = 10


class Aloud(threading.Thread):
    """Looks at one session until it is stopped; then once more. A daemon that is started anew is found again."""

    def __init__(self, socket: Path, session: str) -> None:
        super().__init__(name="aloud", daemon=True)
        self._socket, self._session = socket, session
        self._over = threading.Event()
        self._told = 0
        self._asked: set[str] = set()

    def run(self) -> None:
        """In the thread."""
        while not self._over.wait(INTERVAL_S):
            self._look()
        self._look()

    def stop(self) -> None:
        """Say what is left, and end."""
        self._over.set()
        self.join()

    def _look(self) -> None:
        with contextlib.suppress(AgentmonError), Client(self._socket, PATIENCE_S) as client:
            self._tell(client.call("why", session=self._session, limit=LINES, after=self._told))
            self._ask(client.call("approvals")["approvals"])

    def _tell(self, reply: dict[str, Any]) -> None:
        from agentmon.cli import telling

        self._told = reply["number"]
        if reply["left_out"]:
            say(f"{reply['left_out']} more were blocked")
        for line in telling.denials(reply["denials"]):
            say(line)

    def _ask(self, waiting: list[dict[str, Any]]) -> None:
        for approval in waiting:
            if approval["session"] == self._session and approval["id"] not in self._asked:
                self._asked.add(approval["id"])
                what = attempt(approval["does"], approval["object"])
                say(f"{what} waits for an answer: the owner says `agentmon approve {approval['id']}`, or `deny`")
