# SPDX-License-Identifier: Apache-2.0
"""Agents that connect on command and time it, and the trace of the kernel that says when each was frozen."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentmon.kernel.host import cgroup2_root
from benchmarks._common import EMULATED

_ORDER = struct.Struct("=4sH")
_DONE = struct.Struct("=iQQQ")
PATIENCE_S = 600.0 if EMULATED else 120.0


def boot_ns() -> int:
    """The clock of the kernel's trace, and of all times here."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Done:
    """One connection: when the call began and returned, and what processor time it took of the process."""

    errno: int
    began_ns: int
    ended_ns: int
    cpu_ns: int


class Agent:
    """A process that connects where it is told."""

    def __init__(self, pid: int, link: socket.socket, cgroup: Path) -> None:
        self.pid, self._link, self.cgroup = pid, link, cgroup

    def connect(self, address: str, port: int) -> None:
        """Begin."""
        self._link.send(_ORDER.pack(socket.inet_aton(address), port))

    def fileno(self) -> int:
        """Readable: it is done."""
        return self._link.fileno()

    def done(self) -> Done:
        """Wait until it has returned. Raises `RuntimeError` when that takes too long."""
        if not select.select([self._link], [], [], PATIENCE_S)[0]:
            raise RuntimeError(f"agent {self.pid} is held and does not go on")
        data = self._link.recv(_DONE.size)
        if not data:
            raise RuntimeError(f"agent {self.pid} has ended")
        return Done(*_DONE.unpack(data))


def _serve(link: socket.socket) -> None:
    """The agent's life: one connection an order."""
    while order := link.recv(_ORDER.size):
        packed, port = _ORDER.unpack(order)
        where = (socket.inet_ntoa(packed), port)
        with socket.socket() as out:
            cpu_ns = time.process_time_ns()
            began_ns = boot_ns()
            errno = out.connect_ex(where)
            ended_ns = boot_ns()
            cpu_ns = time.process_time_ns() - cpu_ns
        link.send(_DONE.pack(errno, began_ns, ended_ns, cpu_ns))


class Team:
    """A process, to be enrolled, that then forks agents; in a cgroup of its own each, or all in one."""

    def __init__(self, name: str, size: int, *, apart: bool) -> None:
        root = cgroup2_root() / f"agentmon-bench-{os.getpid()}-{name}"
        self.homes = [root / str(number) for number in range(size)] if apart else [root]
        root.mkdir()
        for home in self.homes if apart else ():
            home.mkdir()
        self._root = root
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(size)]
        go_read, self._go = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._lead(go_read, pairs)
        os.close(go_read)
        for _, inside in pairs:
            inside.close()
        self._links = [outside for outside, _ in pairs]
        self.agents: list[Agent] = []

    def _lead(self, go: int, pairs: Sequence[tuple[socket.socket, socket.socket]]) -> None:
        status = 1
        try:
            os.close(self._go)
            os.read(go, 1)
            for number, (_, inside) in enumerate(pairs):
                if not os.fork():
                    home = self.homes[number % len(self.homes)]
                    (home / "cgroup.procs").write_text(str(os.getpid()))
                    for outside, _ in pairs:
                        outside.close()
                    inside.send(struct.pack("=i", os.getpid()))
                    _serve(inside)
                    os._exit(0)
            for outside, inside in pairs:
                outside.close()
                inside.close()
            for _ in pairs:
                os.wait()
            status = 0
        finally:
            os._exit(status)

    def go(self) -> None:
        """It is enrolled: fork them."""
        os.write(self._go, b"!")
        os.close(self._go)
        for number, link in enumerate(self._links):
            (pid,) = struct.unpack("=i", link.recv(4))
            self.agents.append(Agent(pid, link, self.homes[number % len(self.homes)]))

    def close(self) -> None:
        """End them all."""
        for agent in self.agents:
            with contextlib.suppress(ProcessLookupError):
                os.kill(agent.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for link in self._links:
            link.close()
        deadline = time.monotonic() + 10
        for home in (*self.homes, self._root):
            while home.exists() and time.monotonic() < deadline:
                with contextlib.suppress(OSError):  # the daemon's own cgroup is still in it
                    home.rmdir()
                    break
                time.sleep(0.05)


class Freezes:
    """When the kernel has frozen which cgroup: its tracepoint `cgroup_notify_frozen`, in a trace of our own."""

    LINE = re.compile(r" (\d+)\.(\d+): cgroup_notify_frozen: .*path=(\S+) .*?(\d)$")

    def __init__(self, directory: Path) -> None:
        self._trace = directory / "instances" / f"agentmon-bench-{os.getpid()}"
        self._trace.mkdir()
        (self._trace / "trace_clock").write_text("boot")
        (self._trace / "events/cgroup/cgroup_notify_frozen/enable").write_text("1")

    def read(self) -> list[tuple[int, str]]:
        """All so far: time (boot, ns) and path."""
        found = []
        for line in (self._trace / "trace").read_text().splitlines():
            match = self.LINE.search(line)
            if match and match[4] == "1":
                fraction = match[2].ljust(9, "0")
                found.append((int(match[1]) * 1_000_000_000 + int(fraction), match[3]))
        return found

    def close(self) -> None:
        """Remove it."""
        (self._trace / "events/enable").write_text("0")
        self._trace.rmdir()


@contextlib.contextmanager
def freezes() -> Iterator[Freezes]:
    """The trace, for a while. Raises `OSError` where the kernel has none."""
    usual = Path("/sys/kernel/tracing")
    with contextlib.ExitStack() as stack:
        if not (usual / "instances").is_dir():
            usual = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentmon-bench-", dir="/tmp")))
            done = subprocess.run(
                ["mount", "-t", "tracefs", "none", usual], check=False, capture_output=True, text=True
            )
            if done.returncode:
                raise OSError(f"this kernel has no trace: {done.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", usual], check=True)
        trace = Freezes(usual)
        stack.callback(trace.close)
        yield trace
