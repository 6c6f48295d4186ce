# SPDX-License-Identifier: Apache-2.0
"""Serves each session on a port of its own, on both loopback addresses, by UDP and TCP.

The port is how it is known who asks: the kernel sends an agent's traffic for port 53 to its session's port, and keeps
agents from the others. When this stops, nothing answers and grants run out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, cast

from agentmon.resolver.core import Ask, Reply, Resolver
from agentmon.resolver.message import for_udp
from agentmon.resolver.names import Grant, Names
from agentmon.resolver.upstream import Upstream

#: Of one session at a time; what comes above is dropped, as a busy name server would.
MAX_QUERIES: Final = 64
MAX_CONNECTIONS: Final = 32
IDLE_S: Final = 10.0
_BIND_TRIES: Final = 32

_log = logging.getLogger(__name__)

#: Told of what was refused: (session, name as asked, why).
Note = Callable[[str, str, str], None]


@dataclass(slots=True)
class _Door:
    """What one session's port consists of."""

    port: int
    udp: list[socket.socket]
    tcp: list[socket.socket]
    opening: asyncio.Task[None] | None = None
    transports: list[asyncio.DatagramTransport] = field(default_factory=list)
    servers: list[asyncio.Server] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    connections: int = 0


class Service:
    """The front of a `Resolver`. One event loop; every method is called on it."""

    def __init__(
        self,
        resolver: Resolver,
        upstream: Upstream,
        grant: Grant,
        *,
        note: Note | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver = resolver
        self._upstream = upstream
        self._grant = grant
        self._note = note
        self._clock = clock
        self._doors: dict[str, _Door] = {}

    @property
    def counts(self) -> Counter[str]:
        """How often each thing happened to a query."""
        return self._resolver.counts

    def open(self, session: str, names: Names) -> int:
        """Serve a session by these names; its port. Again: by other names, at the same port.

        What is asked from here on is answered, as soon as the loop runs.
        Raises:
            OSError: no port is free.
        """
        if session not in self._doors:
            udp, tcp = _bind()
            door = self._doors[session] = _Door(udp[0].getsockname()[1], udp, tcp)
            door.opening = asyncio.get_running_loop().create_task(self._serve(session, door))
        self._resolver.open(session, names)
        return self._doors[session].port

    async def _serve(self, session: str, door: _Door) -> None:
        loop = asyncio.get_running_loop()
        for each in door.udp:
            transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self, session, door), sock=each)
            door.transports.append(transport)
        for each in door.tcp:
            server = await asyncio.start_server(
                lambda r, w: self._connection(session, door, r, w), sock=each, limit=0x10000
            )
            door.servers.append(server)

    def close(self, session: str) -> None:
        """Stop serving a session. Its port is closed when this returns."""
        self._resolver.close(session)
        door = self._doors.pop(session, None)
        if door is None:
            return
        if door.opening is not None:
            door.opening.cancel()
        for server in door.servers:
            server.close()
        for transport in door.transports:
            transport.abort()
        for each in (*door.udp, *door.tcp):
            each.close()
        for task in door.tasks:
            task.cancel()

    async def close_all(self) -> None:
        """Stop serving, and wait until nothing is under way."""
        tasks = [task for door in self._doors.values() for task in (*door.tasks, door.opening) if task]
        for session in list(self._doors):
            self.close(session)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def handle(self, session: str, wire: bytes) -> Reply:
        """The reply to one query, with its grant in force."""
        step = self._resolver.query(session, wire, self._clock())
        if isinstance(step, Ask):
            answer = await self._upstream.ask(step.name, step.rdtype)
            step = self._resolver.answered(step, answer, self._clock())
        if step.refused and self._note and step.question:
            self._note(session, step.question.message.question[0].name.to_text(omit_final_dot=True), step.refused)
        if step.grant:
            try:
                await self._grant(session, step.grant.name, step.grant.addresses, step.grant.ttl_s)
            except Exception:  # noqa: BLE001  # whatever it is, the agent must not get addresses that are not in force
                _log.exception("session %s: cannot allow the addresses of `%s`", session, step.grant.name)
                return step.failed()
        return step

    def start(self, door: _Door, work: Coroutine[Any, Any, None]) -> None:
        """Run something for a session, unless it has too much under way."""
        if len(door.tasks) >= MAX_QUERIES:
            self._resolver.counts["dropped"] += 1
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        door.tasks.add(task)
        task.add_done_callback(door.tasks.discard)

    async def _connection(
        self, session: str, door: _Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        if task is None or door.connections >= MAX_CONNECTIONS:
            self._resolver.counts["dropped"] += 1
            writer.close()
            return
        door.connections += 1
        door.tasks.add(task)
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    wire = await reader.readexactly(size)
                reply = (await self.handle(session, wire)).wire
                if reply is None:
                    break
                async with asyncio.timeout(IDLE_S):
                    writer.write(len(reply).to_bytes(2, "big") + reply)
                    await writer.drain()
        except (OSError, EOFError):  # it went away, or idled
            pass
        finally:
            door.connections -= 1
            door.tasks.discard(task)
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, service: Service, session: str, door: _Door) -> None:
        self._service = service
        self._session = session
        self._door = door
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # of Python 3.11, no subclass

    def datagram_received(self, data: bytes, address: Any) -> None:
        self._service.start(self._door, self._answer(data, address))

    async def _answer(self, wire: bytes, address: Any) -> None:
        reply = await self._service.handle(self._session, wire)
        if reply.wire is not None and self._transport is not None and not self._transport.is_closing():
            wire = for_udp(reply.question, reply.wire) if reply.question else reply.wire
            self._transport.sendto(wire, address)


def _bind() -> tuple[list[socket.socket], list[socket.socket]]:
    """Sockets on one port: UDP, TCP; of IPv4, and of IPv6 where the host has it. Raises OSError."""
    kinds = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    if not _has_ipv6():
        kinds.pop()
    for _ in range(_BIND_TRIES):
        udp: list[socket.socket] = []
        tcp: list[socket.socket] = []
        port = 0
        try:
            for family, host in kinds:
                for kind, into in ((socket.SOCK_DGRAM, udp), (socket.SOCK_STREAM, tcp)):
                    each = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                    into.append(each)
                    each.bind((host, port))
                    port = each.getsockname()[1]
                    if kind == socket.SOCK_STREAM:
                        each.listen(MAX_CONNECTIONS)
        except OSError:
            for each in (*udp, *tcp):
                each.close()
            continue
        return udp, tcp
    raise OSError("no loopback port is free for the resolver; see `ss -lun`")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
