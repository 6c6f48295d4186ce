# SPDX-License-Identifier: Apache-2.0
"""The client side of the control socket, blocking and small: start-up time counts here."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from agentmon.control.protocol import MAX_LINE_BYTES, SOCKET, RefusedError, UnreachableError, decode, encode

_CLOSED = "the daemon closed the connection before it answered; is it still running?"


class Client:
    """One connection. Use as a context manager; `call` for one answer, `stream` for many."""

    def __init__(self, path: Path = SOCKET, timeout_s: float | None = 30.0) -> None:
        """Raises `UnreachableError` when nobody answers at `path`."""
        self.path = path
        self._next = 1
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise UnreachableError(
                f"no daemon answers at `{path}`: {os.strerror(error.errno or 0).lower()}; "
                "start it with `sudo systemctl start agentmon` or `sudo agentmon daemon`"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def interrupt(self) -> None:
        """End what another thread waits for here: as if the daemon went away."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def fileno(self) -> int:
        """The socket, for select and friends."""
        return self._socket.fileno()

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Ask and wait for the answer. Raises `RefusedError`, or `UnreachableError` when the daemon went away."""
        number = self._send(verb, arguments)
        for message in self._messages():
            if _is_reply(message, number):
                return self._checked(message)
        raise UnreachableError(_CLOSED)

    def stream(self, verb: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Ask, check the answer, then yield every message that follows, until the daemon goes away.

        Raises as `call` does.
        """
        number = self._send(verb, arguments)
        self._socket.settimeout(None)
        answered = False
        for message in self._messages():
            if _is_reply(message, number):
                answered = True
                yield self._checked(message)
            else:
                yield message
        if not answered:
            raise UnreachableError(_CLOSED)

    def _send(self, verb: str, arguments: dict[str, Any]) -> int:
        number, self._next = self._next, self._next + 1
        # Explicit credentials: implicit ones are missing in the instant before the daemon asks for them.
        credentials = array.array("i", struct.unpack("3i", struct.pack("iII", os.getpid(), os.getuid(), os.getgid())))
        data = encode({"id": number, "verb": verb, **arguments})
        if len(data) > MAX_LINE_BYTES:
            raise RefusedError(f"the request is {len(data)} bytes long; the limit is {MAX_LINE_BYTES}", "usage")
        try:
            while data:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
                data = data[self._socket.sendmsg([data], ancillary) :]
        except OSError as error:
            raise UnreachableError(
                f"the daemon at `{self.path}` went away: {(error.strerror or str(error)).lower()}"
            ) from error
        return number

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            line, found, rest = self._buffer.partition(b"\n")
            if found:
                self._buffer = rest
                yield decode(line)
                continue
            try:
                chunk = self._socket.recv(1 << 16)
            except TimeoutError as error:
                raise UnreachableError(f"the daemon at `{self.path}` does not answer; see its log") from error
            except OSError as error:
                raise UnreachableError(
                    f"the daemon at `{self.path}` went away: {(error.strerror or str(error)).lower()}"
                ) from error
            if not chunk:
                return
            self._buffer += chunk

    @staticmethod
    def _checked(message: dict[str, Any]) -> dict[str, Any]:
        if message.get("ok"):
            return message
        raise RefusedError(str(message.get("error", "refused")), str(message.get("code", "failed")), message)


def _is_reply(message: dict[str, Any], number: int) -> bool:
    """Whether it answers that request; one of no number (too many connections) refuses them all."""
    return message.get("id") == number or (message.get("id") is None and message.get("ok") is False)


def reachable(path: Path = SOCKET) -> bool:
    """Whether a daemon answers at `path`."""
    with contextlib.suppress(UnreachableError, RefusedError), Client(path, timeout_s=5.0) as client:
        client.call("ping")
        return True
    return False
