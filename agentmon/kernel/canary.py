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
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol

from agentmon.errors import KernelError
from agentmon.kernel import guarded
from agentmon.kernel.attempts import ATTEMPTS, ATTEMPTS_WITHOUT_OBJECT, LSM_ATTEMPTS, Attempt, Grounds, listeners
from agentmon.model.events import Decision, Event, ProcessKey
from agentmon.model.operations import DETECTED, GUARDED, OPERATIONS, PART_OF_WRITE, Operation, Posture, Tier
from agentmon.model.tables import CompiledPolicy

_TIMEOUT_S = 3.0
_BY_HOST = "the host itself refuses it"
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


#: Said by `doctor` and `ps`: what each tier cannot stop, whatever the canaries saw.
NOTES: Mapping[Tier, Mapping[Operation, str]] = {
    Tier.REACT: {
        Operation.EXEC: "killed before its first instruction; a script by its name, and when its interpreter opens it",
        Operation.READ: "killed after the open, before the descriptor can be used (but another thread could race)",
        Operation.WRITE: "killed after the open: O_TRUNC, like truncate(2), has already emptied the file",
        Operation.CREATE: "killed after the open: the empty file is there, "
        "and so is what mkdir, mknod, symlink, link and rename made",
        **dict.fromkeys(
            PART_OF_WRITE, "killed once it is done; by names that lead through a symbolic link it is not seen"
        ),
        Operation.PTRACE: "killed once it has attached to a process, or read or written its memory; /proc/PID of "
        "others and typing into terminals are not seen",
        Operation.SIGNAL: "killed once it was sent, or the limit changed; stopping its own process group is free",
        Operation.MOUNT: "killed once it is done: the mount stays",
        Operation.NAMESPACE: "killed before it can use the namespace; joining one too",
        Operation.CHROOT: "killed before it can use the new root (but another thread could race)",
        Operation.BPF: "killed before it can use what the call gave it (but another thread could race)",
        Operation.IO_URING: "killed before it can use the ring (but another thread could race)",
        Operation.SETID: "killed before it can use the rights",
        Operation.MODULE: "killed once it is loaded, or was refused",
        Operation.ANON_EXEC: "killed before its first instruction",
        Operation.CONNECT: "TCP and UDP over IPv4 and IPv6; other families by their socket",
        Operation.SEND: "sends on sockets that are already connected are judged when they connect, not again",
        Operation.LISTEN: "killed when the socket listens already, before it can accept",
        Operation.UNIX: "killed when connected, before it can send; datagrams that name their receiver are not seen",
    },
    Tier.LSM: {
        Operation.EXEC: "by its arguments: killed before its first instruction",
        Operation.ATTR: "all but mode, owner and flags: by each name that mounts give the file, the severest counts",
    },
}

#: What the react tier has to judge when a ring is asked for it.
_BY_RING = (
    *(Operation[name] for name in ("READ", "WRITE", "CREATE", "CONNECT", "SEND", "LISTEN", "UNIX")),
    *PART_OF_WRITE,
)

#: Which operations go blind when a program is missing (names of bpf/*.bpf.c and process.bpf.h).
PROGRAM_OPERATIONS: Mapping[str, tuple[Operation, ...]] = {
    "exec_check": (Operation.EXEC, Operation.ANON_EXEC),
    "open_check": (Operation.READ, Operation.WRITE),
    "receive_check": (Operation.READ, Operation.WRITE),
    "interpreter_check": (Operation.READ,),
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
    "setxattr_check": (Operation.ATTR,),
    "removexattr_check": (Operation.ATTR,),
    "set_acl_check": (Operation.ATTR,),
    "remove_acl_check": (Operation.ATTR,),
    "times_check": (Operation.ATTR,),
    "file_setattr_check": (Operation.ATTR,),
    "flags_check": (Operation.ATTR,),
    "flags_compat_check": (Operation.ATTR,),
    "ptrace_check": (Operation.PTRACE,),
    "ioctl_check": (Operation.PTRACE,),
    "ioctl_compat_check": (Operation.PTRACE,),
    "signal_check": (Operation.SIGNAL,),
    "limit_check": (Operation.SIGNAL,),
    "mount_check": (Operation.MOUNT,),
    "move_mount_check": (Operation.MOUNT,),
    "umount_check": (Operation.MOUNT,),
    "remount_check": (Operation.MOUNT,),
    "pivot_check": (Operation.MOUNT,),
    "userns_check": (Operation.NAMESPACE,),
    "chroot_check": (Operation.CHROOT,),
    "bpf_check": (Operation.BPF,),
    "ring_check": (Operation.IO_URING,),
    "setuid_check": (Operation.SETID,),
    "setid_exec_check": (Operation.SETID,),
    "module_data_check": (Operation.MODULE,),
    "module_file_check": (Operation.MODULE,),
    "socket_check": (Operation.CONNECT, Operation.SEND),
    "connect_check": (Operation.CONNECT,),
    "send_check": (Operation.SEND,),
    "option_check": (Operation.SEND,),
    "bind_check": (Operation.BIND,),
    "listen_check": (Operation.LISTEN,),
    "unix_connect_check": (Operation.UNIX,),
    "unix_send_check": (Operation.UNIX,),
    "bind4": (Operation.BIND,),
    "bind6": (Operation.BIND,),
    "connect4": (Operation.CONNECT,),
    "connect6": (Operation.CONNECT,),
    "sendmsg4": (Operation.SEND,),
    "sendmsg6": (Operation.SEND,),
    "recvmsg4": (Operation.SEND,),  # names of hosts; the four above too, in the LSM tier
    "recvmsg6": (Operation.SEND,),
    "getpeername4": (Operation.CONNECT,),
    "getpeername6": (Operation.CONNECT,),
    "sock_create": (Operation.CONNECT, Operation.SEND),
    "connect_unix": (),  # what it refuses is killed without it
    "signal_sent": (Operation.SIGNAL,),
    "namespace_fork": (Operation.NAMESPACE,),
    "rights_exec": (Operation.SETID, Operation.ANON_EXEC),
    "ring_submit": _BY_RING,
    "ring_submit_old": _BY_RING,
}


def operations_of(program: str) -> tuple[Operation, ...]:
    """Operations that cannot be relied on without this program; all, when it serves tracking or is unknown."""
    return PROGRAM_OPERATIONS.get(program, OPERATIONS)


@dataclass(slots=True)
class _Bird:
    """One canary under way, and the pipe that it is heard by."""

    operation: Operation
    name: str
    attempt: Attempt
    effect: str | None
    result: int = -1
    said: bytes = b""


@dataclass(slots=True)
class _Flock:
    """The enrolled process that lets its birds out as its children, and the pipe that tells it to."""

    birds: list[_Bird]
    pid: int
    go: int


def run(monitor: CanaryMonitor, policy: CompiledPolicy, grounds: Grounds) -> Findings:
    """Send out all canaries under `policy` (compiled from `grounds.policy_text`). Raises `KernelError`, `OSError`."""
    began = time.monotonic()
    (grounds.directory / "movable").write_text("x")
    leftovers: list[Event] = list(monitor.read())
    attempts = ATTEMPTS + ATTEMPTS_WITHOUT_OBJECT + (LSM_ATTEMPTS if monitor.tier is Tier.LSM else ())
    policy_slot, _ = monitor.install_policy(policy)
    try:
        slot, _ = monitor.open_session(policy_slot)
        flocks: list[_Flock] = []
        try:
            flocks.extend(_hatch(birds, grounds) for birds in _apart([_Bird(*a) for a in attempts]))  # kept on error
            monitor.enroll([flock.pid for flock in flocks], slot)
            with listeners(grounds):
                for flock in flocks:
                    os.write(flock.go, b"g")
                _listen([bird for flock in flocks for bird in flock.birds])
        finally:
            for flock in flocks:
                _bury(flock)
            events = monitor.read()
            monitor.close_session(slot)
    finally:
        monitor.remove_policy(policy_slot)
    mine = {e.operation for e in events if isinstance(e, Decision) and e.session == slot and e.verdict.blocks}
    leftovers += [e for e in events if e.session != slot]
    birds = [bird for flock in flocks for bird in flock.birds]
    found = tuple(f for b in birds if (f := _judge(monitor.tier, b, b.operation in mine, grounds)) is not None)
    return Findings(found, tuple(leftovers), time.monotonic() - began)


def _apart(birds: list[_Bird]) -> Iterator[list[_Bird]]:
    """Those that mount each need mounts of their own, as one may go through; all others share a parent."""
    yield [bird for bird in birds if bird.operation is not Operation.MOUNT]
    yield from ([bird] for bird in birds if bird.operation is Operation.MOUNT)


def _hatch(birds: list[_Bird], grounds: Grounds) -> _Flock:
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in birds]
    mounts = birds[0].operation is Operation.MOUNT
    pid = os.fork()
    if pid:
        os.close(go_read)
        for bird, (reader, writer) in zip(birds, pipes, strict=True):
            os.close(writer)
            bird.result = reader
        if mounts:
            os.read(birds[0].result, 1)  # once enrolled it may not prepare any more
        return _Flock(birds, pid, go_write)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.close(go_write)
        if mounts:
            guarded.prepare_mounts(grounds.directory)
            os.write(pipes[0][1], b"p")
        if os.read(go_read, 1) == b"g":
            _let_out(birds, grounds, [writer for _, writer in pipes])
    finally:
        os._exit(0)


def _let_out(birds: list[_Bird], grounds: Grounds, results: list[int]) -> None:
    """In the enrolled process: let a child make each attempt, and say how it ended."""
    heard_by = {}
    for bird, result in zip(birds, results, strict=True):
        child = os.fork()
        if child == 0:
            _sing(bird.attempt, grounds, result)
        heard_by[child] = result
    for _ in birds:
        child, status = os.wait()
        os.write(heard_by[child], b"status=%d." % status)


def _sing(attempt: Attempt, grounds: Grounds, result: int) -> NoReturn:
    try:
        os.close(os.open(grounds.directory / "allowed", os.O_RDONLY))
        os.write(result, b"a")
        attempt(grounds)
        os.write(result, b"through;")
    except OSError as error:
        os.write(result, b"errno=%d;" % (error.errno or 0))
    finally:
        os._exit(3)


def _listen(birds: list[_Bird]) -> None:
    """Until all have come back, or none is heard for a while: on a busy host they come one by one."""
    waiting = {bird.result: bird for bird in birds}
    while waiting:
        heard = select.select(list(waiting), [], [], _TIMEOUT_S)[0]
        if not heard:
            return
        for fd in heard:
            chunk = os.read(fd, 256)
            waiting[fd].said += chunk
            if not chunk or waiting[fd].said.endswith(b"."):
                del waiting[fd]


def _bury(flock: _Flock) -> None:
    os.close(flock.go)
    for bird in flock.birds:
        os.close(bird.result)
    if not all(bird.said.endswith(b".") for bird in flock.birds):
        os.kill(flock.pid, signal.SIGKILL)
    os.waitpid(flock.pid, 0)


def _judge(tier: Tier, bird: _Bird, recorded: bool, grounds: Grounds) -> Finding | None:
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
        if bird.operation not in DETECTED[tier]:
            return finding(Posture.STOPS)
        return finding(Posture.DETECTS if recorded else Posture.BLIND, "done, and killed for it")
    if b"errno=" in said:
        number = int(said.partition(b"errno=")[2].partition(b";")[0])
        if number == errno.EPERM:
            if bird.effect and os.path.lexists(f"{grounds.forbidden}/{bird.effect}"):
                return finding(Posture.STOPS, "refused, but the file is there")
            by_host = bird.operation in GUARDED and not recorded
            return finding(Posture.PREVENTS, _BY_HOST if by_host else "")
        # a tier that looks when it has been done has nothing to see then
        if bird.operation in GUARDED and (number == errno.ENOSYS or tier is Tier.REACT):
            return finding(Posture.PREVENTS, _BY_HOST)
        if number in (errno.EAFNOSUPPORT, errno.ENOSYS):
            return None  # this host has no such thing
        passed = f"it was not refused ({errno.errorcode.get(number, str(number))})"
    else:
        passed = "it went through"
    # where detecting means death, one that lives was not seen: the record is another one's
    return finding(Posture.DETECTS if recorded and bird.operation not in DETECTED[tier] else Posture.BLIND, passed)


__all__ = ["NOTES", "Finding", "Findings", "Grounds", "KernelError", "operations_of", "run"]
