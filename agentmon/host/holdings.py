# SPDX-License-Identifier: Apache-2.0
"""What a process holds already when it is enrolled: descriptors, sockets, mappings, its program.

Each is named as the operation that would have been judged, had the process been enrolled before it got it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass

from agentmon.model.events import Address
from agentmon.model.operations import Operation

_V4_PREFIX = b"\0" * 10 + b"\xff\xff"
#: anon_inode descriptors through which more can be done than waiting.
_POWERFUL = (b"[io_uring]", b"bpf-prog", b"bpf-map", b"bpf_link", b"bpf-link", b"[userfaultfd]", b"[perf_event]")

#: Sockets that can do nothing yet if they have no peer, or never leave the host. Not MPTCP's: their peers are hidden.
_HARMLESS_SOCKETS = frozenset({"TCP", "TCPv6", "UDP", "UDPv6", "UNIX", "UNIX-STREAM", "NETLINK", "ALG", "closed"})


@dataclass(frozen=True, slots=True)
class Holding:
    """One thing held. `object` is a path or an address; None: nothing can judge it (`text` says what it is)."""

    id: str  # such as `812:fd5`: what --accept names
    pid: int
    fd: int | None
    operation: Operation
    object: bytes | Address | None
    text: str
    inheritable: bool = True


def holdings(pid: int) -> list[Holding]:
    """All that the process holds, best looked at while it is stopped. Raises `ProcessLookupError`."""
    found = _descriptors(pid) + _mappings(pid)
    program = _readlink(b"/proc/%d/exe" % pid)
    if program:
        found.append(Holding(f"{pid}:exe", pid, None, Operation.EXEC, _clean(program), "the running program"))
    return found


def _descriptors(pid: int) -> list[Holding]:
    found: list[Holding] = []
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError as error:
        raise ProcessLookupError(f"there is no process `{pid}`") from error
    sockets: dict[int, Address] | None = None
    for name in names:
        target = _readlink(b"/proc/%d/fd/%s" % (pid, name.encode()))
        if target is None:
            continue  # closed since
        fd, where = int(name), f"{pid}:fd{name}"
        flags = _flags(pid, fd)
        inheritable = not flags & os.O_CLOEXEC
        if target.startswith(b"/"):
            if flags & os.O_PATH:
                continue  # names a file, opens nothing
            mode = flags & os.O_ACCMODE
            if mode in (os.O_RDONLY, os.O_RDWR):
                found.append(Holding(where, pid, fd, Operation.READ, _clean(target), "open for reading", inheritable))
            if mode in (os.O_WRONLY, os.O_RDWR):
                found.append(Holding(where, pid, fd, Operation.WRITE, _clean(target), "open for writing", inheritable))
        elif target.startswith(b"socket:["):
            if sockets is None:
                sockets = _peers(pid)
            peer = sockets.get(int(target[8:-1]))
            if peer is not None:
                found.append(Holding(where, pid, fd, Operation.CONNECT, peer, "a connected socket", inheritable))
            elif (kind := _socket_kind(pid, name)) not in _HARMLESS_SOCKETS:
                text = f"a `{kind}` socket, which no rule can judge"
                found.append(Holding(where, pid, fd, Operation.CONNECT, None, text, inheritable))
        elif any(word in target for word in _POWERFUL):
            text = target.decode("ascii", "replace")
            found.append(
                Holding(where, pid, fd, Operation.READ, None, f"`{text}`, which no rule can judge", inheritable)
            )
    return found


def _mappings(pid: int) -> list[Holding]:
    """Files mapped writable and shared, whose descriptor may be closed, and programs mapped executable."""
    found: dict[tuple[Operation, bytes], Holding] = {}
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            fields = line.rstrip(b"\n").split(maxsplit=5)
            if len(fields) < 6 or not fields[5].startswith(b"/"):
                continue
            permissions, path = fields[1], _clean(fields[5].replace(rb"\012", b"\n"))
            if b"w" in permissions and b"s" in permissions:
                operation, text = Operation.WRITE, "mapped, shared and writable"
            else:
                operation, text = Operation.READ, "mapped"
            found.setdefault(
                (operation, path),
                Holding(f"{pid}:map{len(found)}", pid, None, operation, path, text),
            )
    return list(found.values())


def _peers(pid: int) -> dict[int, Address]:
    """Socket inode -> peer of each connected inet socket in the process's network namespace."""
    peers: dict[int, Address] = {}
    for name, family, protocol in (
        ("tcp", socket.AF_INET, socket.IPPROTO_TCP),
        ("tcp6", socket.AF_INET6, socket.IPPROTO_TCP),
        ("udp", socket.AF_INET, socket.IPPROTO_UDP),
        ("udp6", socket.AF_INET6, socket.IPPROTO_UDP),
    ):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{name}", encoding="ascii") as table:
            next(table, None)
            for line in table:
                fields = line.split()
                host, _, port = fields[2].partition(":")
                if int(port, 16) == 0:
                    continue
                # each 32-bit word is in host byte order (proc(5))
                words = bytes.fromhex(host)
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                packed = _V4_PREFIX + packed if len(packed) == 4 else packed
                peers[int(fields[9])] = Address(family, packed, int(port, 16), protocol)
    return peers


def _socket_kind(pid: int, name: str) -> str:
    """The kernel's name for the protocol of a socket (sockfs_xattr_get() in net/socket.c)."""
    with contextlib.suppress(OSError):
        return os.getxattr(f"/proc/{pid}/fd/{name}", "system.sockprotoname").rstrip(b"\0").decode("ascii", "replace")
    return "closed" if _readlink(b"/proc/%d/fd/%s" % (pid, name.encode())) is None else "unknown"


def _flags(pid: int, fd: int) -> int:
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("flags:"):
                return int(line.split()[1], 8)
    return os.O_RDWR  # cannot be told: judged as both


def _readlink(path: bytes) -> bytes | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _clean(path: bytes) -> bytes:
    return path.removesuffix(b" (deleted)")
