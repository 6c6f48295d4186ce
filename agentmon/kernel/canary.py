# SPDX-License-Identifier: Apache-2.0
"""Live canaries: throw-away enrolled processes that try what their policy forbids.

What really happens is the posture: `EPERM` before any effect prevents; killed before it could use the result stops;
a record but no harm to the process detects; nothing at all is blind. Each attempt is made by a *child* of the
enrolled process, so that a fence which does not follow forks is found blind as well; and each first does
something allowed, so that a fence which breaks everything is not taken for one that works.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import socket
import stat
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agentmon.errors import KernelError
from agentmon.model.events import Decision, Event, ProcessKey
from agentmon.model.operations import OPERATIONS, PART_OF_WRITE, Operation, Posture, Tier
from agentmon.model.tables import CompiledPolicy

#: Nothing needs to listen there: discard.
PORT = 9
_TIMEOUT_S = 3.0
_RANK = (Posture.BLIND, Posture.DETECTS, Posture.STOPS, Posture.PREVENTS)


class CanaryMonitor(Protocol):
    """What canaries need of the monitor."""

    tier: Tier

    def install_policy(self, policy: CompiledPolicy) -> tuple[int, int]: ...
    def remove_policy(self, slot: int) -> None: ...
    def open_session(self, policy_slot: int) -> tuple[int, int]: ...
    def close_session(self, slot: int) -> None: ...
    def enroll(self, pids: Collection[int], session: int) -> list[ProcessKey]: ...
    def read(self, limit: int = ...) -> list[Event]: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """What one canary saw."""

    operation: Operation
    attempt: str
    posture: Posture
    note: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """What all canaries saw. `leftovers`: records of other sessions that were read meanwhile."""

    findings: tuple[Finding, ...]
    leftovers: tuple[Event, ...]
    duration_s: float

    @property
    def postures(self) -> dict[Operation, Posture]:
        """Per operation, the worst of its attempts."""
        worst: dict[Operation, Posture] = {}
        for finding in self.findings:
            worst[finding.operation] = min(
                finding.posture, worst.get(finding.operation, Posture.PREVENTS), key=_RANK.index
            )
        return worst


@dataclass(frozen=True, slots=True)
class Grounds:
    """Where canaries act: a directory of their own and a program. The policy must deny all of it."""

    directory: Path
    program: str

    @property
    def forbidden(self) -> str:
        """The directory below which read, write and create are denied."""
        return f"{self.directory}/forbidden"

    @property
    def policy_text(self) -> str:
        """The built-in canary policy."""
        return (
            "policy: canary\n"
            "default: {exec: allow, read: allow, write: allow, create: allow, connect: allow, send: allow}\n"
            "rules:\n"
            f'  - {{id: canary-exec, on: exec, paths: ["{self.program}"], action: deny}}\n'
            f'  - {{id: canary-files, on: [read, write, create], paths: ["{self.forbidden}/**"], action: deny}}\n'
            f'  - {{id: canary-network, on: [connect, send], cidrs: ["127.0.0.1:{PORT}", "[::1]:{PORT}"], '
            "action: deny}\n"
        )

    @classmethod
    def make(cls, parent: Path) -> Grounds:
        """A fresh directory below `parent`. Raises `OSError`."""
        parent.mkdir(parents=True, exist_ok=True)
        directory = Path(os.path.realpath(parent)) / f"canary-{os.getpid()}-{time.monotonic_ns():x}"
        (directory / "forbidden").mkdir(parents=True, mode=0o700)
        (directory / "allowed").write_text("ok")
        for name in ("read", "write", "truncate", "delete", "rename", "link", "chmod", "chown"):
            (directory / "forbidden" / name).write_text("untouched")
        (directory / "forbidden" / "rmdir").mkdir()
        return cls(directory, os.path.realpath(shutil.which("true") or "/bin/true"))

    def remove(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)


Attempt = Callable[[Grounds], None]


def _exec(grounds: Grounds) -> None:
    os.execv(grounds.program, [grounds.program])  # noqa: S606  # this is the attempt


def _open(name: str, flags: int) -> Attempt:
    def attempt(grounds: Grounds) -> None:
        os.open(f"{grounds.forbidden}/{name}", flags, 0o600)

    return attempt


def _truncate(grounds: Grounds) -> None:
    os.truncate(f"{grounds.forbidden}/truncate", 0)


def _connect(family: int, address: str) -> Attempt:
    def attempt(_: Grounds) -> None:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.connect((address, PORT))

    return attempt


def _send(family: int, address: str) -> Attempt:
    def attempt(_: Grounds) -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"canary", (address, PORT))

    return attempt


def _send_connected(_: Grounds) -> None:
    """Connected where it may be, then sends to where it may not: an address in sendto overrides the peer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", PORT + 1))
        sock.sendto(b"canary", ("127.0.0.1", PORT))


def _raw(_: Grounds) -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


_ATTEMPTS: tuple[tuple[Operation, str, Attempt, str | None], ...] = (
    # operation, name, attempt, the file below forbidden/ that shows an effect
    (Operation.EXEC, "execve", _exec, None),
    (Operation.READ, "open for reading", _open("read", os.O_RDONLY), None),
    (Operation.WRITE, "open for writing", _open("write", os.O_WRONLY), None),
    (Operation.CREATE, "open that creates", _open("created", os.O_CREAT | os.O_WRONLY), "created"),
    (Operation.DELETE, "unlink", lambda g: os.unlink(f"{g.forbidden}/delete"), None),
    (Operation.DELETE, "rmdir", lambda g: os.rmdir(f"{g.forbidden}/rmdir"), None),
    (Operation.RENAME, "rename", lambda g: os.rename(f"{g.forbidden}/rename", f"{g.directory}/renamed"), None),
    (Operation.LINK, "link", lambda g: os.link(f"{g.forbidden}/link", f"{g.directory}/linked"), None),
    (Operation.ATTR, "chmod", lambda g: os.chmod(f"{g.forbidden}/chmod", 0o600), None),
    (Operation.ATTR, "chown", lambda g: os.chown(f"{g.forbidden}/chown", 1, 1), None),
    (Operation.CONNECT, "connect over IPv4", _connect(socket.AF_INET, "127.0.0.1"), None),
    (Operation.CONNECT, "connect over IPv6", _connect(socket.AF_INET6, "::1"), None),
    (Operation.CONNECT, "connect over IPv4 mapped", _connect(socket.AF_INET6, "::ffff:127.0.0.1"), None),
    (Operation.CONNECT, "packet socket", _raw, None),
    (Operation.SEND, "sendto over IPv4", _send(socket.AF_INET, "127.0.0.1"), None),
    (Operation.SEND, "sendto over IPv6", _send(socket.AF_INET6, "::1"), None),
    (Operation.SEND, "sendto elsewhere on a connected socket", _send_connected, None),
)

#: What only the LSM tier sees.
_LSM_ATTEMPTS: tuple[tuple[Operation, str, Attempt, str | None], ...] = (
    (Operation.WRITE, "truncate", _truncate, None),
    (Operation.CREATE, "mkdir", lambda g: os.mkdir(f"{g.forbidden}/dir"), "dir"),
    (Operation.CREATE, "mknod", lambda g: os.mknod(f"{g.forbidden}/fifo", stat.S_IFIFO | 0o600), "fifo"),
    (Operation.CREATE, "symlink", lambda g: os.symlink("x", f"{g.forbidden}/symlink"), "symlink"),
    (Operation.CREATE, "link", lambda g: os.link(f"{g.directory}/allowed", f"{g.forbidden}/linked"), "linked"),
    (Operation.CREATE, "rename", lambda g: os.rename(f"{g.directory}/movable", f"{g.forbidden}/moved"), "moved"),
)  # fmt: skip

#: Said by `doctor` and `ps`: what each tier cannot stop, whatever the canaries saw.
NOTES: Mapping[Tier, Mapping[Operation, str]] = {
    Tier.REACT: {
        Operation.EXEC: "killed before its first instruction; a script by its name, and when its interpreter opens it",
        Operation.READ: "killed after the open, before the descriptor can be used (but another thread could race)",
        Operation.WRITE: "killed after the open: O_TRUNC has already emptied the file; truncate(2) is not seen",
        Operation.CREATE: "killed after the open: the empty file is there; "
        "mkdir, mknod, symlink, link and rename are not seen",
        **dict.fromkeys(PART_OF_WRITE, "not seen: this kernel has no BPF LSM"),
        Operation.CONNECT: "TCP and UDP over IPv4 and IPv6; other families by their socket",
        Operation.SEND: "sends on sockets that are already connected are judged when they connect, not again",
    },
    Tier.LSM: {
        Operation.READ: "descriptors received over a unix socket are judged by who opened them",
        Operation.ATTR: "mode and owner; extended attributes and times are not judged",
    },
}

#: Which operations go blind when a program is missing (names of bpf/*.bpf.c and process.bpf.h).
PROGRAM_OPERATIONS: Mapping[str, tuple[Operation, ...]] = {
    "exec_check": (Operation.EXEC,),
    "open_check": (Operation.READ, Operation.WRITE),
    "truncate_check": (Operation.WRITE,),
    "mknod_check": (Operation.CREATE,),
    "mkdir_check": (Operation.CREATE,),
    "symlink_check": (Operation.CREATE,),
    "link_check": (Operation.CREATE, Operation.LINK),
    "rename_check": (Operation.CREATE, Operation.RENAME),
    "unlink_check": (Operation.DELETE,),
    "rmdir_check": (Operation.DELETE,),
    "chmod_check": (Operation.ATTR,),
    "chown_check": (Operation.ATTR,),
    "socket_check": (Operation.CONNECT, Operation.SEND),
    "connect_check": (Operation.CONNECT,),
    "send_check": (Operation.SEND,),
    "connect4": (Operation.CONNECT,),
    "connect6": (Operation.CONNECT,),
    "sendmsg4": (Operation.SEND,),
    "sendmsg6": (Operation.SEND,),
    "sock_create": (Operation.CONNECT, Operation.SEND),
    "ring_submit": (Operation.READ, Operation.WRITE, Operation.CREATE),
    "ring_submit_old": (Operation.READ, Operation.WRITE, Operation.CREATE),
}


def operations_of(program: str) -> tuple[Operation, ...]:
    """Operations that cannot be relied on without this program; all, when it serves tracking or is unknown."""
    return PROGRAM_OPERATIONS.get(program, OPERATIONS)


@dataclass(slots=True)
class _Bird:
    """One canary under way: the enrolled process, and the pipes to and from it."""

    operation: Operation
    name: str
    effect: str | None
    pid: int
    go: int
    result: int
    said: bytes = b""


def run(monitor: CanaryMonitor, policy: CompiledPolicy, grounds: Grounds) -> Findings:
    """Send out all canaries under `policy` (compiled from `grounds.policy_text`). Raises `KernelError`, `OSError`."""
    began = time.monotonic()
    (grounds.directory / "movable").write_text("x")
    leftovers: list[Event] = list(monitor.read())
    attempts = _ATTEMPTS + (_LSM_ATTEMPTS if monitor.tier is Tier.LSM else ())
    policy_slot, _ = monitor.install_policy(policy)
    try:
        slot, _ = monitor.open_session(policy_slot)
        birds: list[_Bird] = []
        try:
            for operation, name, attempt, effect in attempts:
                birds.append(_hatch(operation, name, attempt, effect, grounds))  # kept on error
            monitor.enroll([bird.pid for bird in birds], slot)
            for bird in birds:
                os.write(bird.go, b"g")
            _listen(birds)
        finally:
            for bird in birds:
                _bury(bird)
            events = monitor.read()
            monitor.close_session(slot)
    finally:
        monitor.remove_policy(policy_slot)
    mine = {e.operation for e in events if isinstance(e, Decision) and e.session == slot and e.verdict.blocks}
    leftovers += [e for e in events if e.session != slot]
    found = tuple(f for bird in birds if (f := _judge(bird, bird.operation in mine, grounds)) is not None)
    return Findings(found, tuple(leftovers), time.monotonic() - began)


def _hatch(operation: Operation, name: str, attempt: Attempt, effect: str | None, grounds: Grounds) -> _Bird:
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    result_read, result_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(go_read)
        os.close(result_write)
        return _Bird(operation, name, effect, pid, go_write, result_read)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.close(go_write)
        if os.read(go_read, 1) == b"g":
            _sing(attempt, grounds, result_write)
    finally:
        os._exit(0)


def _sing(attempt: Attempt, grounds: Grounds, result: int) -> None:
    """In the enrolled process: let a child try, and say how it ended."""
    child = os.fork()
    if child == 0:
        try:
            os.close(os.open(grounds.directory / "allowed", os.O_RDONLY))
            os.write(result, b"a")
            attempt(grounds)
            os.write(result, b"through;")
        except OSError as error:
            os.write(result, b"errno=%d;" % (error.errno or 0))
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    os.write(result, b"status=%d." % status)


def _listen(birds: list[_Bird]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    waiting = {bird.result: bird for bird in birds}
    while waiting and (left := deadline - time.monotonic()) > 0:
        for fd in select.select(list(waiting), [], [], left)[0]:
            chunk = os.read(fd, 256)
            waiting[fd].said += chunk
            if not chunk or waiting[fd].said.endswith(b"."):
                del waiting[fd]


def _bury(bird: _Bird) -> None:
    os.close(bird.go)
    os.close(bird.result)
    if not bird.said.endswith(b"."):
        os.kill(bird.pid, signal.SIGKILL)
    os.waitpid(bird.pid, 0)


def _judge(bird: _Bird, recorded: bool, grounds: Grounds) -> Finding | None:
    def finding(posture: Posture, note: str = "") -> Finding:
        return Finding(bird.operation, bird.name, posture, note)

    said = bird.said
    if not said.startswith(b"a"):
        return finding(Posture.BLIND, f"the canary could not even do what is allowed ({said.decode() or 'silent'})")
    if b"status=" not in said:
        return finding(Posture.BLIND, "the canary did not come back in time")
    status = int(said.rpartition(b"status=")[2].rstrip(b"."))
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if killed and b"through" not in said:
        return finding(Posture.STOPS)
    if b"errno=" in said:
        number = int(said.partition(b"errno=")[2].partition(b";")[0])
        if number == errno.EPERM:
            if bird.effect and os.path.lexists(f"{grounds.forbidden}/{bird.effect}"):
                return finding(Posture.STOPS, "refused, but the file is there")
            return finding(Posture.PREVENTS)
        if number == errno.EAFNOSUPPORT:
            return None  # this host has no such sockets
        passed = f"it was not refused ({errno.errorcode.get(number, str(number))})"
    else:
        passed = "it went through"
    return finding(Posture.DETECTS if recorded else Posture.BLIND, passed)


__all__ = ["NOTES", "Finding", "Findings", "Grounds", "KernelError", "operations_of", "run"]
