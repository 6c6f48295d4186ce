# SPDX-License-Identifier: Apache-2.0
"""Ways out of the fence that were open once. Each went through before it was closed."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmon.kernel.host import BPFFS
from agentmon.kernel.monitor import Monitor
from agentmon.model.operations import Tier
from tests.support.fence import Fence

SECRET = b"the content\n"
LOOPBACK = "  - {id: fence, on: [connect, send], cidrs: ['127.0.0.0/8', '::/0'], action: deny}\n"
IPPROTO_UDPLITE = 136
SYS_OPEN_TREE = 428
OPEN_TREE_CLONE = 1
AT_RECURSIVE = 0x8000


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_udp_lite_has_no_connect_hook(fence: Fence, family: socket.AddressFamily, host: str) -> None:
    try:
        ear = socket.socket(family, socket.SOCK_DGRAM, IPPROTO_UDPLITE)
    except OSError:
        pytest.skip("not required: this kernel has no UDP-Lite")
    ear.bind((host, 0))
    ear.setblocking(False)

    def send() -> None:
        with socket.socket(family, socket.SOCK_DGRAM, IPPROTO_UDPLITE) as mouth:
            mouth.connect(ear.getsockname())
            mouth.send(b"secret")

    with ear:
        fence.run(LOOPBACK, send)
        with pytest.raises(BlockingIOError):
            ear.recv(100)


@pytest.mark.parametrize("flags", [OPEN_TREE_CLONE, OPEN_TREE_CLONE | AT_RECURSIVE])
def test_a_detached_copy_of_a_mount_has_no_paths(fence: Fence, tier: Tier, ground: Path, flags: int) -> None:
    (ground / "secret").write_bytes(SECRET)

    def read() -> bytes:
        libc = ctypes.CDLL(None, use_errno=True)
        tree = libc.syscall(SYS_OPEN_TREE, -100, os.fsencode(ground), flags)
        if tree < 0:
            raise OSError(ctypes.get_errno(), "open_tree")
        return os.read(os.open("secret", os.O_RDONLY, dir_fd=tree), 100)

    assert fence.run("  []\n", read).value == SECRET
    outcome = fence.run(f'  - {{id: fence, on: read, paths: ["{ground}/**"], action: deny}}\n', read)
    assert outcome.value is None
    assert outcome.stopped(tier)


@pytest.fixture(scope="module")
def small(tier: Tier) -> Iterator[Fence]:
    """Programs with room for a few processes."""
    where = BPFFS / f"agentmon-test-{os.getpid()}-attacks"
    room = 32 + (512 if tier is Tier.LSM else 0)
    monitor = Monitor.open(pin_dir=where, tier=tier, arena_bytes=1 << 20, procs_max=room)
    try:
        yield Fence(monitor)
    finally:
        monitor.detach()


@pytest.mark.tier("react")
def test_more_lost_children_than_can_be_remembered(small: Fence, program: Callable[[str], Path]) -> None:
    """Children that found no room in the process table once pushed each other out of the list of those to be killed."""
    policy = '  - {id: fence, on: read, paths: ["/nonexistent/**"], action: deny}\n'
    outcome = small.run(policy, [program("flood"), "40", "12000"])
    assert outcome.value == b""
