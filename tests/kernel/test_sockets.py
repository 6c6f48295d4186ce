# SPDX-License-Identifier: Apache-2.0
"""bind, listen and unix: who may serve, and which sockets of this host may be reached."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmon.model.events import Address
from agentmon.model.operations import Operation, Tier
from tests.support.fence import ALLOW_ALL, Fence, Outcome, attempt, object_path

STREAM, DGRAM, PACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
ABSTRACT = f"\0agentmon-test-{os.getpid()}"


@pytest.fixture
def place(ground: Path) -> Path:
    """A directory whose paths fit into a socket's address."""
    assert len(str(ground)) < 90
    return ground


@contextlib.contextmanager
def server(address: str, kind: socket.SocketKind = STREAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(address)
        if kind is not DGRAM:
            sock.listen()
        sock.setblocking(False)
        yield sock


def reach(address: str, kind: socket.SocketKind = STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(address)
        sock.send(b"hello")


def heard(sock: socket.socket) -> bytes:
    """What came through."""
    try:
        if sock.type == DGRAM:
            return sock.recv(100)
        return sock.accept()[0].recv(100)
    except BlockingIOError:
        return b""


def deny(operation: str, objects: str, action: str = "deny") -> str:
    key = "paths" if operation == "unix" else "cidrs"
    return f'  - {{id: fence, on: {operation}, {key}: ["{objects}"], action: {action}}}\n'


def said(outcome: Outcome, operation: Operation) -> list[tuple[str, object]]:
    """(verdict, object) of each record of an operation."""
    return [(d.verdict.word, d.object) for d in outcome.decisions if d.operation is operation]


# ---- unix


@pytest.mark.parametrize("kind", [STREAM, DGRAM, PACKET], ids=["stream", "datagram", "packet"])
@pytest.mark.parametrize("name", ["path", "abstract"])
def test_a_denied_socket_hears_nothing(
    fence: Fence, tier: Tier, place: Path, name: str, kind: socket.SocketKind
) -> None:
    address = str(place / "s") if name == "path" else ABSTRACT
    pattern = address.replace("\0", "@")
    with server(address, kind) as sock:
        assert fence.without(lambda: reach(address, kind)).errno == 0
        assert heard(sock) == b"hello"
        outcome = fence.run(deny("unix", pattern), lambda: reach(address, kind))
        assert outcome.stopped(tier)
        assert heard(sock) == b""
        assert said(outcome, Operation.UNIX) == [("deny", os.fsencode(pattern))]
        assert fence.run(deny("unix", pattern + "x"), lambda: reach(address, kind)).told() == []
        assert heard(sock) == b"hello"


@pytest.mark.tier("lsm")
@pytest.mark.parametrize("moved", ["socket", "directory", "its parent"])
def test_a_denied_socket_is_not_reached_by_moving_it(fence: Fence, place: Path, moved: str) -> None:
    (place / "d/s").mkdir(parents=True)
    address = place / "d/s/served"
    old = {"socket": address, "directory": place / "d/s", "its parent": place / "d"}[moved]
    new = place / "moved"
    reached = new / address.relative_to(old) if old != address else new

    def body() -> None:
        os.rename(old, new)
        reach(str(reached))

    with server(str(address)) as sock:
        assert fence.without(body).errno == 0
        assert heard(sock) == b"hello"
        os.rename(new, old)
        outcome = fence.run(deny("unix", f"{place}/d/**/served"), body)
        assert outcome.errno == errno.EPERM
        assert heard(sock) == b""
    assert address.exists()


@pytest.mark.parametrize("way", ["symlink", "hardlink", "proc", "relative", "renamed directory"])
def test_a_socket_is_known_by_its_true_path(fence: Fence, tier: Tier, place: Path, way: str) -> None:
    (place / "d").mkdir()
    address = str(place / "d/s")
    with server(address) as sock:
        other = str(place / "other")
        if way == "symlink":
            os.symlink(address, other)
        elif way == "hardlink":
            os.link(address, other)
        elif way == "proc":
            other = f"/proc/self/root{address}"
        elif way == "renamed directory":
            os.rename(place / "d", place / "e")
            address, other = str(place / "e/s"), str(place / "e/s")

        def body() -> None:
            if way == "relative":
                os.chdir(place / "d")
                reach("s")
            else:
                reach(other)

        assert fence.without(body).errno == 0
        assert heard(sock) == b"hello"
        outcome = fence.run(deny("unix", address), body)
        assert outcome.stopped(tier)
        assert heard(sock) == b""
        assert object_path(outcome.decisions[-1]) == os.fsencode(address)


def test_names_of_abstract_sockets_are_no_paths(fence: Fence, tier: Tier) -> None:
    with server(ABSTRACT) as sock:
        assert fence.run(deny("unix", "/**"), lambda: reach(ABSTRACT)).told() == []
        assert heard(sock) == b"hello"
        everything = "  - {id: fence, on: unix, action: deny}\n"
        assert fence.run(everything, lambda: reach(ABSTRACT)).stopped(tier)
        assert fence.run(deny("unix", "@agentmon-test-*"), lambda: reach(ABSTRACT)).stopped(tier)
        assert heard(sock) == b""


def test_an_abstract_name_of_full_length_and_odd_bytes(fence: Fence, tier: Tier) -> None:
    name = b"\0" + b"\xff\0\n" + b"x" * (107 - 3)
    with server(name) as sock:  # type: ignore[arg-type]  # bytes are as good
        assert fence.without(lambda: reach(name)).errno == 0  # type: ignore[arg-type]  # bytes are as good
        assert heard(sock) == b"hello"
        outcome = fence.run(deny("unix", "@**x"), lambda: reach(name))  # type: ignore[arg-type]
        assert outcome.stopped(tier)
        assert heard(sock) == b""
        assert said(outcome, Operation.UNIX) == [("deny", b"@" + name[1:])]


def test_a_pair_of_sockets_needs_no_rule(fence: Fence) -> None:
    def body() -> bytes:
        one, two = socket.socketpair()
        one.send(b"x")
        three, four = socket.socketpair(socket.AF_UNIX, DGRAM)
        three.send(b"y")
        return two.recv(1) + four.recv(1)

    outcome = fence.run("  - {id: fence, on: unix, action: deny}\n", body)
    assert (outcome.value, outcome.told()) == (b"xy", [])


def test_what_the_session_serves_itself_needs_no_rule(fence: Fence, place: Path) -> None:
    address = str(place / "s")

    def body() -> bytes:
        with server(address) as own:
            pid = os.fork()
            if not pid:
                reach(address)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            return heard(own)

    outcome = fence.run(deny("unix", address), body)
    assert (outcome.value, outcome.told()) == (b"hello", [])


@pytest.mark.tier("lsm")
def test_no_socket_is_made_where_nothing_may_be_created(fence: Fence, place: Path) -> None:
    def body() -> int:
        with socket.socket(socket.AF_UNIX, STREAM) as sock:
            return attempt(lambda: sock.bind(str(place / "s")))

    outcome = fence.run(f'  - {{id: fence, on: create, paths: ["{place}/**"], action: deny}}\n', body)
    assert outcome.value == errno.EPERM
    assert not (place / "s").exists()
    assert fence.without(body).value == 0


def test_a_free_abstract_name_is_served_whomever_a_rule_keeps_from_reaching_it(fence: Fence) -> None:
    """docs/bypasses.md says so: displays and buses of a session's own have such names."""

    def body() -> bytes:
        with server(ABSTRACT) as sock, socket.socket(socket.AF_UNIX, STREAM) as client:
            client.connect(ABSTRACT)
            client.send(b"own")
            return heard(sock)

    outcome = fence.run(deny("unix", ABSTRACT.replace("\0", "@")), body)
    assert outcome.value == b"own"
    assert not [told for told in outcome.told() if told[1] == "deny"]


def test_what_another_session_serves_is_not_its_own(fence: Fence, tier: Tier, place: Path) -> None:
    address = str(place / "s")
    with fence.session(f"policy: p\n{ALLOW_ALL}") as other, server(address) as sock:

        def serve() -> None:
            sock.listen()  # from now on it is this process that listens
            reach(address)

        assert other.run(serve).told() == []
        assert heard(sock) == b"hello"
        assert fence.without(lambda: reach(address)).errno == 0
        assert heard(sock) == b"hello"
        assert fence.run(deny("unix", address), lambda: reach(address)).stopped(tier)
        assert heard(sock) == b""


@pytest.mark.tier("lsm")
def test_a_datagram_that_names_its_receiver(fence: Fence, place: Path) -> None:
    address = str(place / "s")

    def body() -> int:
        with socket.socket(socket.AF_UNIX, DGRAM) as sock:
            return attempt(lambda: sock.sendto(b"hello", address))

    with server(address, DGRAM) as sock:
        outcome = fence.run(deny("unix", address), body)
        assert outcome.value == errno.EPERM
        assert heard(sock) == b""


def test_each_abstract_name_is_reported_once(fence: Fence) -> None:
    with server(ABSTRACT) as sock:

        def body() -> None:
            reach(ABSTRACT)
            reach(ABSTRACT)

        outcome = fence.run("  []\n", body)
        assert said(outcome, Operation.UNIX) == [("allow", os.fsencode(ABSTRACT.replace("\0", "@")))]
        assert heard(sock) == b"hello"


# ---- bind and listen


def bind(family: int, address: str, port: int, kind: int = STREAM) -> Callable[[], None]:
    def body() -> None:
        with socket.socket(family, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))

    return body


INET, INET6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize("kind", [STREAM, DGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize(
    ("family", "address", "written"),
    [
        (INET, "127.0.0.1", "127.0.0.1"),
        (INET, "0.0.0.0", "0.0.0.0"),  # the point of it
        (INET6, "::1", "::1"),
        (INET6, "::", "::"),
        (INET6, "::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_a_denied_bind(fence: Fence, family: int, address: str, written: str, kind: int) -> None:
    port = 18231
    text = f"[{written}]:{port}" if ":" in written else f"{written}:{port}"
    body = bind(family, address, port, kind)
    assert attempt(body) == 0
    outcome = fence.run(deny("bind", text), lambda: attempt(body))
    assert outcome.value == errno.EPERM  # in both tiers
    ((verdict, object_),) = said(outcome, Operation.BIND)
    assert (verdict, str(object_)) == ("deny", text)
    elsewhere = fence.run(deny("bind", text), lambda: attempt(bind(family, address, port + 1, kind)))
    assert (elsewhere.value, elsewhere.told()) == (0, [])


def test_all_addresses_of_the_host_are_not_loopback(fence: Fence) -> None:
    """A server on 0.0.0.0 is open to the network: a rule that allows loopback does not allow it."""
    rules = (
        "policy: p\ndefault: {exec: allow, read: allow, write: allow, create: allow, connect: allow, bind: deny,"
        " listen: allow, unix: allow}\nrules:\n  - {id: local, on: bind, cidrs: [127.0.0.0/8], action: allow}\n"
    )
    outcome = fence.run(
        rules,
        lambda: (attempt(bind(INET, "127.0.0.1", 18231)), attempt(bind(INET, "0.0.0.0", 18231))),
    )
    assert outcome.value == (0, errno.EPERM)


@pytest.mark.parametrize("family", [INET, INET6])
def test_a_denied_listen(fence: Fence, tier: Tier, family: int) -> None:
    address = "127.0.0.1" if family == INET else "::1"

    def body() -> None:
        with socket.socket(family, STREAM) as sock:
            sock.bind((address, 0))
            sock.listen()

    rules = '  - {id: fence, on: listen, cidrs: [127.0.0.1, "::1"], action: deny}\n'
    outcome = fence.run(rules, body)
    assert outcome.stopped(tier)
    ((verdict, object_),) = said(outcome, Operation.LISTEN)
    assert isinstance(object_, Address)
    assert (verdict, object_.port > 0) == ("deny", True)
    assert fence.run(deny("listen", "10.0.0.0/8"), body).told() == []


def test_a_socket_that_was_never_bound_listens_nowhere_denied(fence: Fence, tier: Tier) -> None:
    """Listening binds to a free port of every address."""

    def body() -> None:
        with socket.socket(INET, STREAM) as sock:
            sock.listen()

    assert fence.run(deny("listen", "0.0.0.0"), body).stopped(tier)


def test_a_server_that_is_allowed_serves(fence: Fence) -> None:
    def body() -> bytes:
        with socket.socket(INET, STREAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            with socket.create_connection(sock.getsockname()) as client:
                client.send(b"x")
                return sock.accept()[0].recv(1)

    outcome = fence.run(deny("bind", "10.0.0.0/8") + deny("listen", "10.0.0.0/8").replace("fence", "l"), body)
    assert (outcome.value, outcome.told()) == (b"x", [])


def test_a_program_of_another_kind_is_judged_alike(fence: Fence, tier: Tier, place: Path) -> None:
    """Not only the process that was enrolled: a program that it starts."""
    address = str(place / "s")
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({address!r}); s.send(b'hello')"
    with server(address) as sock:
        outcome = fence.run(
            deny("unix", address), lambda: subprocess.run([sys.executable, "-c", code], check=False).returncode
        )
        assert outcome.value == (1 if tier is Tier.LSM else -9)
        assert heard(sock) == b""
