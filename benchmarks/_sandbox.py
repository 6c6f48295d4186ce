# SPDX-License-Identifier: Apache-2.0
"""Runs one case of `efficacy` in a guest, in file systems, processes and a network of its own, and looks what it did.

Only ever in a disposable guest: what it runs is made to do harm. The caller forks (`start`); of the two processes
that this makes, the *warden* is the first of new namespaces and observes, the *driver* runs the case's steps and waits
to be enrolled. Effects are observed: the upper layer of an overlay, who was contacted and what was sent, which
processes that are not the case's died, what listens, what leaked of files with a token in them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pty
import re
import selectors
import signal
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _sink
from benchmarks._observe import Tokens, Tree, Watch

STAGE = "/run/efficacy"
WORKSPACE = "/app"
LINGER_S = 0.4
SEND_BYTES = 100_000
_NEW = 0x20000 | 0x20000000 | 0x40000000 | 0x04000000 | 0x08000000  # mount, PID, network, UTS, IPC namespaces
_PRIVATE, _BIND, _DETACH = 0x44000, 0x1000, 2
_SYS_PIVOT_ROOT = 155
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LIBC = ctypes.CDLL(None, use_errno=True)
_ENVIRONMENT = {
    "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash", "LANG": "C.UTF-8", "TERM": "xterm",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games",
    "PIP_BREAK_SYSTEM_PACKAGES": "1",  # as in the images of containers that agents get
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Started:
    """A case that waits: the warden's parent, the driver, where they report, what to write to for it to begin."""

    pid: int
    driver: int
    link: socket.socket
    go: int


def start(case: dict[str, Any], tokens: Tokens) -> Started:
    """Forks the case. Raises RuntimeError if its stage cannot be set."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * SEND_BYTES)
    go_read, go_write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            _keep_only(theirs.fileno(), go_read)
            _check(_LIBC.unshare(_NEW), "unshare")
            if not os.fork():
                with contextlib.suppress(BaseException):
                    _warden(case, tokens, theirs, go_read)
                os._exit(0)
            os.wait()
        except BaseException as error:  # noqa: BLE001  # told to the caller
            _tell(theirs, {"failed": repr(error)})
        finally:
            os._exit(0)
    theirs.close()
    os.close(go_read)
    said, ancillary, _, _ = ours.recvmsg(4096, socket.CMSG_SPACE(12))
    if said != b"hello":
        os.waitpid(pid, 0)
        os.close(go_write)
        raise RuntimeError(f"no stage: {said.decode()}")
    return Started(pid, struct.unpack("3i", ancillary[0][2][:12])[0], ours, go_write)


def _keep_only(*kept: int) -> None:
    for number in sorted(int(n) for n in os.listdir("/proc/self/fd")):
        if number > 2 and number not in kept:
            with contextlib.suppress(OSError):
                os.close(number)


def _check(status: int, what: str) -> None:
    if status:
        raise OSError(ctypes.get_errno(), what)


def _mount(source: str, target: str, kind: str | None, flags: int = 0, options: str = "") -> None:
    _check(_LIBC.mount(source.encode(), target.encode(), kind and kind.encode(), flags, options.encode()), target)


def _tell(link: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        link.send(json.dumps(message).encode())


# ---- the warden


def _warden(case: dict[str, Any], tokens: Tokens, link: socket.socket, go: int) -> None:
    try:
        tree = _stage(case)
        mounts = _lines("/proc/self/mountinfo")
        victims = {name: _victim(name) for name in case.get("victims", ())}
        watch = Watch()
        output, report, driver = _fork_driver(case, link, go)
        sink = _sink.Sink(case.get("ports", ()), tokens)
        said = _watch(case, link, sink, output, report, driver)
        effects = {*sink.effects(), *tokens.effects("output", said)}
        if said.strip():
            effects.add("output")
        effects |= {f"listen {port}" for port in _sink.listening() if port not in sink.ports}
        effects |= {f"killed {name}" for name, process in victims.items() if process.poll() is not None}
        effects |= {f"mounts {line.split()[4]}" for line in set(_lines("/proc/self/mountinfo")) ^ set(mounts)}
        effects |= watch.effects() | tree.changes(tokens)
        kept = sorted(effects)[:1500]
        _tell(link, {"effects": kept, "cut": len(effects) - len(kept), "said": said[-300:].decode(errors="replace")})
    except BaseException as error:  # noqa: BLE001  # told to the caller
        _tell(link, {"failed": repr(error)})


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _stage(case: dict[str, Any]) -> Tree:
    """The disposable root: an overlay on the guest's, with devices, processes and a network of its own."""
    _mount("none", "/", None, _PRIVATE)
    os.makedirs(STAGE, exist_ok=True)
    _mount("tmpfs", STAGE, "tmpfs", options="size=900m,mode=755")
    for name in ("upper", "work", "root"):
        os.mkdir(f"{STAGE}/{name}")
    root = f"{STAGE}/root"
    _mount("overlay", root, "overlay", options=f"lowerdir=/,upperdir={STAGE}/upper,workdir={STAGE}/work")
    lower, upper = (os.open(p, os.O_RDONLY | os.O_DIRECTORY) for p in ("/", f"{STAGE}/upper"))
    for name, kind in {"proc": "proc", "sys": "sysfs", "dev": "tmpfs", "run": "tmpfs"}.items():
        _mount(kind, f"{root}/{name}", kind, options="mode=755" if kind == "tmpfs" else "")
    _devices(f"{root}/dev")
    os.mkdir(f"{root}/run/old")
    _check(_LIBC.syscall(_SYS_PIVOT_ROOT, root.encode(), f"{root}/run/old".encode()), "pivot_root")
    os.chdir("/")
    # what would end the guest ends in a file
    Path("/run/sysrq").touch()
    _mount("/run/sysrq", "/proc/sysrq-trigger", None, _BIND)
    _check(_LIBC.umount2(b"/run/old", _DETACH), "umount")
    os.rmdir("/run/old")
    words = "link set lo up\nroute add local 0.0.0.0/0 dev lo\n-6 route add local ::/0 dev lo\n"
    subprocess.run(["ip", "-force", "-batch", "-"], input=words.encode(), capture_output=True, check=False)
    os.makedirs(WORKSPACE, exist_ok=True)
    for name, text in case.get("files", {}).items():
        os.makedirs(os.path.dirname(name), exist_ok=True)
        Path(name).write_text(text)
    for name in case.get("wanted", ()):
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(name), exist_ok=True)
            if not os.path.exists(name):
                Path(name).write_text(f"an ordinary file, {name}\n")
    return Tree(lower, upper, watched=("/run/sysrq", "/etc/hostname"))


def _devices(dev: str) -> None:
    for name, (major, minor) in _DEVICES.items():
        os.mknod(f"{dev}/{name}", 0o20666, os.makedev(major, minor))
        os.chmod(f"{dev}/{name}", 0o666)
    for name in ("pts", "shm"):
        os.mkdir(f"{dev}/{name}")
    _mount("devpts", f"{dev}/pts", "devpts", options="newinstance,gid=5,mode=620,ptmxmode=666")
    _mount("tmpfs", f"{dev}/shm", "tmpfs", options="mode=1777")
    os.symlink("pts/ptmx", f"{dev}/ptmx")
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        os.symlink(f"/proc/self/fd{target}", f"{dev}/{name}")


def _victim(name: str) -> subprocess.Popen[bytes]:
    """A process outside the session, of that name."""
    os.makedirs("/run/victims", exist_ok=True)
    program = f"/run/victims/{name}"
    os.symlink("/usr/bin/sleep", program)
    return subprocess.Popen([program, "86400"], env=_ENVIRONMENT, stdin=subprocess.DEVNULL)


def _fork_driver(case: dict[str, Any], link: socket.socket, go: int) -> tuple[int, int, int]:
    """(what the case writes to, where the driver reports steps, the driver's PID)."""
    terminal = case.get("terminal", False)
    reads, writes = pty.openpty() if terminal else os.pipe()
    report_read, report_write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            link.send(b"hello")  # with it goes who we are
            link.close()
            _keep_only(go, writes, report_write)
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(writes if terminal else null, 0)
            os.dup2(writes, 1)
            os.dup2(writes, 2)
            _drive(case, go, report_write, terminal=terminal)
        finally:
            os._exit(0)
    os.close(writes)
    os.close(report_write)
    return reads, report_read, pid


def _watch(case: dict[str, Any], link: socket.socket, sink: _sink.Sink, output: int, report: int, driver: int) -> bytes:
    """Serves the sink, types, and passes the driver's reports on, until it has ended or its time is over."""
    deadline = time.monotonic() + float(case["seconds"]) * max(1, len(case.get("steps", ()))) + 5
    said = bytearray()
    typed = list(case.get("typed", ()))
    next_line = time.monotonic() + 2.0
    selector = sink.selector
    selector.register(output, selectors.EVENT_READ, None)
    selector.register(report, selectors.EVENT_READ, None)
    end = 0.0
    while time.monotonic() < deadline and not (end and time.monotonic() > end):
        sink.tick()
        for key, _ in selector.select(0.1):
            if key.fd not in (output, report):
                sink.serve(key)
                continue
            try:
                piece = os.read(key.fd, 1 << 16)
            except OSError:
                piece = b""
            if not piece:
                selector.unregister(key.fd)
                if key.fd == report and not end:
                    end = time.monotonic() + LINGER_S
            elif key.fd == output:
                said += piece[: (4 << 20) - len(said)]
                next_line = time.monotonic() + 0.7
            else:
                for line in piece.splitlines():
                    _tell(link, {"step": json.loads(line)})
        if typed and time.monotonic() > next_line:
            with contextlib.suppress(OSError):
                os.write(output, typed.pop(0).encode())
            next_line = time.monotonic() + 1.5
    if not end:
        os.kill(driver, signal.SIGKILL)
    return bytes(said)


# ---- the driver: enrolled, and so is all that it starts


def _drive(case: dict[str, Any], go: int, report: int, *, terminal: bool) -> None:
    os.read(go, 1)
    os.close(go)
    os.chdir(WORKSPACE)
    for name in (signal.SIGPIPE, signal.SIGINT):
        signal.signal(name, signal.SIG_DFL)
    if terminal:
        os.setsid()
        fcntl_tiocsctty = 0x540E
        _LIBC.ioctl(0, fcntl_tiocsctty, 0)
    for number, words in enumerate(case.get("steps", ())):
        status = _step(words, float(case["seconds"]), new_session=not terminal)
        os.write(report, (json.dumps([number, status]) + "\n").encode())


def _step(words: list[str], seconds: float, *, new_session: bool) -> int | None:
    """Exit status; None if it took too long."""
    try:
        process = subprocess.Popen(words, env=_ENVIRONMENT, start_new_session=new_session)
    except OSError:
        return 127
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL) if new_session else process.kill()
        process.wait()
        return None


def binaries(names: set[str]) -> set[str]:
    """Those that this machine has."""
    path = _ENVIRONMENT["PATH"]
    return {
        n for n in names if re.fullmatch(r"[\w.+-]+", n) and any(os.path.exists(f"{d}/{n}") for d in path.split(":"))
    }
