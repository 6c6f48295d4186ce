# SPDX-License-Identifier: Apache-2.0
"""Processes as /proc shows them, and signals that reach the right one or none (pidfd)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from dataclasses import dataclass

from agentmon.host import files, shown
from agentmon.model.events import ProcessKey, Shown

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

#: Whose handlers end what a program waits in: somebody's wish, or its own alarm(2).
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGALRM, signal.SIGVTALRM)


@dataclass(frozen=True, slots=True)
class Stat:
    """Part of ``/proc/PID/stat`` (proc(5))."""

    pid: int
    comm: str
    state: str
    ppid: int
    pgrp: int
    sid: int
    kernel: bool  # PF_KTHREAD
    start_ticks: int  # since boot


@dataclass(frozen=True, slots=True)
class Status:
    """Part of ``/proc/PID/status``."""

    uids: tuple[int, ...]  # real, effective, saved, filesystem
    gids: tuple[int, ...]
    no_new_privs: bool
    tgid: int = 0


def stat(pid: int) -> Stat:
    """Raises `ProcessLookupError` when there is no such process."""
    text = _read(pid, "stat")
    # comm may hold spaces and brackets: it ends at the last one
    name, _, rest = text.rpartition(")")
    fields = rest.split()
    return Stat(
        pid, name.partition("(")[2], fields[0], int(fields[1]), int(fields[2]), int(fields[3]),
        bool(int(fields[6]) & 0x00200000), int(fields[19]),
    )  # fmt: skip


def status(pid: int) -> Status:
    """Of a process, or a thread. Raises `ProcessLookupError` when there is no such process."""
    values = dict(line.split(":", 1) for line in _read(pid, "status").splitlines() if ":" in line)
    return Status(
        tuple(map(int, values["Uid"].split())),
        tuple(map(int, values["Gid"].split())),
        values.get("NoNewPrivs", "0").strip() == "1",
        int(values["Tgid"]),
    )


def interrupted(tid: int) -> signal.Signals | None:
    """What asks this thread to end, or to give up what it does, and is not blocked; None: nothing, or it is gone."""
    try:
        lines = _read(tid, "status").splitlines()
    except ProcessLookupError:
        return None
    sets = {name: int(line[7:], 16) for line in lines if (name := line[:6]) in ("SigPnd", "ShdPnd", "SigBlk")}
    pending = (sets["SigPnd"] | sets["ShdPnd"]) & ~sets["SigBlk"]
    return next((number for number in _ENDING if pending >> (number - 1) & 1), None)


def cgroup(pid: int) -> str:
    """The process's cgroup v2 path; "" when unknown. Raises `ProcessLookupError`."""
    for line in _read(pid, "cgroup").splitlines():
        if line.startswith("0::"):
            return line[3:]
    return ""


def pids() -> list[int]:
    """All processes that /proc shows now."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def link(pid: int, name: str) -> bytes | None:
    """Target of ``/proc/PID/name`` (exe, cwd, root, fd/N); None when it cannot be read."""
    try:
        return os.readlink(b"/proc/%d/%s" % (pid, name.encode()))
    except OSError:
        return None


def executable(pid: int) -> bytes | None:
    """Path of the running program, without the mark of a deleted file."""
    path = link(pid, "exe")
    return path.removesuffix(b" (deleted)") if path else None


def command_line(pid: int) -> list[str]:
    """Its arguments, as it shows them now; empty when it is gone."""
    try:
        text = _read(pid, "cmdline")
    except ProcessLookupError:
        return []
    return text.rstrip("\0").split("\0") if text else []


def directory(pid: int) -> str:
    """Where it works; "" when that is not known."""
    return os.fsdecode(link(pid, "cwd") or b"")


def start(pid: int) -> str:
    """A digest of its arguments and of where it works."""
    words = "\0".join([directory(pid), *command_line(pid)])
    return hashlib.blake2b(words.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def parents(pid: int, most: int = 8) -> list[str]:
    """Its ancestors as they are now, the nearest first: ``PID PROGRAM``."""
    found: list[str] = []
    with contextlib.suppress(ProcessLookupError):
        while len(found) < most and (pid := stat(pid).ppid) > 1:
            program = executable(pid)
            found.append(f"{pid} {program.decode(errors='replace') if program else stat(pid).comm}")
    return found


def is_alive(key: ProcessKey) -> bool:
    """Whether this very process, not one that reuses its PID, still exists (a zombie does not count)."""
    try:
        found = stat(key.pid)
    except ProcessLookupError:
        return False
    return found.state not in "ZX" and found.start_ticks == key.start_ns // _TICK_NS


def has_thread(key: ProcessKey, tid: int) -> bool:
    """Whether this thread still runs in that process."""
    return os.path.exists(f"/proc/{key.pid}/task/{tid}")


def is_this(key: ProcessKey, pid: int, start_ticks: int) -> bool:
    """Whether a key of the kernel's is of the process with this PID that started then."""
    return key.pid == pid and key.start_ns // _TICK_NS == start_ticks


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, by parents as they are now."""
    children: dict[int, list[int]] = {}
    for other in pids():
        with contextlib.suppress(ProcessLookupError):
            children.setdefault(stat(other).ppid, []).append(other)
    found: list[int] = []
    left = [pid]
    while left:
        below = children.pop(left.pop(), [])
        found += below
        left += below
    return found


def is_descendant(pid: int, ancestor: int) -> bool:
    """Whether `pid` is `ancestor` or below it, by parents as they are now."""
    for _ in range(4096):
        if pid == ancestor:
            return True
        if pid <= 1:
            return False
        try:
            pid = stat(pid).ppid
        except ProcessLookupError:
            return False
    return False


def send_signal(key: ProcessKey, number: signal.Signals) -> bool:
    """Signal this very process. False when it has ended. Raises `PermissionError`."""
    try:
        fd = os.pidfd_open(key.pid)
    except (ProcessLookupError, OSError):
        return False
    try:
        if not is_alive(key):  # checked after the pidfd is held: it cannot be reused now
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def resolve_script(pid: int, name: bytes) -> bytes | None:
    """True path of a script as the process named it on exec; None when it cannot be found (any more)."""
    if not name:
        return None
    for prefix in (b"/proc/self/", b"/proc/thread-self/", b"/dev/fd/"):
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            name = b"/proc/%d/%s%s" % (pid, b"fd/" if prefix == b"/dev/fd/" else b"", rest)
            break
    base = b"/proc/%d/root" % pid if name.startswith(b"/") else b"/proc/%d/cwd/" % pid
    with contextlib.suppress(OSError):
        fd = os.open(base + name, os.O_PATH | os.O_CLOEXEC)
        try:
            path = os.readlink(b"/proc/self/fd/%d" % fd)
        finally:
            os.close(fd)
        return path.removesuffix(b" (deleted)") if path.startswith(b"/") else None
    return None


def script_file(pid: int, name: bytes) -> Shown | None:
    """The file of a script as the process named it on exec; None when it cannot be found (any more)."""
    path = resolve_script(pid, name)
    return shown.look(path) if path else None


def program_file(pid: int) -> Shown | None:
    """The file that the process runs, whatever its name is now; None when it is gone."""
    return shown.look(b"/proc/%d/exe" % pid)


def _read(pid: int, name: str) -> str:
    try:
        return files.read(f"/proc/{pid}/{name}").decode("utf-8", "surrogateescape")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"there is no process `{pid}`") from error
