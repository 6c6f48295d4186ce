# SPDX-License-Identifier: Apache-2.0
"""Opens that wait (`daemon.opens`) outlive the daemon: others have the descriptor of their group too.

The warden has it, which survives the daemon; and systemd, which kills the warden too, in its store. The next daemon
takes the group from either, and answers who still waits. For new opens it makes a group of its own, so that no number
is of two events. In between nobody else waits: whoever has the group takes the marks away (`calm`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentmon.daemon.notify import listened, notify
from agentmon.host import process, starting
from agentmon.host.calls import waits_in
from agentmon.kernel.fanotify import Gate, Opening, is_group
from agentmon.model.events import ProcessKey
from agentmon.model.operations import Operation

#: No daemon has more descriptors while it has a group: so many numbers are tried to find who waits unknown.
NUMBERS: Final = 65536
#: Groups that are handed over at once: each daemon that dies may leave one. The unit's FileDescriptorStoreMax=.
GROUPS: Final = 16
_SOCKET: Final = "gates"
_MESSAGE_BYTES: Final = 4096
_REPLY_S: Final = 10.0
_PREFIX: Final = "gate-"


@dataclass(frozen=True, slots=True)
class Left:
    """What the next daemon has to know of an open that waits."""

    process: ProcessKey
    tid: int
    held: int
    gate: str  # the group's name
    number: int
    to_run: bool
    operations: frozenset[Operation]
    file: tuple[int, int]  # device and inode
    path: bytes
    call: tuple[str, ...]  # `host.calls.waits_in`

    def row(self) -> list[Any]:
        """For JSON."""
        return [
            (self.process.pid, self.process.start_ns), self.tid, self.held, self.gate, self.number, self.to_run,
            sorted(self.operations), self.file, os.fsdecode(self.path), self.call,
        ]  # fmt: skip


def left_of(row: list[Any]) -> Left:
    """The other way round. Raises ValueError, TypeError and the like."""
    key, tid, held, gate, number, to_run, operations, file, path, call = row
    return Left(
        ProcessKey(*key), tid, held, gate, number, to_run, frozenset(map(Operation, operations)),
        (file[0], file[1]), os.fsencode(path), tuple(call),
    )  # fmt: skip


def left_in(state: Path) -> list[Left]:
    """The opens that wait, as the last daemon wrote it down; none if that cannot be read."""
    try:
        known = json.loads((state / "held.json").read_text(encoding="utf-8"))
        return [left_of(row) for row in known["opens"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


def still_waits(left: Left) -> bool:
    """Whether that thread waits in that very call."""
    with contextlib.suppress(OSError):
        is_there = process.is_alive(left.process) and process.status(left.tid).tgid == left.process.pid
        return is_there and left.call != () and waits_in(left.tid) == left.call
    return False


def reopened(left: Left) -> Opening | None:
    """None: its file is not there by its name any more, so nobody can be shown what it opens."""
    with contextlib.suppress(OSError):
        path = os.open(left.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(path)
            if (found.st_dev, found.st_ino) == left.file:
                fd = os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                return Opening(fd, left.tid, left.to_run, left.number)
        finally:
            os.close(path)
    return None


# ---- what is done to a group whose daemon is gone


def calm(gate: Gate, kept: Collection[int]) -> None:
    """Nobody waits from now on, and of those who do only these. Who is of a session is ended by the kernel."""
    gate.unmark_all()
    for number in range(NUMBERS):
        while number not in kept and gate.respond(number, allow=True):
            pass
    drain(gate, kept)


def drain(gate: Gate, kept: Collection[int]) -> None:
    """Let go on who came before the marks were gone, and was not read."""
    taken: list[int] = []
    with open(os.devnull, "rb") as nothing:
        for number in kept:  # what is read here must not get such a number
            with contextlib.suppress(OSError):
                taken.append(fcntl.fcntl(nothing, fcntl.F_DUPFD_CLOEXEC, number))
        while found := gate.read():
            for opening in found:
                gate.answer(opening, allow=True)
    for fd in taken:
        os.close(fd)


def refuse(gate: Gate) -> None:
    """Nobody comes to answer who waits."""
    for number in range(NUMBERS):
        gate.respond(number, allow=False)


# ---- the daemon


class Gates:
    """The groups of this daemon and, of those before it, the ones that somebody waits in. For several threads."""

    def __init__(self, taken: dict[str, Gate]) -> None:
        self._gates = dict(taken)
        self._warden: socket.socket | None = None
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._gates

    def __getitem__(self, name: str) -> Gate:
        """Raises KeyError."""
        return self._gates[name]

    def all(self) -> list[Gate]:
        """The oldest first."""
        return list(self._gates.values())

    def new(self) -> Gate:
        """A new group. Raises NotSupportedError."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft > NUMBERS:
            resource.setrlimit(resource.RLIMIT_NOFILE, (NUMBERS, hard))
        gate = Gate(f"{_PREFIX}{secrets.token_hex(4)}")
        with self._lock:
            self._gates[gate.name] = gate
            self._tell_warden()
        notify(f"FDSTORE=1\nFDNAME={gate.name}", [gate.fd])
        return gate

    def close(self, gate: Gate) -> None:
        """Nobody waits in it any more."""
        with self._lock:
            del self._gates[gate.name]
            self._tell_warden()
        notify(f"FDSTOREREMOVE=1\nFDNAME={gate.name}")
        gate.close()

    def guarded_by(self, warden: socket.socket) -> None:
        """There is a warden, the first or another one; this is the end of the pair that it has the other of."""
        with self._lock:
            if self._warden is not None:
                self._warden.close()
            self._warden = warden
            warden.setblocking(False)
            self._tell_warden()

    def _tell_warden(self) -> None:
        if self._warden is not None:
            with contextlib.suppress(OSError):  # it is dead; another one will be told
                _send(self._warden, self._gates)


def take_over(state: Path) -> dict[str, Gate]:
    """The groups that daemons before this one left, by name, calm. First of all: until then, others may wait."""
    found = [(name, fd) for name, fd in listened() if name.startswith(_PREFIX)] + _from_warden(state)
    gates: dict[str, Gate] = {}
    for name, fd in found:
        if name in gates or not is_group(fd):
            os.close(fd)
        else:
            gates[name] = Gate(name, fd)
    left = left_in(state)
    for name, gate in gates.items():
        calm(gate, {one.number for one in left if one.gate == name})
    return gates


def _from_warden(state: Path) -> list[tuple[str, int]]:
    try:
        with _in(state) as path, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as warden:
            warden.settimeout(_REPLY_S)
            warden.connect(path)
            return _receive(warden) or []
    except OSError:
        return []


# ---- the warden


def listen(state: Path) -> socket.socket:
    """Where the next daemon asks the newest warden. Raises OSError."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        withdraw(state)
        with _in(state) as path:
            server.bind(path)
        server.listen()
    except OSError:
        server.close()
        raise
    return server


def withdraw(state: Path) -> None:
    """There is no warden to ask."""
    with contextlib.suppress(OSError):
        (state / _SOCKET).unlink()


class Keeper:
    """The warden's side: it has the groups, and gives them to the next daemon, which has the rest of the work."""

    def __init__(self, daemon: socket.socket, server: socket.socket, state: Path) -> None:
        self._daemon, self._server, self._state = daemon, server, state
        self._gates: dict[str, Gate] = {}
        self._kept: dict[str, set[int]] = {}

    def wait(self) -> None:
        """Until the daemon dies; then nobody else waits in its groups."""
        with contextlib.suppress(OSError):
            while (found := _receive(self._daemon)) is not None:
                for gate in self._gates.values():
                    gate.close()
                self._gates = {name: Gate(name, fd) for name, fd in found}
        for gate in self._gates.values():
            gate.unmark_all()
        left = left_in(self._state)
        for name, gate in self._gates.items():
            self._kept[name] = {one.number for one in left if one.gate == name}
            calm(gate, self._kept[name])

    def serve(self, seconds: float) -> None:
        """Give the groups to whoever starts as the next daemon, for so long."""
        for name, gate in self._gates.items():
            drain(gate, self._kept[name])
        until_s = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        while poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
            with contextlib.suppress(OSError), self._server.accept()[0] as other:
                credentials = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                pid, uid, _ = _CREDENTIALS.unpack(credentials)
                if uid == 0 and pid == starting.under_way(self._state):
                    _send(other, self._gates)

    def refuse(self) -> None:
        """Nobody came."""
        for gate in self._gates.values():
            refuse(gate)
            gate.close()


_CREDENTIALS: Final = struct.Struct("=3i")  # struct ucred


def _send(to: socket.socket, gates: dict[str, Gate]) -> None:
    named = dict(list(gates.items())[-GROUPS:])
    socket.send_fds(to, [":".join(("gates", *named)).encode()], [gate.fd for gate in named.values()])


def _receive(from_: socket.socket) -> list[tuple[str, int]] | None:
    """None: there is nobody any more. Raises OSError."""
    text, fds, _, _ = socket.recv_fds(from_, _MESSAGE_BYTES, GROUPS)
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(zip(text.decode().split(":")[1:], fds, strict=False)) if text else None


@contextlib.contextmanager
def _in(state: Path) -> Any:
    """The socket's path, by a descriptor: addresses are short."""
    directory = os.open(state, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{_SOCKET}"
    finally:
        os.close(directory)
