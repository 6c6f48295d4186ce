# SPDX-License-Identifier: Apache-2.0
"""Asking the host's own name servers: UDP with a random id and source port, TCP for what does not fit."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import dns.message
import dns.rcode
import dns.rdatatype

from agentmon.resolver.answer import Answer, read
from agentmon.resolver.message import UDP_BYTES

RESOLV_CONF: Final = "/etc/resolv.conf"
#: As libc has it (resolv.conf(5)), but three tries would outlast an agent's own patience of 5 s.
TRY_S: Final = 2.0
ROUNDS: Final = 2
MAX_SERVERS: Final = 8
#: Questions under way for all sessions: a socket each.
MAX_UNDER_WAY: Final = 256


@dataclass(frozen=True, slots=True)
class Server:
    """A name server: an address as text, and its port."""

    host: str
    port: int = 53


def parse_resolv_conf(text: str) -> tuple[Server, ...]:
    """The servers of a resolv.conf(5). Without any it means this host, as for libc. What is no address is left out."""
    words = [line.split() for line in text.splitlines()]
    found = [Server(w[1]) for w in words if len(w) > 1 and w[0] == "nameserver" and _is_address(w[1])]
    return tuple(dict.fromkeys(found))[:MAX_SERVERS] or (Server("127.0.0.1"),)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class HostServers:
    """The servers of this host, read again whenever its file changed."""

    def __init__(self, path: str = RESOLV_CONF) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._servers = parse_resolv_conf("")

    def __call__(self) -> tuple[Server, ...]:
        """The servers of now; the last known ones while the file cannot be read."""
        try:
            status = os.stat(self._path)
            seen = status.st_mtime_ns, status.st_ino
            if seen != self._seen:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._servers = parse_resolv_conf(file.read())
                self._seen = seen
        except OSError:
            pass
        return self._servers


class Upstream:
    """Asks several servers in turn. The same question is under way only once."""

    def __init__(self, servers: Callable[[], Sequence[Server]], *, try_s: float = TRY_S, rounds: int = ROUNDS) -> None:
        self._servers = servers
        self._try_s = try_s
        self._rounds = rounds
        self._under_way: dict[tuple[str, int], asyncio.Task[Answer | None]] = {}

    async def ask(self, name: str, rdtype: dns.rdatatype.RdataType) -> Answer | None:
        """The answer for a canonical name; None if no server had one in time. Does not raise."""
        key = name, int(rdtype)
        task = self._under_way.get(key)
        if task is None:
            if len(self._under_way) >= MAX_UNDER_WAY:
                return None
            task = asyncio.create_task(self._ask(name, rdtype))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(task)

    async def _ask(self, name: str, rdtype: dns.rdatatype.RdataType) -> Answer | None:
        for _ in range(self._rounds):
            for server in self._servers():
                for edns in (True, False):
                    query = dns.message.make_query(name + ".", rdtype, use_edns=0 if edns else -1, payload=UDP_BYTES)
                    query.id = secrets.randbelow(0x10000)
                    try:
                        async with asyncio.timeout(self._try_s):
                            response = await _exchange(query, server)
                    except (OSError, EOFError):  # a timeout is an OSError too
                        break
                    answer = read(response, query.question[0].name, rdtype)
                    if answer is not None:
                        return answer
                    if response.rcode() not in (dns.rcode.FORMERR, dns.rcode.NOTIMP):
                        break  # else: a server that does not know EDNS (RFC 6891 section 7)
        return None


async def _exchange(query: dns.message.Message, server: Server) -> dns.message.Message:
    """One question to one server. Raises OSError, TimeoutError or EOFError."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[dns.message.Message | None] = loop.create_future()
    # Connected: the kernel picks a random source port, and takes datagrams from that server only.
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Datagrams(query, done), remote_addr=(server.host, server.port)
    )
    try:
        transport.sendto(query.to_wire())
        response = await done
    finally:
        transport.close()
    return response or await _by_tcp(query, server)


class _Datagrams(asyncio.DatagramProtocol):
    """Waits for the response; ``None`` says that it was truncated. What is no response to the query is left alone."""

    def __init__(self, query: dns.message.Message, done: asyncio.Future[dns.message.Message | None]) -> None:
        self._query = query
        self._done = done

    def datagram_received(self, data: bytes, _address: object) -> None:
        try:
            response = _parse(data)
        except dns.message.Truncated as error:
            if not self._done.done() and _is_response(self._query, error):
                self._done.set_result(None)
        except Exception:  # noqa: BLE001  # not by our server, or by a broken one: go on waiting
            return
        else:
            if not self._done.done() and self._query.is_response(response):
                self._done.set_result(response)

    def error_received(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(error or ConnectionAbortedError())


def _is_response(query: dns.message.Message, error: dns.message.Truncated) -> bool:
    return query.is_response(error.message())  # type: ignore[no-untyped-call]  # untyped in dnspython


def _parse(data: bytes) -> dns.message.Message:
    return dns.message.from_wire(data, ignore_trailing=True, raise_on_truncation=True)


async def _by_tcp(query: dns.message.Message, server: Server) -> dns.message.Message:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(query.to_wire(prepend_length=True))
        size = int.from_bytes(await reader.readexactly(2), "big")
        data = await reader.readexactly(size)
    finally:
        writer.close()
    try:
        response = _parse(data)
    except Exception as error:  # dnspython promises no list of errors
        raise ConnectionAbortedError("not a DNS message") from error
    if not query.is_response(response):
        raise ConnectionAbortedError("not a response to the query")
    return response
