# SPDX-License-Identifier: Apache-2.0
"""Reference evaluator, prefix tables and kernel say the same about addresses: verdict and rule, record by record."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import random
import socket

from agentmon.model.events import Address
from agentmon.model.operations import Operation, Tier
from agentmon.policy import walk
from agentmon.policy.load import load_text
from tests.support import policies
from tests.support.fence import Fence

CLONE_NEWNET = 0x40000000

_NET_POOL = [
    "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "127.0.0.0/8", "127.0.0.1", "192.0.2.0/24", "192.0.2.128/25",
    "::/0", "::1", "fd00::/8", "fd00:1::/32", "2001:db8::/64", "2001:db8::1",
]  # fmt: skip
_NET_OBJECTS = [
    "10.1.2.3", "10.1.2.4", "10.2.0.1", "127.0.0.1", "127.9.9.9", "192.0.2.5", "192.0.2.200", "198.51.100.1",
    "::1", "fd00::1", "fd00:1::9", "2001:db8::1", "2001:db8::2", "2001:db9::1", "::ffff:10.1.2.3", "::ffff:192.0.2.200",
]  # fmt: skip


def random_net_policy(rng: random.Random) -> str:
    default = f"{{exec: allow, read: allow, write: allow, create: allow, connect: {rng.choice(['allow', 'deny'])}}}"
    lines = [f"policy: net\ndefault: {default}\nrules:"]
    for i in range(rng.randint(1, 8)):
        cidrs = []
        for cidr in rng.sample(_NET_POOL, rng.randint(1, 4)):
            ports = rng.choice(["", "", ":443", ":1-1023", ":53"])
            cidrs.append(f'"[{cidr}]{ports}"' if ports and ":" in cidr else f'"{cidr}{ports}"')
        carve = f', except: {{cidrs: ["{rng.choice(_NET_POOL)}"]}}' if rng.random() < 0.3 else ""
        operations = rng.choice(["[connect]", "[send]", "[connect, send]"])
        action = rng.choice(["allow", "audit", "deny"])
        lines.append(f"  - {{id: r{i}, on: {operations}, cidrs: [{', '.join(cidrs)}]{carve}, action: {action}}}")
    return "\n".join(lines) + "\n"


def try_addresses(questions: list[tuple[Operation, str, int]]) -> list[int]:
    """In a network of its own without any device up: nothing can leave, and the hooks come before the routes."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    found = []
    for operation, address, port in questions:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                if operation is Operation.CONNECT:
                    sock.connect((address, port))
                else:
                    sock.sendto(b"", (address, port))
                found.append(0)
            except OSError as error:
                found.append(error.errno or -1)
    return found


def test_random_addresses(fence: Fence, tier: Tier) -> None:
    done = 0
    rounds = 40 if tier is Tier.REACT else 6
    for seed in range(rounds):
        rng = random.Random(seed)
        policy = load_text(random_net_policy(rng), "net.yaml")
        questions = [
            (operation, address, rng.choice([1, 53, 443, 1023, 1024, 65535]))
            for operation in (Operation.CONNECT, Operation.SEND)
            for address in _NET_OBJECTS
        ]
        with fence.session(policy, policies.variables()) as session:
            outcome = session.run(lambda questions=questions: try_addresses(questions))
            told = {
                (d.operation, d.object.packed, d.object.port): d
                for d in outcome.decisions
                if isinstance(d.object, Address)
            }
            for (operation, address, port), number in zip(questions, outcome.value, strict=True):
                packed = packed_address(address)
                wanted = session.evaluator.net(operation, packed, port)
                assert walk.run_net(session.compiled, operation, packed, port) == wanted
                decision = told[operation, packed, port]
                assert (decision.verdict, decision.rule, decision.reason) == (wanted.action, wanted.rule, wanted.reason)
                assert (number == errno.EPERM) == wanted.action.blocks
                done += 1
    assert done == rounds * 2 * len(_NET_OBJECTS)


def packed_address(address: str) -> bytes:
    ip = ipaddress.ip_address(address)
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed
