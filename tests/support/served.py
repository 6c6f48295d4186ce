# SPDX-License-Identifier: Apache-2.0
"""A control socket that a test serves itself, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentmon.control.protocol import Peer, encode
from agentmon.control.server import Connection, Server
from agentmon.model.records import Record


class Loop:
    """A server in a thread of its own."""

    def __init__(self, path: Path, handle: Callable[[Connection, Peer, str, dict[str, Any]], dict[str, Any]]) -> None:
        self.loop = asyncio.new_event_loop()
        self.server = Server(path, handle)
        ready = threading.Event()

        def run() -> None:
            async def start() -> None:
                self.server.start()
                ready.set()

            self.loop.run_until_complete(start())
            self.loop.run_forever()

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert ready.wait(10)

    def call(self, function: Callable[[], None]) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(10)

    def stop(self) -> None:
        async def stop() -> None:
            self.server.stop()

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


class Daemon:
    """Answers what the live view asks, from what the test puts here. ``told`` is what it was told to do."""

    def __init__(self, path: Path, **status: Any) -> None:
        self.path = path
        self.status = {"enforcing": True, "tier": "lsm", "embedded": False, "version": "9", "pid": 7, **status}
        self.posture = {
            "exec": {"posture": "prevents", "note": ""},
            "ptrace": {"posture": "blind", "note": "not seen"},
        }
        self.sessions: list[dict[str, Any]] = []
        self.approvals: list[dict[str, Any]] | None = None  # None: the verb is unknown
        self.told: list[dict[str, Any]] = []
        self._loop: Loop | None = None

    def start(self) -> None:
        """Answer."""
        self._loop = Loop(self.path, self._handle)

    def stop(self) -> None:
        """Go away."""
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def publish(self, *records: Record) -> None:
        """To all who watch."""
        lines = [encode({"event": record.as_json()}) for record in records]
        loop = self._loop
        assert loop is not None

        def send() -> None:
            for connection in list(loop.server.connections):
                for line in lines if connection.watching else ():
                    connection.publish(line)

        loop.call(send)

    @property
    def watchers(self) -> int:
        """Connections that watch."""
        return sum(c.watching is not None for c in list(self._loop.server.connections)) if self._loop else 0

    def _handle(self, connection: Connection, peer: Peer, verb: str, fields: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case "watch":
                connection.watching = lambda _: True
                return {"ok": True}
            case "ps":
                return {"ok": True, **self.status, "posture": self.posture, "sessions": self.sessions}
            case "approvals" if self.approvals is not None:
                return {"ok": True, "approvals": self.approvals}
            case "approve" | "deny" if self.approvals is not None:
                if all(a["id"] != fields["approval"] for a in self.approvals):
                    return {"ok": False, "error": "there is no such question", "code": "failed"}
                self.told.append({"verb": verb, **fields})
                self.approvals = [a for a in self.approvals if a["id"] != fields["approval"]]
                return {"ok": True}
        return {"ok": False, "error": f"unknown verb `{verb}`", "code": "usage"}
