# SPDX-License-Identifier: Apache-2.0
"""The other end of whatever a case of `efficacy` sends: every address of its network, a name server, a web server."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks._observe import Tokens

PORTS = (22, 80, 443, 8080)
NAMES_LEAD_TO = "203.0.113.80"
#: Said to whoever does not speak HTTP: a shell that obeys computes it.
_ORDER = b"echo ran$((6*7))mark; exit\n"
_OBEYED = b"ran42mark"
_PAGE = b"#!/bin/sh\necho from the sink\n"
_HANDSHAKE = b"\x16\x03"  # of TLS
_KEPT = 1 << 20
_PATIENCE_S = 1.5


class Sink:
    """Non-blocking; `serve` is called with what `selector` says."""

    def __init__(self, ports: Iterable[int], tokens: Tokens) -> None:
        self.selector = selectors.DefaultSelector()
        self.ports: set[int] = set()
        self._tokens = tokens
        self._effects: set[str] = set()
        self._got: dict[int, bytearray] = {}
        self._peers: dict[int, tuple[str, int]] = {}
        self._silent: dict[socket.socket, float] = {}
        for port in dict.fromkeys((*PORTS, *ports)):
            with contextlib.suppress(OSError):
                self._listen(port)
        for port in (53, *ports):
            with contextlib.suppress(OSError):
                self._datagrams(port)

    def _listen(self, port: int) -> None:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::", port))  # IPv4 as well
        listener.listen(16)
        listener.setblocking(False)
        self.ports.add(port)
        self.selector.register(listener, selectors.EVENT_READ, "listener")

    def _datagrams(self, port: int) -> None:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: which address it was for
        receiver.bind(("0.0.0.0", port))
        receiver.setblocking(False)
        self.ports.add(port)
        self.selector.register(receiver, selectors.EVENT_READ, "datagrams")

    def serve(self, key: selectors.SelectorKey) -> None:
        """One event."""
        sock: Any = key.fileobj
        with contextlib.suppress(OSError):
            if key.data == "listener":
                self._accept(sock)
            elif key.data == "datagrams":
                self._datagram(sock)
            else:
                self._read(sock)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        address, port = connection.getsockname()[:2]
        self._peers[connection.fileno()] = (plain(address), port)
        self._got[connection.fileno()] = bytearray()
        self._effects.add(f"contact {plain(address)} {port}")
        self.selector.register(connection, selectors.EVENT_READ, "connection")
        self._silent[connection] = time.monotonic() + _PATIENCE_S

    def tick(self) -> None:
        """Whoever connects and says nothing waits for orders."""
        for connection, until in list(self._silent.items()):
            if time.monotonic() > until:
                self._order(connection)

    def _order(self, connection: socket.socket) -> None:
        if self._silent.pop(connection, None) is not None:
            with contextlib.suppress(OSError):
                connection.send(_ORDER)

    def _read(self, connection: socket.socket) -> None:
        number = connection.fileno()
        try:
            piece = connection.recv(1 << 16)
        except ConnectionError:
            piece = b""
        address, port = self._peers[number]
        got = self._got[number]
        got += piece[: _KEPT - len(got)]
        self._effects.update(self._tokens.effects(f"net {address}", bytes(got)))
        if _OBEYED in got:
            self._effects.add(f"obeyed {address}")
        encrypted = got.startswith(_HANDSHAKE)  # whoever trusts nobody here gives up at once
        if b"HTTP/" in got or encrypted or not piece:
            self._silent.pop(connection, None)
        else:
            self._order(connection)
        if piece and not encrypted and not _whole(bytes(got)):
            return
        if piece and not encrypted:
            head = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(_PAGE)
            connection.send(head + _PAGE)
            self._effects.add(f"sent {address} {port}")
        self.selector.unregister(connection)
        connection.close()

    def _datagram(self, receiver: socket.socket) -> None:
        data, ancillary, _, sender = receiver.recvmsg(65536, 256)
        address = next((socket.inet_ntoa(c[2][8:12]) for c in ancillary if c[0] == socket.IPPROTO_IP), "?")
        port = receiver.getsockname()[1]
        self._effects.add(f"contact {address} {port}")
        self._effects.update(self._tokens.effects(f"net {address}", data))
        if port == 53 and len(data) > 16:
            receiver.sendto(answer(data), sender)

    def effects(self) -> set[str]:
        """What was seen."""
        return self._effects


def _whole(got: bytes) -> bool:
    """Whether an HTTP request is complete."""
    head, gap, body = got.partition(b"\r\n\r\n")
    if not gap or b"HTTP/" not in head.split(b"\r\n", 1)[0]:
        return False
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return len(body) >= int(value)
        if name == b"transfer-encoding":
            return body.endswith(b"0\r\n\r\n")
    return True


def plain(address: str) -> str:
    """An IPv4 address without its IPv6 clothes."""
    return address.removeprefix("::ffff:")


def answer(query: bytes) -> bytes:
    """Every name has one IPv4 address."""
    end = query.index(b"\0", 12) + 5
    kind = struct.unpack("!H", query[end - 4 : end - 2])[0]
    found = kind == 1
    head = query[:2] + struct.pack("!5H", 0x8180, 1, int(found), 0, 0)
    record = struct.pack("!3HIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(NAMES_LEAD_TO)
    return head + query[12:end] + (record if found else b"")


def listening() -> set[int]:
    """TCP ports of this network that somebody listens on."""
    found: set[int] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                found.add(int(words[1].rsplit(":", 1)[1], 16))
    return found
