# SPDX-License-Identifier: Apache-2.0
"""Ways around a rule on an address (docs/bypasses.md): first the effect, then its absence. Loopback only."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.model.operations import Operation, Reason, Tier
from tests.support.fence import Fence, closed

Program = Callable[[str], Path]
SECRET = b"the content\n"


def heard(ear: socket.socket) -> int:
    """How many messages came since it was asked last."""
    count = 0
    while True:
        try:
            ear.recv(100)
        except BlockingIOError:
            return count
        count += 1


def deny(port: int) -> str:
    """One rule."""
    return f"  - {{id: fence, on: [connect, send], cidrs: ['127.0.0.1:{port}'], action: deny}}\n"


def test_an_address_rewritten_during_the_call_is_judged_as_sent(
    fence: Fence, program: Program, ear: socket.socket
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = ear.getsockname()[1]
        words = [program("rewriter"), "send", str(other.getsockname()[1]), str(port)]
        fence.without(words)
        assert heard(ear)
        outcome = fence.run(deny(port), words)
        assert not heard(ear)
    assert ("send", "deny", "fence") in outcome.told()


@pytest.mark.parametrize("polled", [(), ("sqpoll",)], ids=["entered", "sqpoll"])
@pytest.mark.parametrize("request_", ["connect", "send"])
def test_a_ring_sends_nothing_that_is_denied(
    fence: Fence, program: Program, ear: socket.socket, request_: str, polled: tuple[str, ...]
) -> None:
    port = ear.getsockname()[1]
    words = [program("ring"), request_, str(port), *polled]
    plain = fence.without(words)
    if plain.value.startswith(b"no ring"):
        pytest.skip(closed(plain))
    assert plain.value == b"ok\n"
    assert heard(ear)
    outcome = fence.run(deny(port), words)
    assert outcome.value == f"errno {errno.EPERM}\n".encode()
    assert not heard(ear)
    assert outcome.told() == [(request_, "deny", "fence")]


@pytest.mark.parametrize("polled", [(), ("sqpoll",)], ids=["entered", "sqpoll"])
def test_a_ring_reaches_no_unix_socket_that_is_denied(
    fence: Fence, tier: Tier, program: Program, ground: Path, polled: tuple[str, ...]
) -> None:
    path = ground / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(5)
        words = [program("ring"), "unix", path, *polled]
        plain = fence.without(words)
        if plain.value.startswith(b"no ring"):
            pytest.skip(closed(plain))
        assert plain.value == b"ok\n"
        assert server.accept()[0].recv(10) == b"data"
        outcome = fence.run(f'  - {{id: fence, on: unix, paths: ["{path}"], action: deny}}\n', words)
        assert outcome.status == (1 if tier is Tier.LSM else -signal.SIGKILL)
        assert [d.operation for d in outcome.decisions if d.verdict.blocks] == [Operation.UNIX]
        server.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            assert not server.accept()[0].recv(10)


def test_a_ring_does_not_listen_where_it_is_denied(fence: Fence, tier: Tier, program: Program) -> None:
    words = [program("ring"), "listen", "0"]

    def body() -> bytes:
        with subprocess.Popen(words, stdout=subprocess.PIPE) as ring:
            assert ring.stdout is not None
            line = ring.stdout.readline()
            ring.kill()
        return line

    plain = fence.without(body).value
    if plain.startswith(b"no ring") or plain == f"errno {errno.EINVAL}\n".encode():
        pytest.skip("not required: this kernel has no ring, or none that can listen (since 6.11)")
    assert plain == b"ok\n"
    outcome = fence.run("  - {id: fence, on: listen, cidrs: [127.0.0.0/8], action: deny}\n", body)
    assert outcome.value != b"ok\n"
    assert [d.operation for d in outcome.decisions if d.verdict.blocks] == [Operation.LISTEN]


@pytest.mark.parametrize("polled", [(), ("sqpoll",)], ids=["entered", "sqpoll"])
@pytest.mark.parametrize("request_", ["openat", "openat2"])
def test_a_ring_opens_nothing_that_is_denied(
    fence: Fence, tier: Tier, program: Program, ground: Path, request_: str, polled: tuple[str, ...]
) -> None:
    secret = ground / "secret"
    secret.write_bytes(SECRET)
    words = [program("ring"), request_, secret, *polled]
    plain = fence.without(words)
    if plain.value.startswith(b"no ring"):
        pytest.skip(closed(plain))
    assert plain.value == SECRET
    outcome = fence.run(f'  - {{id: fence, on: read, paths: ["{os.fspath(secret)}"], action: deny}}\n', words)
    assert SECRET not in outcome.value
    if tier is Tier.LSM:
        assert outcome.told() == [("read", "deny", "fence")]
    else:
        assert outcome.status == -signal.SIGKILL


CHANGES = {"unlink": "delete", "rename": "rename", "link": "link", "symlink": "create", "mkdir": "create"}


@pytest.mark.parametrize("polled", [(), ("sqpoll",)], ids=["entered", "sqpoll"])
@pytest.mark.parametrize("request_", CHANGES)
def test_a_ring_changes_no_name_that_is_denied(
    fence: Fence, tier: Tier, program: Program, ground: Path, request_: str, polled: tuple[str, ...]
) -> None:
    file = ground / "file"

    def names() -> list[str]:
        return sorted(os.listdir(ground))

    if request_ != "mkdir":
        file.write_bytes(SECRET)
    before = names()
    words = [program("ring"), request_, file, *polled]
    plain = fence.without(words)
    if plain.value.startswith(b"no ring"):
        pytest.skip(closed(plain))
    assert plain.value == b"ok\n"
    assert names() != before
    subprocess.run(["rm", "-r", *(ground / name for name in names())], check=False)
    if request_ != "mkdir":
        file.write_bytes(SECRET)
    outcome = fence.run(f'  - {{id: fence, on: {CHANGES[request_]}, paths: ["{file}*"], action: deny}}\n', words)
    operation = Operation[CHANGES[request_].upper()]
    assert [d.operation for d in outcome.decisions if d.verdict.blocks] == [operation]
    if tier is Tier.LSM:
        assert outcome.value == f"errno {errno.EPERM}\n".encode()
        assert names() == before
    else:
        assert outcome.status == -signal.SIGKILL


#: A loose source route over another host (RFC 791), by which the packet goes there first.
ROUTE = bytes([131, 7, 4]) + socket.inet_aton("127.0.0.2") + b"\0"
IP_RETOPTS = 7


def by_option() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, ROUTE)
        sock.sendto(b"data", ("127.0.0.1", 9))


def by_message() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendmsg([b"data"], [(socket.IPPROTO_IP, IP_RETOPTS, ROUTE)], 0, ("127.0.0.1", 9))


@pytest.mark.parametrize(
    "way", [by_option, pytest.param(by_message, marks=pytest.mark.tier("lsm"))], ids=["option", "message"]
)
def test_no_packet_is_routed_over_a_host_that_is_not_judged(fence: Fence, tier: Tier, way: Callable[[], None]) -> None:
    assert fence.without(way).errno == 0
    outcome = fence.run("  - {id: fence, on: [connect, send], cidrs: [192.0.2.0/24], action: deny}\n", way)
    assert outcome.stopped(tier)
    assert [d.reason for d in outcome.decisions if d.verdict.blocks] == [Reason.ROUTED]


@pytest.mark.parametrize("call", ["socketcall", "setsockopt"])
def test_no_source_route_is_set_by_a_32_bit_call(fence: Fence, tier: Tier, program: Program, call: str) -> None:
    words = [program("option_int80"), call, "9"]
    plain = fence.without(words)
    if plain.value != b"ok\n":
        # -ENOSYS, or death by a filter of system calls: the way is closed to everybody
        assert plain.value in (b"errno 38\n", b"") or plain.status < 0
        pytest.skip("not required: this kernel has no 32-bit calls")
    outcome = fence.run("  - {id: fence, on: [connect, send], cidrs: [192.0.2.0/24], action: deny}\n", words)
    assert outcome.status == (1 if tier is Tier.LSM else -signal.SIGKILL)
    assert b"ok" not in outcome.value
    assert [d.reason for d in outcome.decisions if d.verdict.blocks] == [Reason.ROUTED]


def test_nobody_inside_answers_for_the_host_at_port_53(fence: Fence) -> None:
    def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.3", 53))

    assert fence.without(body).errno == 0
    outcome = fence.run("  []\n", body)
    assert outcome.errno == errno.EPERM
    assert [d.reason for d in outcome.decisions if d.verdict.blocks] == [Reason.RESOLVER]
