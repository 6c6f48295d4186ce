# SPDX-License-Identifier: Apache-2.0
"""The resolver end to end: real sockets on loopback, and a name server of the test's own behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from dns.rdatatype import A, RdataType

from agentmon.model.names import HostPattern
from agentmon.resolver.core import Resolver
from agentmon.resolver.names import pack
from agentmon.resolver.service import Service
from agentmon.resolver.upstream import HostServers, Server, Upstream, parse_resolv_conf

Handler = Callable[[dns.message.Message], list[bytes]]
S = "s-1"


class Anything:
    """Allows every name below example.com."""

    def pattern_for(self, name: str) -> HostPattern | None:
        pattern = HostPattern("example.com", wildcard=True)
        return pattern if pattern.holds(name) else None

    def reachable(self, packed: bytes) -> bool:
        return False


def answer(query: dns.message.Message, *addresses: str, ttl: int = 60) -> dns.message.Message:
    response = dns.message.make_response(query)
    name = query.question[0].name
    response.answer = [dns.rrset.from_text(name, ttl, "IN", "A", *addresses)]
    return response


class NameServer(asyncio.DatagramProtocol):
    """A name server that says what a test wants, and remembers what it was asked."""

    def __init__(self, udp: Handler, tcp: Handler | None = None) -> None:
        self.udp, self.tcp = udp, tcp
        self.asked: list[str] = []
        self.ports: list[int] = []
        self.ids: list[int] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.server = await asyncio.start_server(self.stream, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", self.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.close()
        self.server.close()

    def datagram_received(self, data: bytes, address: Any) -> None:
        query = dns.message.from_wire(data)
        self.asked.append("udp " + query.question[0].name.to_text())
        self.ports.append(address[1])
        self.ids.append(query.id)
        for wire in self.udp(query):
            self.transport.sendto(wire, address)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        self.asked.append("tcp " + query.question[0].name.to_text())
        for wire in self.tcp(query) if self.tcp else []:
            writer.write(len(wire).to_bytes(2, "big") + wire)
        await writer.drain()
        writer.close()


class World:
    """A service with its upstream, and what it granted and refused."""

    def __init__(
        self, *servers: Server, grant: Callable[[], Awaitable[None]] | None = None, try_s: float = 0.5
    ) -> None:
        self.granted: list[tuple[str, str, tuple[bytes, ...], int]] = []
        self.refused: list[tuple[str, str]] = []
        self.hook = grant
        self.now = 0.0
        self.resolver = Resolver()
        self.service = Service(
            self.resolver,
            Upstream(lambda: servers, try_s=try_s, rounds=2),
            self.grant,
            note=lambda _, name, why: self.refused.append((name, why)),
            clock=lambda: self.now,
        )

    async def grant(self, session: str, name: str, addresses: tuple[bytes, ...], ttl_s: int) -> None:
        if self.hook:
            await self.hook()
        self.granted.append((session, name, addresses, ttl_s))

    async def __aenter__(self) -> Self:
        self.port = self.service.open(S, Anything())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.close_all()

    async def ask(self, name: str, rdtype: RdataType = A, how: str = "udp", host: str = "127.0.0.1") -> Any:
        function = getattr(dns.asyncquery, how)
        return await function(dns.message.make_query(name, rdtype), host, port=self.port, timeout=10)


def addresses(message: dns.message.Message) -> list[str]:
    return [r.to_text() for rrset in message.answer for r in rrset]


def test_an_allowed_name_is_answered_by_udp_and_tcp_and_granted_first() -> None:
    async def main() -> None:
        async with (
            NameServer(lambda q: [answer(q, "8.8.8.8").to_wire()]) as up,
            World(Server("127.0.0.1", up.port)) as w,
        ):
            assert addresses(await w.ask("a.example.com")) == ["8.8.8.8"]
            assert w.granted == [(S, "a.example.com", (pack("8.8.8.8"),), 60)]
            assert addresses(await w.ask("a.example.com", how="tcp")) == ["8.8.8.8"]
            assert up.asked == ["udp a.example.com."]  # the second came from the cache

    asyncio.run(main())


def test_ipv6_loopback_answers_at_the_same_port() -> None:
    async def main() -> None:
        async with (
            NameServer(lambda q: [answer(q, "8.8.8.8").to_wire()]) as up,
            World(Server("127.0.0.1", up.port)) as w,
        ):
            for how in ("udp", "tcp"):
                try:
                    message = await w.ask("a.example.com", how=how, host="::1")
                except OSError:
                    pytest.skip("this host has no IPv6 loopback")
                assert addresses(message) == ["8.8.8.8"]

    asyncio.run(main())


def test_a_refused_name_reaches_no_server_and_is_noted() -> None:
    async def main() -> None:
        async with (
            NameServer(lambda q: [answer(q, "8.8.8.8").to_wire()]) as up,
            World(Server("127.0.0.1", up.port)) as w,
        ):
            message = await w.ask("c2VjcmV0.evil.test")
            assert message.rcode() == dns.rcode.NXDOMAIN
            assert w.refused == [("c2VjcmV0.evil.test", "no rule allows this name")]
            assert up.asked == []
            assert w.granted == []

    asyncio.run(main())


def test_nothing_is_answered_before_the_grant_is_in_force() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        entered = asyncio.Event()

        async def wait() -> None:
            entered.set()
            await gate.wait()

        async with (
            NameServer(lambda q: [answer(q, "8.8.8.8").to_wire()]) as up,
            World(Server("127.0.0.1", up.port), grant=wait) as w,
        ):
            asking = asyncio.create_task(w.ask("a.example.com"))
            await entered.wait()
            done, _ = await asyncio.wait([asking], timeout=0.2)
            assert not done
            gate.set()
            assert addresses(await asking) == ["8.8.8.8"]

    asyncio.run(main())


def test_if_the_grant_fails_the_agent_gets_no_address() -> None:
    async def main() -> None:
        async def fail() -> None:
            raise OSError("the map is full")

        async with (
            NameServer(lambda q: [answer(q, "8.8.8.8").to_wire()]) as up,
            World(Server("127.0.0.1", up.port), grant=fail) as w,
        ):
            message = await w.ask("a.example.com")
            assert message.rcode() == dns.rcode.SERVFAIL
            assert not message.answer

    asyncio.run(main())


def test_a_truncated_answer_is_asked_again_by_tcp() -> None:
    def cut(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.TC
        return [response.to_wire()]

    async def main() -> None:
        many = [f"8.8.{i}.8" for i in range(30)]
        server = NameServer(cut, lambda q: [answer(q, *many).to_wire()])
        async with server as up, World(Server("127.0.0.1", up.port)) as w:
            assert len(addresses(await w.ask("a.example.com", how="tcp"))) == 30
            assert up.asked == ["udp a.example.com.", "tcp a.example.com."]

    asyncio.run(main())


def test_forged_answers_are_left_alone() -> None:
    """Wrong id, wrong question, no response, garbage: each before the true one."""

    def forge(query: dns.message.Message) -> list[bytes]:
        true = answer(query, "8.8.8.8").to_wire()
        wrong_id = (query.id ^ 1).to_bytes(2, "big") + answer(query, "6.6.6.6").to_wire()[2:]
        other = dns.message.make_query("b.example.com", A, id=query.id)
        other_type = dns.message.make_query(query.question[0].name, "AAAA", id=query.id)
        cut = dns.message.make_response(other)
        cut.flags |= dns.flags.TC
        echo = query.to_wire()
        forged = [answer(other, "6.6.6.6").to_wire(), dns.message.make_response(other_type).to_wire(), cut.to_wire()]
        return [wrong_id, *forged, echo, b"", b"\xff" * 40, true[:30], true]

    async def main() -> None:
        async with NameServer(forge) as up, World(Server("127.0.0.1", up.port)) as w:
            assert addresses(await w.ask("a.example.com")) == ["8.8.8.8"]
            assert up.asked == ["udp a.example.com."]

    asyncio.run(main())


def test_an_answer_from_elsewhere_is_left_alone() -> None:
    async def main() -> None:
        async with NameServer(lambda _: []) as other:

            def from_elsewhere(query: dns.message.Message) -> list[bytes]:
                other.transport.sendto(answer(query, "6.6.6.6").to_wire(), ("127.0.0.1", up.ports[-1]))
                return [answer(query, "8.8.8.8").to_wire()]

            async with NameServer(from_elsewhere) as up, World(Server("127.0.0.1", up.port)) as w:
                assert addresses(await w.ask("a.example.com")) == ["8.8.8.8"]

    asyncio.run(main())


def test_ids_and_source_ports_differ() -> None:
    async def main() -> None:
        async with (
            NameServer(lambda q: [answer(q, "8.8.8.8").to_wire()]) as up,
            World(Server("127.0.0.1", up.port)) as w,
        ):
            for i in range(8):
                await w.ask(f"{i}.example.com")
            assert len(set(up.ids)) > 4
            assert len(set(up.ports)) > 4

    asyncio.run(main())


def test_a_silent_or_failing_server_gives_way_to_the_next() -> None:
    def fail(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.SERVFAIL)
        return [response.to_wire()]

    async def main() -> None:
        silent, failing = NameServer(lambda _: []), NameServer(fail)
        good = NameServer(lambda q: [answer(q, "8.8.8.8").to_wire()])
        async with silent as one, failing as two, good as three:
            servers = [Server("127.0.0.1", up.port) for up in (one, two, three)]
            async with World(*servers) as w:
                assert addresses(await w.ask("a.example.com")) == ["8.8.8.8"]
                assert (len(one.asked), len(two.asked), len(three.asked)) == (1, 1, 1)

    asyncio.run(main())


def test_when_no_server_answers_it_is_a_failure_and_is_tried_again_next_time() -> None:
    async def main() -> None:
        async with NameServer(lambda _: []) as up, World(Server("127.0.0.1", up.port)) as w:
            assert (await w.ask("a.example.com")).rcode() == dns.rcode.SERVFAIL
            assert len(up.asked) == 2  # rounds
            up.udp = lambda q: [answer(q, "8.8.8.8").to_wire()]
            assert addresses(await w.ask("a.example.com")) == ["8.8.8.8"]

    asyncio.run(main())


def test_a_server_without_edns_is_asked_without() -> None:
    def old(query: dns.message.Message) -> list[bytes]:
        if query.edns < 0:
            return [answer(query, "8.8.8.8").to_wire()]
        response = dns.message.make_response(query)
        response.use_edns(-1)
        response.set_rcode(dns.rcode.FORMERR)
        return [response.to_wire()]

    async def main() -> None:
        async with NameServer(old) as up, World(Server("127.0.0.1", up.port)) as w:
            assert addresses(await w.ask("a.example.com")) == ["8.8.8.8"]

    asyncio.run(main())


def test_the_same_question_at_the_same_time_is_asked_once() -> None:
    async def main() -> None:
        held: list[dns.message.Message] = []
        async with (
            NameServer(lambda q: held.append(q) or []) as up,
            World(Server("127.0.0.1", up.port), try_s=10) as w,  # however slow this machine is
        ):
            asking = [asyncio.create_task(w.ask("a.example.com")) for _ in range(8)]
            while w.resolver.counts["forwarded"] < 8 or not held:  # noqa: ASYNC110  # nothing tells the test
                await asyncio.sleep(0)
            up.transport.sendto(answer(held[0], "8.8.8.8").to_wire(), ("127.0.0.1", up.ports[0]))
            assert [addresses(m) for m in await asyncio.gather(*asking)] == [["8.8.8.8"]] * 8
            assert len(up.asked) == 1
            assert len(w.granted) == 8

    asyncio.run(main())


def test_a_closed_session_is_not_answered_and_others_are() -> None:
    async def main() -> None:
        async with (
            NameServer(lambda q: [answer(q, "8.8.8.8").to_wire()]) as up,
            World(Server("127.0.0.1", up.port)) as w,
        ):
            other = w.service.open("s-2", Anything())
            assert other != w.port
            w.service.close(S)
            with pytest.raises((OSError, EOFError)):
                await w.ask("a.example.com", how="tcp")
            w.port = other
            assert addresses(await w.ask("a.example.com")) == ["8.8.8.8"]
            assert w.granted[0][0] == "s-2"

    asyncio.run(main())


def test_garbage_on_a_connection_does_not_hurt_the_next_one() -> None:
    async def main() -> None:
        async with (
            NameServer(lambda q: [answer(q, "8.8.8.8").to_wire()]) as up,
            World(Server("127.0.0.1", up.port)) as w,
        ):
            for garbage in (b"\0\0", b"\0\x0c" + b"\xff" * 12, b"\xff\xff" + b"x" * 70000):
                reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
                writer.write(garbage)
                writer.write_eof()
                assert b"\x08\x08\x08\x08" not in await reader.read()
                writer.close()
            assert addresses(await w.ask("a.example.com", how="tcp")) == ["8.8.8.8"]

    asyncio.run(main())


def test_several_questions_on_one_connection() -> None:
    async def main() -> None:
        async with (
            NameServer(lambda q: [answer(q, "8.8.8.8").to_wire()]) as up,
            World(Server("127.0.0.1", up.port)) as w,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
            for i in range(3):
                writer.write(dns.message.make_query(f"{i}.example.com", A).to_wire(prepend_length=True))
            for i in range(3):
                size = int.from_bytes(await reader.readexactly(2), "big")
                message = dns.message.from_wire(await reader.readexactly(size))
                assert message.question[0].name.to_text() == f"{i}.example.com."
            writer.close()

    asyncio.run(main())


def test_servers_of_the_host(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    servers = HostServers(str(file))
    assert servers() == (Server("127.0.0.1"),)  # no file: this host, as for libc
    file.write_text(
        "# x\nsearch corp.example\nnameserver 127.0.0.53\nnameserver\nnameserver a.test\nnameserver fe80::1%eth0\n"
    )
    assert servers() == (Server("127.0.0.53"), Server("fe80::1%eth0"))
    file.unlink()
    assert servers() == (Server("127.0.0.53"), Server("fe80::1%eth0"))  # being replaced
    assert parse_resolv_conf("nameserver 192.0.2.1\nnameserver 192.0.2.1") == (Server("192.0.2.1"),)
