# SPDX-License-Identifier: Apache-2.0
"""`agentmon doctor`: it says `enforcing` when that was proven, and blind when a program is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from agentmon.daemon.health import check
from agentmon.daemon.policies import PolicyBook
from agentmon.kernel import objects
from agentmon.kernel.monitor import Monitor
from agentmon.model.operations import Tier
from tests.support.hosts import Host

CLAIMED = {"exec", "read", "write", "create", "connect", "send", "bind", "listen", "unix"}
CLAIMED |= {"namespace", "chroot", "bpf", "io_uring", "setid", "anon_exec"}
DETECTED = {"delete", "rename", "link", "attr", "ptrace", "signal", "mount", "module"}
ALL = CLAIMED | DETECTED


@pytest.fixture
def host(tmp_path: Any) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


def doctor(host: Host, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = host.agentmon("doctor", "--json", *arguments)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_sound_host_is_enforcing(host: Host, tier: Tier) -> None:
    status, report = doctor(host)
    assert (status, report["enforcing"]) == (0, True), report
    wanted = {"prevents"} if tier is Tier.LSM else {"prevents", "stops"}
    assert report["posture"].keys() == ALL
    postures = {operation: report["posture"][operation]["posture"] for operation in ALL}
    assert {postures[operation] for operation in (ALL if tier is Tier.LSM else CLAIMED)} <= wanted
    if tier is Tier.REACT:
        # without kernel modules, as here, the host prevents those
        assert {postures[operation] for operation in DETECTED - {"module"}} == {"detects"}
        assert postures["module"] in ("detects", "prevents")
    assert report["canary_ms"] > 0
    assert not list(objects.host.BPFFS.glob("agentmon-doctor-*"))


def test_the_daemon_is_asked_when_there_is_one(host: Host) -> None:
    host.start()
    status, report = doctor(host)
    assert (status, report["enforcing"]) == (0, True), report
    assert "pid" in report["daemon"]
    assert "enforcing" in host.agentmon("doctor").stdout.splitlines()[-1]


@pytest.mark.tier("lsm")
def test_the_other_tier_loads_as_well(tmp_path: Any) -> None:
    """What this kernel would run if BPF were not among its security modules."""
    pins = objects.host.BPFFS / f"agentmon-test-{os.getpid()}-react"
    monitor = Monitor.open(pin_dir=pins, tier=Tier.REACT, arena_bytes=1 << 20)
    try:
        health = check(monitor, PolicyBook(), tmp_path)
        assert health.enforcing, (health.skipped, health.findings)
    finally:
        monitor.detach()
