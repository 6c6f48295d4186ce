# SPDX-License-Identifier: Apache-2.0
"""The words of the control socket.

Request: ``{"v": 1, "id": 7, "verb": "ps", …}``. Reply: ``{"v": 1, "id": 7, "ok": true, …}`` or
``{"v": 1, "id": 7, "ok": false, "error": "…", "code": "…"}``. After ``watch`` the daemon also sends
``{"v": 1, "event": {…}}`` and ``{"v": 1, "dropped": n}``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentmon.errors import ControlError

VERSION = 1
SOCKET = Path("/run/agentmon/control.sock")
#: A request is at most this long: a policy text of 512 KiB, escaped.
MAX_LINE_BYTES = 1 << 20

#: A policy's text is at most this long.
MAX_POLICY_BYTES = 512 << 10

#: ``code`` of an error reply, and what the command line exits with.
EXIT_CODES = {"failed": 1, "denied": 2, "forbidden": 2, "invalid": 3, "usage": 64}


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent this very message (``SCM_CREDENTIALS``), which need not be who opened the socket."""

    pid: int
    uid: int
    gid: int


class RefusedError(ControlError):
    """The daemon said no. ``code`` is one of `EXIT_CODES`; ``reply`` the whole answer."""

    def __init__(self, message: str, code: str = "failed", reply: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = EXIT_CODES.get(code, 1)
        self.reply = reply or {}


class UnreachableError(ControlError):
    """Nobody answers at the socket."""


_encoder = json.JSONEncoder(separators=(",", ":"))


def encode(message: dict[str, Any]) -> bytes:
    """One message as one line."""
    return _encoder.encode({"v": VERSION, **message}).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """One line as a message. Raises `ControlError` that says what is wrong with it."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        where = f"column {error.pos + 1}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ControlError(f"not JSON: {where}; send one object a line") from error
    if not isinstance(message, dict):
        raise ControlError(f"a message is a JSON object, not `{type(message).__name__}`")
    version = message.pop("v", None)
    if version != VERSION:
        raise ControlError(f"protocol version `{version}` is not known here; this side speaks {VERSION} (field `v`)")
    return message
