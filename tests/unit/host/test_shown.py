# SPDX-License-Identifier: Apache-2.0
"""Whether a file can change unseen, by leases of the real kernel."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.host.shown import Lease, lease_at

#: Opens a file in a way of its own, says so, and ends when its input does.
WRITERS = {
    "open": "file = open(sys.argv[1], 'r+b')",
    "mapped": "with open(sys.argv[1], 'r+b') as opened:\n    file = mmap.mmap(opened.fileno(), 0)",
    "a lease": (
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)"
    ),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("as shown")
    return tmp_path / "file"


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest, file: Path) -> Iterator[subprocess.Popen[str]]:
    script = f"import fcntl, mmap, signal, sys\n{WRITERS[request.param]}\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield running
        running.kill()


def leased(file: Path) -> Lease:
    lease = lease_at(bytes(file))
    assert lease is not None
    return lease


def test_a_file_that_nobody_writes_is_leased(file: Path) -> None:
    lease = leased(file)
    assert (lease.look(), lease.is_open()) == (False, False)
    lease.close()


def test_who_has_it_open_for_writing_is_seen_until_that_ends(file: Path, writer: subprocess.Popen[str]) -> None:
    lease = leased(file)
    assert (lease.look(), lease.is_open()) == (True, True)
    writer.communicate()
    assert (lease.look(), lease.is_open()) == (True, False)  # it may be another file by now
    lease.close()


def test_what_is_no_plain_file_has_no_lease(tmp_path: Path) -> None:
    assert lease_at(bytes(tmp_path)) is None
    assert lease_at(bytes(tmp_path / "missing")) is None
