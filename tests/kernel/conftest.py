# SPDX-License-Identifier: Apache-2.0
"""One loaded set of programs for all tests of the kernel side, pinned apart from any other on this host."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.kernel.host import BPFFS
from agentmon.kernel.monitor import Monitor
from agentmon.model.operations import Tier
from tests.support.fence import Fence
from tests.support.held import Sink
from tests.support.hosts import Host


@pytest.fixture(scope="session")
def monitor(tier: Tier) -> Iterator[Monitor]:
    """The programs, attached."""
    opened = Monitor.open(pin_dir=BPFFS / f"agentmon-test-{os.getpid()}-tests", tier=tier, arena_bytes=4 << 20)
    try:
        yield opened
    finally:
        opened.detach()


@pytest.fixture(scope="session")
def fence(monitor: Monitor) -> Fence:
    """Runs things under a policy."""
    return Fence(monitor)


@pytest.fixture
def ground(tmp_path: Path) -> Path:
    """A directory by its true path."""
    return Path(os.path.realpath(tmp_path))


@pytest.fixture(scope="module")
def served() -> Iterator[Host]:
    """A host whose daemon is running already."""
    # not below pytest's own directory, which ordinary users may not enter
    with tempfile.TemporaryDirectory(prefix="agentmon-test-") as directory, Host(Path(directory)) as host:
        host.directory.chmod(0o755)
        host.start()
        yield host


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Host]:
    """A host without a daemon whose kernel waits a minute for one to freeze who is held."""
    with Host(tmp_path) as host:
        host.config.write_text(re.sub(r"park_ms = \d+", "park_ms = 60000", host.config.read_text()))
        yield host


@pytest.fixture
def ear() -> Iterator[socket.socket]:
    """What is sent by UDP arrives here."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.setblocking(False)
        yield opened


@pytest.fixture
def sink() -> Iterator[Sink]:
    """A server of our own."""
    sink = Sink()
    yield sink
    sink.server.close()


@pytest.fixture
def to_sink(served: Host, sink: Sink) -> Path:
    """What connects to it is asked for."""
    return served.policy(
        f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold, reason: ask first}}"
    )


@pytest.fixture
def kept(served: Host) -> Path:
    """A directory that everything is asked for in."""
    directory = served.directory / f"kept-{time.monotonic_ns()}"
    directory.mkdir()
    (directory / "file").write_text("as shown")
    (directory / "script").write_text("#!/bin/sh\necho as shown\n")
    (directory / "script").chmod(0o755)
    return directory


@pytest.fixture
def asks(served: Host, kept: Path) -> Path:
    operations = "exec, read, write, create, delete, rename, link, attr, unix"
    return served.policy(f"  - {{id: kept, on: [{operations}], paths: ['{kept}/**'], action: hold}}", "kept")
