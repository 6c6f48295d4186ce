# SPDX-License-Identifier: Apache-2.0
"""The daemon side of the control socket: framing, the sender of each message, bounded queues. No verbs here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentmon.control.protocol import MAX_LINE_BYTES, Peer, decode, encode
from agentmon.errors import ControlError

#: Connections in all, and of one user other than root: one agent cannot shut the others out.
MAX_CONNECTIONS = 256
MAX_CONNECTIONS_PER_USER = 32
#: What a watcher may leave unread before records are dropped (and counted), and anyone before being cut off.
WATCH_BUFFER_BYTES = 1 << 20
REPLY_BUFFER_BYTES = 16 << 20
#: Read at once from a connection: some hundred requests, then it is the others' turn.
READ_BYTES = 8 << 10

_CREDENTIALS = struct.Struct("iII")  # struct ucred


class Connection:
    """One client. Each of its messages has its own sender."""

    def __init__(self, server: Server, sock: socket.socket, pid: int, uid: int) -> None:
        self.pid = pid  # who connected, by the kernel's word: it takes rights away, and gives none
        self.uid = uid  # only for limits
        self.start_ticks: int | None = None  # when that process was started, as `on_open` found
        self.watching: Callable[[Any], bool] | None = None
        self.dropped = 0
        self._server = server
        self._socket = sock
        self._line = bytearray()
        self._line_peer: Peer | None = None
        self._out = bytearray()
        self._closed = False

    def reply(self, number: Any, body: dict[str, Any]) -> None:
        """Answer the request `number`."""
        self._write(encode({"id": number, **body}))

    def publish(self, line: bytes) -> None:
        """Send one encoded event, or drop and count it when the client does not keep up."""
        if len(self._out) > WATCH_BUFFER_BYTES:
            self.dropped += 1
            self._server.dropped += 1
            return
        if self.dropped:
            line = encode({"dropped": self.dropped}) + line
            self.dropped = 0
        self._write(line)

    def close(self) -> None:
        """Close the connection, once."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()
        self._server.forget(self)

    def readable(self) -> None:
        """Read what there is (an event loop callback)."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(READ_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        peer = Peer(0, -1, -1)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(content) >= _CREDENTIALS.size:
                peer = Peer(*_CREDENTIALS.unpack_from(content))
        self._take(data, peer)

    def _take(self, data: bytes, peer: Peer) -> None:
        # The kernel never merges bytes of two senders into one read; a line made of two senders' is refused.
        for piece in data.splitlines(keepends=True) if b"\n" in data else [data]:
            if self._line and self._line_peer != peer:
                self._refuse("a message came from two different senders")
                return
            self._line += piece
            self._line_peer = peer
            if len(self._line) > MAX_LINE_BYTES:
                self._refuse(f"a message is at most {MAX_LINE_BYTES} bytes long")
                return
            if self._line.endswith(b"\n"):
                line = bytes(self._line)
                self._line.clear()
                self._dispatch(line, peer)
                if self._closed:
                    return

    def _dispatch(self, line: bytes, peer: Peer) -> None:
        number: Any = None
        try:
            if peer.pid == 0:
                raise ControlError("the message carries no credentials; send it again")
            message = decode(line)
            number = message.pop("id", None)
            verb = message.pop("verb", None)
            if not isinstance(verb, str):
                raise ControlError("the field `verb` is missing")
        except ControlError as error:
            self.reply(number, {"ok": False, "error": str(error), "code": "usage"})
            return
        self.reply(number, self._server.handle(self, peer, verb, message))

    def _refuse(self, message: str) -> None:
        self.reply(None, {"ok": False, "error": message, "code": "usage"})
        self.close()

    def _write(self, data: bytes) -> None:
        if self._closed:
            return
        if not self._out:
            try:
                data = data[self._socket.send(data) :]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self.close()
                return
            if not data:
                return
            asyncio.get_running_loop().add_writer(self._socket, self._flush)
        self._out += data
        if len(self._out) > REPLY_BUFFER_BYTES:
            self.close()

    def _flush(self) -> None:
        try:
            del self._out[: self._socket.send(self._out)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not self._out:
            asyncio.get_running_loop().remove_writer(self._socket)


Handler = Callable[[Connection, Peer, str, dict[str, Any]], dict[str, Any]]


class Server:
    """Listens at `path`. `handle` gets each well-formed request and returns the body of its reply."""

    def __init__(
        self,
        path: Path,
        handle: Handler,
        on_close: Callable[[], None] = lambda: None,
        on_open: Callable[[Connection, socket.socket], None] = lambda _connection, _socket: None,
    ) -> None:
        self.path = path
        self.handle = handle
        self._on_open = on_open
        self.dropped = 0
        self.connections: set[Connection] = set()
        self._on_close = on_close
        self._socket: socket.socket | None = None
        self._identity: tuple[int, int] | None = None

    def start(self) -> None:
        """Bind and listen; a stale socket is replaced. Raises `ControlError` when another daemon answers there."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self._alive():
            raise ControlError(f"another daemon answers at `{self.path}`; stop it first, or use it")
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            sock.bind(str(self.path))
            # Anyone may connect: what each message may do is decided by its sender.
            os.chmod(self.path, 0o666)  # noqa: S103  # see above
            sock.listen(64)
        except OSError as error:
            sock.close()
            raise ControlError(f"cannot listen at `{self.path}`: {error}") from error
        info = os.stat(self.path)
        self._identity = (info.st_dev, info.st_ino)
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock, self._accept)

    def stop(self) -> None:
        """Stop listening, close every connection and remove the socket, if it is still ours."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        with contextlib.suppress(OSError):
            info = os.stat(self.path)
            if (info.st_dev, info.st_ino) == self._identity:
                os.unlink(self.path)
        for connection in list(self.connections):
            connection.close()

    def publish(self, event: Any, encoded: Callable[[], bytes]) -> None:
        """Send an event to each watcher that wants it; `encoded` is called once, if at all."""
        line: bytes | None = None
        for connection in list(self.connections):
            if connection.watching is not None and connection.watching(event):
                if line is None:
                    line = encoded()
                connection.publish(line)

    def forget(self, connection: Connection) -> None:
        """Called by a connection that closed."""
        self.connections.discard(connection)
        self._on_close()

    def _alive(self) -> bool:
        try:
            if not stat.S_ISSOCK(os.stat(self.path).st_mode):
                raise ControlError(f"`{self.path}` is not a socket; move it away")
        except FileNotFoundError:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self.path)) == 0

    def _accept(self) -> None:
        assert self._socket is not None
        while True:
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                return  # out of descriptors: the backlog waits
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            per_user = Counter(connection.uid for connection in self.connections)
            if len(self.connections) >= MAX_CONNECTIONS or (uid and per_user[uid] >= MAX_CONNECTIONS_PER_USER):
                with contextlib.suppress(OSError):
                    sock.send(encode({"ok": False, "error": "too many connections; close some", "code": "failed"}))
                sock.close()
                continue
            connection = Connection(self, sock, pid, uid)
            self._on_open(connection, sock)
            self.connections.add(connection)
            asyncio.get_running_loop().add_reader(sock, connection.readable)
