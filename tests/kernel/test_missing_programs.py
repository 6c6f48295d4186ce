# SPDX-License-Identifier: Apache-2.0
"""`agentmon doctor` says blind when a program is missing: one test a program."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentmon.daemon.health import check
from agentmon.daemon.policies import PolicyBook
from agentmon.kernel import libbpf, objects
from agentmon.kernel.canary import operations_of
from agentmon.kernel.host import BPFFS
from agentmon.kernel.monitor import Monitor
from agentmon.model.operations import CLAIMED, DETECTED, Tier
from tests.kernel.test_doctor import ALL, doctor
from tests.support.hosts import Host

#: Names of hosts need these in both tiers, and no canary asks for a name.
_OF_NAMES = {
    "connect4": {"connect"},
    "connect6": {"connect"},
    "sendmsg4": {"send"},
    "sendmsg6": {"send"},
    "recvmsg4": {"send"},
    "recvmsg6": {"send"},
    "getpeername4": {"connect"},
    "getpeername6": {"connect"},
}

#: The words of what each program serves, written down here again: a slip in the table must not go unseen.
BLIND = {
    Tier.LSM: {
        "exec_check": {"exec", "anon_exec"},
        "open_check": {"read", "write"},
        "receive_check": {"read"},
        "interpreter_check": {"read"},
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
        "setxattr_check": {"attr"},
        "removexattr_check": {"attr"},
        "set_acl_check": {"attr"},
        "remove_acl_check": {"attr"},
        "times_check": {"attr"},
        "file_setattr_check": {"attr"},
        "flags_check": {"attr"},
        "flags_compat_check": {"attr"},
        "ptrace_check": {"ptrace"},
        "ioctl_check": {"ptrace"},
        "ioctl_compat_check": {"ptrace"},
        "signal_check": {"signal"},
        "limit_check": {"signal"},
        "mount_check": {"mount"},
        "move_mount_check": {"mount"},
        "umount_check": {"mount"},
        "remount_check": {"mount"},
        "pivot_check": {"mount"},
        "userns_check": {"namespace"},
        "chroot_check": {"chroot"},
        "bpf_check": {"bpf"},
        "ring_check": {"io_uring"},
        "setuid_check": {"setid"},
        "setid_exec_check": {"setid"},
        "module_data_check": {"module"},
        "module_file_check": {"module"},
        "socket_check": {"connect"},
        "connect_check": {"connect"},
        "send_check": {"send"},
        "option_check": {"send"},
        "bind_check": {"bind"},
        "listen_check": {"listen"},
        "unix_connect_check": {"unix"},
        "unix_send_check": {"unix"},
        **_OF_NAMES,
    },
    Tier.REACT: {
        "process_exec": {"exec"},
        "rights_exec": {"setid", "anon_exec"},
        "open_exit": {
            "read",
            "write",
            "create",
            "delete",
            "rename",
            "link",
            "attr",
            "unix",
            "listen",
            "ptrace",
            "mount",
            "namespace",
            "chroot",
            "bpf",
            "io_uring",
            "setid",
            "module",
        },
        "signal_sent": {"signal"},
        "namespace_fork": {"namespace"},
        "bind4": {"bind"},
        "bind6": {"bind"},
        **_OF_NAMES,
        "sock_create": {"connect"},
    },
}
ALONE = ("process_fork", "process_exit")  # without them nothing can be relied on
EVERY = [
    pytest.param(name, marks=pytest.mark.tier(tier.name.lower()), id=f"{tier.name.lower()}-{name}")
    for tier, programs in BLIND.items()
    for name in [*programs, *ALONE]
]


def together(tier: Tier) -> list[list[str]]:
    """The programs, in groups that serve different operations: loading the others takes an emulated guest seconds."""
    groups: list[list[str]] = []
    for name, words in BLIND[tier].items():
        for group in groups:
            if not any(words & BLIND[tier][other] for other in group):
                group.append(name)
                break
        else:
            groups.append([name])
    return [*groups, *([name] for name in ALONE)]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory, tier: Tier) -> Callable[[str], tuple[int, dict[str, Any]]]:
    """What `doctor` says without a program (and others of its group)."""

    @functools.cache
    def asked(group: tuple[str, ...]) -> tuple[int, dict[str, Any]]:
        with Host(tmp_path_factory.mktemp("host")) as host:
            return doctor(host, *(word for name in group for word in ("--skip", name)))

    return lambda program: asked(next(tuple(group) for group in together(tier) if program in group))


@pytest.mark.parametrize("program", EVERY)
def test_a_missing_program_makes_its_operations_blind(
    without: Callable[[str], tuple[int, dict[str, Any]]], tier: Tier, program: str
) -> None:
    if program in objects.needless():
        pytest.skip(f"not required: {objects.needless()[program]}")
    status, report = without(program)
    blind = {operation for operation, value in report["posture"].items() if value["posture"] == "blind"}
    assert (status, report["enforcing"]) == (1, False)
    assert blind >= BLIND[tier].get(program, ALL)
    assert report["programs"][program].startswith("missing")
    # The canaries see it themselves, without looking at the list of programs; but a packet socket is also stopped
    # at the end of the call, and no canary can tell that the end of a process goes unnoticed.
    # In the LSM tier task_alloc makes up for process_fork.
    judged = tier is Tier.REACT and program.startswith(("connect", "sendmsg"))
    if program in _OF_NAMES and not judged:
        return
    # A program whose interpreter is denied dies as if it were broken; and canaries make no 32-bit calls.
    unseen = {"sock_create", "process_exit", "interpreter_check", "ioctl_compat_check", "flags_compat_check"} | (
        {"process_fork"} if tier is Tier.LSM else set()
    )
    if program not in unseen:
        detected = {operation.word for operation in DETECTED[tier]}
        good = {"prevents", "stops"}
        seen = {
            canary["operation"]
            for canary in report["canaries"]
            if canary["posture"] not in (good | {"detects"} if canary["operation"] in detected else good)
            or canary["note"] == "the host itself refuses it"
        }
        assert seen >= BLIND[tier].get(program, {operation.word for operation in CLAIMED[tier]} | detected)


def test_every_program_is_known_here(tier: Tier) -> None:
    obj = libbpf.Object(str(objects.object_path(tier)))
    names = set(obj.programs)
    obj.close()
    tracking = {"process_fork", "process_exit", "mark_processes", "process_exec", "fork_check"}
    if tier is Tier.LSM:
        tracking.add("task_forget")
    asked = {*objects.on_demand(tier), objects.MARK_STEP}  # a session that needs them is refused without
    assert names - tracking - objects.OPTIONAL - asked == BLIND[tier].keys() - tracking
    assert operations_of("never-heard-of")


def test_a_hook_that_the_kernel_has_not_is_seen() -> None:
    assert libbpf.missing_hooks(["file_ioctl", "never_heard_of"]) == ["never_heard_of"]


def test_a_kernel_without_a_hook_that_it_needs_not_is_no_worse(
    tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a program that no canary misses: what is not needed makes nothing blind."""
    monkeypatch.setattr(objects, "REPLACED", {"getpeername4": ("never_heard_of", "another")})
    objects.needless.cache_clear()
    where = BPFFS / f"agentmon-test-{os.getpid()}-hooks"
    try:
        monitor = Monitor.open(pin_dir=where, tier=tier, arena_bytes=1 << 20)
        try:
            programs = monitor.programs()
            health = check(monitor, PolicyBook(), tmp_path)
        finally:
            monitor.detach()
    finally:
        objects.needless.cache_clear()
    assert programs["getpeername4"].startswith("not needed: this kernel calls `another`")
    assert programs["getpeername6"] == "attached"
    assert health.enforcing, health.findings
