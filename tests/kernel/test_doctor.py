# SPDX-License-Identifier: Apache-2.0
"""`agentmon doctor`: it says `enforcing` when that was proven, and blind when a program is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from agentmon.kernel import libbpf, objects
from agentmon.kernel.canary import operations_of
from agentmon.model.operations import Tier
from tests.support.hosts import Host

#: The words of what each program serves, written down here again: a slip in the table must not go unseen.
BLIND = {
    Tier.LSM: {
        "exec_check": {"exec"},
        "open_check": {"read", "write"},
        "truncate_check": {"write"},
        "mknod_check": {"create"},
        "mkdir_check": {"create"},
        "symlink_check": {"create"},
        "link_check": {"create", "link"},
        "rename_check": {"create", "rename"},
        "unlink_check": {"delete"},
        "rmdir_check": {"delete"},
        "chmod_check": {"attr"},
        "chown_check": {"attr"},
        "socket_check": {"connect"},
        "connect_check": {"connect"},
        "send_check": {"send"},
    },
    Tier.REACT: {
        "process_exec": {"exec"},
        "open_exit": {"read", "write", "create"},
        "connect4": {"connect"},
        "connect6": {"connect"},
        "sendmsg4": {"send"},
        "sendmsg6": {"send"},
        "sock_create": {"connect"},
    },
}
CLAIMED = {"exec", "read", "write", "create", "connect", "send"}
LSM_ONLY = {"delete", "rename", "link", "attr"}
ALL = CLAIMED | LSM_ONLY
EVERY = [
    pytest.param(name, marks=pytest.mark.tier(tier.name.lower()), id=f"{tier.name.lower()}-{name}")
    for tier, programs in BLIND.items()
    for name in [*programs, "process_fork", "process_exit"]
]


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
    claimed = ALL if tier is Tier.LSM else CLAIMED
    assert {report["posture"][operation]["posture"] for operation in claimed} <= wanted
    assert {report["posture"][operation]["posture"] for operation in ALL - claimed} <= {"blind"}
    assert report["canary_ms"] > 0
    assert not list(objects.host.BPFFS.glob("agentmon-doctor-*"))


def test_the_daemon_is_asked_when_there_is_one(host: Host) -> None:
    host.start()
    status, report = doctor(host)
    assert (status, report["enforcing"]) == (0, True)
    assert "pid" in report["daemon"]
    assert "enforcing" in host.agentmon("doctor").stdout.splitlines()[-1]


@pytest.mark.parametrize("program", EVERY)
def test_a_missing_program_makes_its_operations_blind(host: Host, tier: Tier, program: str) -> None:
    status, report = doctor(host, "--skip", program)
    blind = {operation for operation, value in report["posture"].items() if value["posture"] == "blind"}
    assert (status, report["enforcing"]) == (1, False)
    assert blind >= BLIND[tier].get(program, ALL)
    assert report["programs"][program].startswith("missing")
    # The canaries see it themselves, without looking at the list of programs; but a packet socket is also stopped
    # at the end of the call, and no canary can tell that the end of a process goes unnoticed.
    # In the LSM tier task_alloc makes up for process_fork.
    if program not in ("sock_create", "process_exit") and (tier, program) != (Tier.LSM, "process_fork"):
        seen = {canary["operation"] for canary in report["canaries"] if canary["posture"] not in ("prevents", "stops")}
        assert seen >= BLIND[tier].get(program, ALL)


def test_every_program_is_known_here(tier: Tier) -> None:
    obj = libbpf.Object(str(objects.object_path(tier)))
    names = set(obj.programs)
    obj.close()
    tracking = {"process_fork", "process_exit", "mark_processes", "process_exec", "fork_check"}
    if tier is Tier.LSM:
        tracking.add("task_forget")
    assert names - tracking - objects.OPTIONAL == BLIND[tier].keys() - tracking
    assert operations_of("never-heard-of")
