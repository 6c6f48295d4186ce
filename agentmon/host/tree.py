# SPDX-License-Identifier: Apache-2.0
"""Who belongs to a process tree, and who might."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from agentmon.host import process


@dataclass(frozen=True, slots=True)
class Orphan:
    """A process outside the tree that shares something with it: it may have come from it, nobody can tell."""

    pid: int
    comm: str
    why: str


def orphans(members: Collection[int]) -> list[Orphan]:
    """Processes reparented to init or a subreaper that share a session, process group or cgroup with `members`."""
    sids: set[int] = set()
    groups: set[int] = set()
    cgroups: set[str] = set()
    parents: set[int] = set()
    for pid in members:
        try:
            stat = process.stat(pid)
            sids.add(stat.sid)
            groups.add(stat.pgrp)
            cgroups.add(process.cgroup(pid))
        except ProcessLookupError:
            continue
        while pid > 1 and pid not in parents:  # ancestors are not orphans
            parents.add(pid)
            try:
                pid = process.stat(pid).ppid  # noqa: PLW2901  # walking up
            except ProcessLookupError:
                break
    cgroups -= {"", "/"}
    found: list[Orphan] = []
    for pid in process.pids():
        if pid in members or pid in parents:
            continue
        try:
            stat = process.stat(pid)
            if stat.kernel or stat.state in "ZX" or not _reparented(stat):
                continue
            if stat.pgrp in groups:
                found.append(Orphan(pid, stat.comm, "same process group"))
            elif stat.sid in sids:
                found.append(Orphan(pid, stat.comm, "same terminal session"))
            elif cgroups and process.cgroup(pid) in cgroups:
                found.append(Orphan(pid, stat.comm, "same cgroup"))
        except ProcessLookupError:
            continue
    return found


def _reparented(stat: process.Stat) -> bool:
    """Whether its parent is init, or is of another terminal session (a subreaper took it)."""
    if stat.ppid <= 1:
        return True
    if stat.sid == stat.pid:
        return False
    try:
        return process.stat(stat.ppid).sid != stat.sid
    except ProcessLookupError:
        return True
