# SPDX-License-Identifier: Apache-2.0
"""What canaries attempt: on grounds of their own, one thing each that their policy forbids."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agentmon.kernel import attributes, guarded
from agentmon.model.operations import GUARDED, Operation

#: Nothing needs to listen there: discard.
PORT = 9
_ABSTRACT = "agentmon-canary-"


@dataclass(frozen=True, slots=True)
class Grounds:
    """Where canaries act: a directory of their own and a program. The policy must deny all of it."""

    directory: Path
    program: str
    #: Holds a message with a descriptor of forbidden/read.
    gift: socket.socket

    @property
    def forbidden(self) -> str:
        """The directory below which read, write and create are denied."""
        return f"{self.directory}/forbidden"

    @property
    def policy_text(self) -> str:
        """The built-in canary policy."""
        return (
            "policy: canary\n"
            "default: {exec: allow, read: allow, write: allow, create: allow, connect: allow, bind: allow}\n"
            "rules:\n"
            f'  - {{id: canary-exec, on: exec, paths: ["{self.program}"], action: deny}}\n'
            f'  - {{id: canary-files, on: [read, write, create, unix], paths: ["{self.forbidden}/**"], action: deny}}\n'
            f'  - {{id: canary-attributes, on: attr, paths: ["{self.directory}/attributes/**"], action: deny}}\n'
            f'  - {{id: canary-names, on: unix, paths: ["@{_ABSTRACT}*"], action: deny}}\n'
            f'  - {{id: canary-network, on: [connect, send, bind], cidrs: ["127.0.0.1:{PORT}", "[::1]:{PORT}"], '
            "action: deny}\n"
            "  - {id: canary-listen, on: listen, cidrs: [127.0.0.1], action: deny}\n"
            f"  - {{id: canary-guarded, on: [{', '.join(o.word for o in GUARDED)}], action: deny}}\n"
        )

    @classmethod
    def make(cls, parent: Path) -> Grounds:
        """A fresh directory below `parent`. Raises `OSError`."""
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        directory = Path(os.path.realpath(parent)) / f"canary-{os.getpid()}-{time.monotonic_ns():x}"
        (directory / "forbidden").mkdir(parents=True, mode=0o700)
        (directory / "allowed").write_text("ok")
        for name in ("read", "write", "truncate", "delete", "rename", "link", "chmod", "chown"):
            (directory / "forbidden" / name).write_text("untouched")
        (directory / "forbidden" / "rmdir").mkdir()
        guarded.prepare(directory)
        attributes.prepare(directory)
        return cls(directory, os.path.realpath(shutil.which("true") or "/bin/true"), _give(directory))

    def remove(self) -> None:
        """Remove the directory."""
        self.gift.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def _give(directory: Path) -> socket.socket:
    """The end of a socket pair at which a descriptor waits."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, open(directory / "forbidden" / "read", "rb") as file:
        socket.send_fds(sender, [b"g"], [file.fileno()])
    return receiver


def _sweep(parent: Path) -> None:
    """Remove what a daemon left that was killed meanwhile."""
    for directory in parent.glob("canary-*-*"):
        pid = directory.name.split("-")[1]
        if not Path("/proc", pid).exists():
            shutil.rmtree(directory, ignore_errors=True)


Attempt = Callable[[Grounds], None]


def _exec(grounds: Grounds) -> None:
    os.execv(grounds.program, [grounds.program])  # noqa: S606  # this is the attempt


def _open(name: str, flags: int) -> Attempt:
    def attempt(grounds: Grounds) -> None:
        os.open(f"{grounds.forbidden}/{name}", flags, 0o600)

    return attempt


def _receive(grounds: Grounds) -> None:
    """Of what was sent before the fence was there, the kernel leaves out what may not be received."""
    if not socket.recv_fds(grounds.gift, 1, 1)[1]:
        raise PermissionError(errno.EPERM, "no descriptor came")


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


def _route(_: Grounds) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        loose = bytes([131, 7, 4]) + socket.inet_aton("127.0.0.1") + b"\0"
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, loose)


def _bind(family: int, address: str) -> Attempt:
    def attempt(_: Grounds) -> None:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, PORT))

    return attempt


def _listen_locally(_: Grounds) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()


def _reach(name: str, kind: socket.SocketKind) -> Attempt:
    def attempt(grounds: Grounds) -> None:
        with socket.socket(socket.AF_UNIX, kind) as sock, _short(grounds, name) as address:
            if kind is socket.SOCK_DGRAM:
                sock.sendto(b"canary", address)
            else:
                sock.connect(address)

    return attempt


@contextlib.contextmanager
def _short(grounds: Grounds, name: str) -> Iterator[str]:
    """The address of a canary's unix socket: the path of the grounds may be too long for one."""
    if name.startswith("\0"):
        yield name + grounds.directory.name
        return
    directory = os.open(grounds.forbidden, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{name}"
    finally:
        os.close(directory)


@contextlib.contextmanager
def listeners(grounds: Grounds) -> Iterator[None]:
    """What the canaries of `unix` reach for."""
    kinds = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, f"\0{_ABSTRACT}": socket.SOCK_STREAM}
    with contextlib.ExitStack() as stack:
        for name, kind in kinds.items():
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            with _short(grounds, name) as address:
                sock.bind(address)
            if kind is socket.SOCK_STREAM:
                sock.listen()
        yield


def _raw(_: Grounds) -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


ATTEMPTS: tuple[tuple[Operation, str, Attempt, str | None], ...] = (
    # operation, name, attempt, the file below forbidden/ that shows an effect
    (Operation.EXEC, "execve", _exec, None),
    (Operation.READ, "open for reading", _open("read", os.O_RDONLY), None),
    (Operation.WRITE, "open for writing", _open("write", os.O_WRONLY), None),
    (Operation.CREATE, "open that creates", _open("created", os.O_CREAT | os.O_WRONLY), "created"),
    (Operation.WRITE, "truncate", _truncate, None),
    (Operation.CREATE, "mkdir", lambda g: os.mkdir(f"{g.forbidden}/dir"), "dir"),
    (Operation.CREATE, "mknod", lambda g: os.mknod(f"{g.forbidden}/fifo", stat.S_IFIFO | 0o600), "fifo"),
    (Operation.CREATE, "symlink", lambda g: os.symlink("x", f"{g.forbidden}/symlink"), "symlink"),
    (Operation.CREATE, "link", lambda g: os.link(f"{g.directory}/allowed", f"{g.forbidden}/linked"), "linked"),
    (Operation.CREATE, "rename", lambda g: os.rename(f"{g.directory}/movable", f"{g.forbidden}/moved"), "moved"),
    (Operation.DELETE, "unlink", lambda g: os.unlink(f"{g.forbidden}/delete"), None),
    (Operation.DELETE, "rmdir", lambda g: os.rmdir(f"{g.forbidden}/rmdir"), None),
    (Operation.RENAME, "rename", lambda g: os.rename(f"{g.forbidden}/rename", f"{g.directory}/renamed"), None),
    (Operation.LINK, "link", lambda g: os.link(f"{g.forbidden}/link", f"{g.directory}/linked"), None),
    (Operation.ATTR, "chmod", lambda g: os.chmod(f"{g.forbidden}/chmod", 0o600), None),
    (Operation.ATTR, "chown", lambda g: os.chown(f"{g.forbidden}/chown", 1, 1), None),
    (Operation.ATTR, *attributes.ATTEMPTS[0], None),
    (Operation.CONNECT, "connect over IPv4", _connect(socket.AF_INET, "127.0.0.1"), None),
    (Operation.CONNECT, "connect over IPv6", _connect(socket.AF_INET6, "::1"), None),
    (Operation.CONNECT, "connect over IPv4 mapped", _connect(socket.AF_INET6, "::ffff:127.0.0.1"), None),
    (Operation.CONNECT, "packet socket", _raw, None),
    (Operation.SEND, "sendto over IPv4", _send(socket.AF_INET, "127.0.0.1"), None),
    (Operation.SEND, "sendto over IPv6", _send(socket.AF_INET6, "::1"), None),
    (Operation.SEND, "sendto elsewhere on a connected socket", _send_connected, None),
    (Operation.SEND, "source route", _route, None),
    (Operation.BIND, "bind over IPv4", _bind(socket.AF_INET, "127.0.0.1"), None),
    (Operation.BIND, "bind over IPv6", _bind(socket.AF_INET6, "::1"), None),
    (Operation.LISTEN, "listen", _listen_locally, None),
    (Operation.UNIX, "connect to a path", _reach("stream", socket.SOCK_STREAM), None),
    (Operation.UNIX, "connect to an abstract name", _reach(f"\0{_ABSTRACT}", socket.SOCK_STREAM), None),
)

#: What only the LSM tier sees.
LSM_ATTEMPTS: tuple[tuple[Operation, str, Attempt, str | None], ...] = (
    (Operation.READ, "descriptor from another process", _receive, None),
    *((Operation.ATTR, name, attempt, None) for name, attempt in attributes.ATTEMPTS[1:]),
    (Operation.UNIX, "datagram to a path", _reach("datagram", socket.SOCK_DGRAM), None),
    (Operation.PTRACE, "TIOCSTI", guarded.type_into_terminal, None),
)  # fmt: skip

ATTEMPTS_WITHOUT_OBJECT: tuple[tuple[Operation, str, Attempt, str | None], ...] = (
    (Operation.PTRACE, "ptrace", guarded.ptrace, None),
    (Operation.SIGNAL, "kill", guarded.signal_outside, None),
    (Operation.SIGNAL, "prlimit", guarded.limit_outside, None),
    (Operation.MOUNT, "mount", guarded.mount, None),
    (Operation.MOUNT, "umount", guarded.umount, None),
    (Operation.MOUNT, "move_mount", guarded.move_mount, None),
    (Operation.MOUNT, "remount", guarded.remount, None),
    (Operation.MOUNT, "pivot_root", guarded.pivot_root, None),
    (Operation.NAMESPACE, "unshare", guarded.unshare, None),
    (Operation.NAMESPACE, "clone", guarded.clone_namespace, None),
    (Operation.CHROOT, "chroot", guarded.chroot, None),
    (Operation.BPF, "bpf", guarded.bpf, None),
    (Operation.IO_URING, "io_uring_setup", guarded.io_uring, None),
    (Operation.SETID, "setresuid", guarded.regain_root, None),
    (Operation.SETID, "set-user-ID program", guarded.run_setuid, None),
    (Operation.MODULE, "init_module", guarded.init_module, None),
    (Operation.MODULE, "finit_module", guarded.finit_module, None),
    (Operation.ANON_EXEC, "memfd", guarded.run_memfd, None),
)  # fmt: skip
