# SPDX-License-Identifier: Apache-2.0
"""What a name gives in the kernel: it lifts the default for its addresses, ports and time, and nothing else."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable

import pytest

from agentmon.model.operations import Tier
from agentmon.policy.hosts import PolicyNames
from tests.support.fence import Fence, Session, attempt

POLICY = """
policy: names
default: {exec: allow, read: allow, write: allow, create: allow, connect: deny}
rules:
  - {id: api, on: [connect, send], hosts: ["api.test:443", "*.wide.test"], action: allow}
  - {id: watched, on: [connect, send], hosts: "api.test:444", action: audit}
  - {id: not-there, on: [connect, send], cidrs: [127.9.9.9, "::1"], action: deny}
  - {id: seen, on: [connect, send], cidrs: ["127.8.8.8:443"], action: audit}
"""


def packed(address: str) -> bytes:
    ip = ipaddress.ip_address(address)
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed


def grant(session: Session, name: str, *addresses: str, ttl_s: float = 600) -> None:
    entries = PolicyNames(session.compiled).entries(name)
    assert entries
    monitor = session.monitor
    monitor.serve_names(session.slot, 1 + session.slot)  # nobody asks here
    monitor.grants.grant(session.serial, session.generation, [packed(a) for a in addresses], entries, ttl_s)


def send(address: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        return attempt(lambda: sock.sendto(b"", (address, port)))


def connect(address: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        return attempt(lambda: sock.connect((address, port)))


@pytest.mark.parametrize("act", [connect, send])
def test_a_grant_lifts_the_default_for_its_address_and_ports_only(
    fence: Fence, tier: Tier, act: Callable[[str, int], int]
) -> None:
    with fence.session(POLICY) as session:
        grant(session, "api.test", "127.1.1.1", "127.9.9.9", "127.8.8.8", "::1")
        objects = [
            ("127.1.1.1", 443, 0),
            ("127.1.1.1", 444, 0),
            ("127.1.1.1", 445, errno.EPERM),  # not a port of the name
            ("127.1.1.2", 443, errno.EPERM),  # not its address
            ("127.9.9.9", 443, errno.EPERM),  # a rule denies it
            ("::1", 443, errno.EPERM),
            ("127.8.8.8", 443, 0),
        ]
        outcome = session.run(lambda: [act(address, port) for address, port, _ in objects])
        assert outcome.value == [wanted for _, _, wanted in objects]
        rules = [session.compiled.rules[d.rule].id if d.rule != 0xFFFF else "" for d in outcome.decisions[-7:]]
        assert rules == ["api", "watched", "", "", "not-there", "not-there", "seen"]


def test_a_grant_runs_out(fence: Fence, tier: Tier) -> None:
    with fence.session(POLICY) as session:
        grant(session, "a.wide.test", "127.1.1.1", ttl_s=0)
        grant(session, "a.wide.test", "127.1.1.2")
        assert session.run(lambda: [connect("127.1.1.1", 80), connect("127.1.1.2", 80)]).value == [errno.EPERM, 0]
        session.monitor.grants.sweep()
        held = session.monitor.grants.held
        assert not held(session.serial, session.generation, packed("127.1.1.1"))
        assert held(session.serial, session.generation, packed("127.1.1.2"))


def test_a_shorter_answer_does_not_shorten_a_grant(fence: Fence, tier: Tier) -> None:
    with fence.session(POLICY) as session:
        grant(session, "api.test", "127.1.1.1")
        grant(session, "api.test", "127.1.1.1", ttl_s=0)
        assert session.run(lambda: connect("127.1.1.1", 443)).value == 0


def test_a_grant_is_of_its_session_and_of_its_policy_alone(fence: Fence, tier: Tier) -> None:
    with fence.session(POLICY) as one, fence.session(POLICY) as other:
        grant(one, "api.test", "127.1.1.1")
        assert one.run(lambda: connect("127.1.1.1", 443)).value == 0
        assert other.run(lambda: connect("127.1.1.1", 443)).value == errno.EPERM
        other.monitor.serve_names(other.slot, 1 + other.slot)
        entries = PolicyNames(other.compiled).entries("api.test")
        other.monitor.grants.grant(other.serial, other.generation + 1000, [packed("127.1.1.1")], entries, 600)
        assert other.run(lambda: connect("127.1.1.1", 443)).value == errno.EPERM
        other.monitor.grants.grant(other.serial, other.generation, [packed("127.1.1.1")], entries, 600)
        assert other.run(lambda: connect("127.1.1.1", 443)).value == 0
        other.monitor.grants.forget(other.serial)
        assert other.run(lambda: connect("127.1.1.1", 443)).value == errno.EPERM
        assert one.run(lambda: connect("127.1.1.1", 443)).value == 0
