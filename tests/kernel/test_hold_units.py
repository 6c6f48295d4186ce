# SPDX-License-Identifier: Apache-2.0
"""`action: hold` in a unit or container that may have no cgroup below it: it is frozen in place, and nobody moved."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.kernel.host import cgroup2_root
from tests.support.held import CONNECT, Sink, agent_in_wait, approvals, asked, go, is_written_down
from tests.support.hosts import PATIENCE_S, Host, wait_for

ALONE = f"""
    import os, sys
    print(os.getpid(), flush=True)
    sys.stdin.readline(){CONNECT}
"""


@pytest.fixture
def unit() -> Iterator[Path]:
    """A cgroup that may have none below it."""
    made = cgroup2_root() / f"agentmon-test-unit-{os.getpid()}"
    made.mkdir()
    (made / "cgroup.max.descendants").write_text("0")
    yield made
    (made / "cgroup.kill").write_text("1")

    def removed() -> bool:
        with contextlib.suppress(OSError):
            made.rmdir()
        return not made.exists()

    wait_for(removed, "all in it to end")


def inside(unit: Path, host: Host, sink: Sink) -> subprocess.Popen[str]:
    """An agent in it, about to connect to what is held."""
    policy = host.policy(f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}}")
    running = agent_in_wait(host, policy, ALONE, sink.port)
    assert running.stdout is not None
    (unit / "cgroup.procs").write_text(running.stdout.readline())
    return running


def is_frozen(unit: Path) -> bool:
    return "frozen 1" in (unit / "cgroup.events").read_text()


def test_it_waits_in_its_unit_and_goes_on_once_approved(unit: Path, served: Host, sink: Sink) -> None:
    running = inside(unit, served, sink)
    go(running)
    question = asked(served)[0]
    wait_for(lambda: is_frozen(unit), "the unit to be frozen")
    assert (unit / "cgroup.procs").read_text() == f"{question['pid']}\n"
    assert not sink.heard
    assert served.agentmon("approve", question["id"]).returncode == 0
    assert running.communicate(timeout=PATIENCE_S)[0] == "sent\n"
    assert not is_frozen(unit)


def test_it_waits_for_the_next_daemon(unit: Path, tmp_path: Path, sink: Sink) -> None:
    with Host(tmp_path) as host:
        daemon = host.start()
        running = inside(unit, host, sink)
        go(running)
        question = asked(host)[0]
        wait_for(lambda: is_frozen(unit), "the unit to be frozen")
        wait_for(lambda: is_written_down(host, question["id"]), "it to be written down")
        daemon.kill()
        daemon.wait()
        assert is_frozen(unit)
        host.start()
        assert [q["id"] for q in approvals(host)] == [question["id"]]
        assert is_frozen(unit)
        assert host.agentmon("approve", question["id"]).returncode == 0
        assert running.communicate(timeout=PATIENCE_S)[0] == "sent\n"


def test_it_does_not_stay_frozen_when_no_daemon_comes_any_more(unit: Path, tmp_path: Path, sink: Sink) -> None:
    with Host(tmp_path) as host:
        daemon = host.start()
        running = inside(unit, host, sink)
        go(running)
        asked(host)
        wait_for(lambda: is_frozen(unit), "the unit to be frozen")
        daemon.kill()
        daemon.wait()
        wait_for(lambda: not is_frozen(unit), "the unit to go on")
        assert running.stdout is not None
        assert running.stdout.readline() == "1\n"
        assert not sink.heard
        running.kill()
        running.communicate(timeout=PATIENCE_S)


def test_nobody_else_is_frozen_with_it(unit: Path, served: Host, sink: Sink) -> None:
    running = inside(unit, served, sink)
    other = subprocess.Popen(["sleep", "1000"])
    (unit / "cgroup.procs").write_text(str(other.pid))
    go(running)
    said, _ = running.communicate(timeout=PATIENCE_S)
    assert not is_frozen(unit)
    other.kill()
    other.wait()
    assert said == "1\n"
    assert not sink.heard
    assert f"others are in `{unit}`" in served.agentmon("audit", "log", "--json").stdout
