# SPDX-License-Identifier: Apache-2.0
"""The kernel side for a benchmark: programs loaded and unloaded, run-time statistics, workers under a policy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentmon.kernel.host import BPFFS
from agentmon.kernel.libbpf import library
from agentmon.kernel.monitor import Monitor
from agentmon.model.tables import CompiledPolicy
from agentmon.policy.compile import compile_policy
from agentmon.policy.load import load, load_text
from agentmon.policy.rules import Variables

#: Everything is allowed and told: each operation makes one record.
TELL_ALL = """
policy: tell-all
default: {exec: allow, read: audit, write: allow, create: allow, connect: allow, send: allow}
"""


def pins() -> Path:
    """Where this benchmark's programs are pinned, apart from any other's."""
    return BPFFS / f"agentmon-bench-{os.getpid()}"


@contextlib.contextmanager
def loaded() -> Iterator[Monitor]:
    """The programs, attached; detached at the end."""
    monitor = Monitor.open(pin_dir=pins())
    try:
        yield monitor
    finally:
        monitor.detach()


def variables(workspace: Path) -> Variables:
    """Variables of a policy for root."""
    return Variables.of(workspace=str(workspace), home="/root", user="root")


def pack(workspace: Path) -> CompiledPolicy:
    """The shipped policy ``coding-agent``."""
    return compile_policy(load("coding-agent"), variables(workspace))


def tell_all(workspace: Path) -> CompiledPolicy:
    """A policy that reports each read."""
    return compile_policy(load_text(TELL_ALL, "tell-all.yaml"), variables(workspace))


@contextlib.contextmanager
def session(monitor: Monitor, policy: CompiledPolicy, pids: Sequence[int]) -> Iterator[int]:
    """The processes, enrolled; yields the session's slot."""
    policy_slot, _ = monitor.install_policy(policy)
    slot, _ = monitor.open_session(policy_slot)
    try:
        monitor.enroll(pids, slot)
        yield slot
    finally:
        monitor.close_session(slot)
        monitor.remove_policy(policy_slot)


class Worker:
    """A running ``loops`` (benchmarks/loops.c)."""

    def __init__(self, program: Path, files: Sequence[Path], *, cpu: int = -1, prefix: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, program, str(cpu), *files], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        """Its PID (of ``prefix``, if there is one)."""
        return self.process.pid

    def tell(self, *words: object) -> None:
        """Sends a command."""
        assert self.process.stdin
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def answer(self) -> list[int]:
        """Waits for the numbers that it answers."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with status {self.process.wait()}")
        return [int(word) for word in line.split()]

    def ask(self, *words: object) -> list[int]:
        """A command, and its answer."""
        self.tell(*words)
        return self.answer()

    def close(self) -> None:
        """Ends it."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


@contextlib.contextmanager
def worker(program: Path, files: Sequence[Path], *, cpu: int = -1, prefix: Sequence[str] = ()) -> Iterator[Worker]:
    """A worker for a while."""
    started = Worker(program, files, cpu=cpu, prefix=prefix)
    try:
        started.ask("stat", 1)  # its program is loaded: none of that is counted later
        yield started
    finally:
        started.close()


@contextlib.contextmanager
def statistics_on() -> Iterator[None]:
    """Run-time statistics of all BPF programs (BPF_ENABLE_STATS, include/uapi/linux/bpf.h), while it lasts."""
    fd = library().bpf_enable_stats(0)  # BPF_STATS_RUN_TIME
    if fd < 0:
        raise OSError(ctypes.get_errno(), "cannot enable the run-time statistics of BPF programs")
    try:
        yield
    finally:
        os.close(fd)


class Cost:
    """Run time and number of runs of each attached program."""

    def __init__(self, pin_directory: Path) -> None:
        lib = library()
        self._fds: dict[str, int] = {}
        for link in sorted((pin_directory / "links").iterdir()):
            fd = lib.bpf_obj_get(str(link).encode())
            number = _field(fd, "prog_id") if fd >= 0 else None
            os.close(fd)
            if number is not None:
                self._fds[link.name] = lib.bpf_prog_get_fd_by_id(ctypes.c_uint32(number))

    def read(self) -> dict[str, tuple[int, int]]:
        """Program -> (nanoseconds, runs) so far."""
        return {
            name: (_field(fd, "run_time_ns") or 0, _field(fd, "run_cnt") or 0)
            for name, fd in self._fds.items()
            if fd >= 0
        }

    def verified(self) -> dict[str, int]:
        """Program -> instructions that the verifier went through."""
        return {name: _field(fd, "verified_insns") or 0 for name, fd in self._fds.items() if fd >= 0}

    def total_ns(self) -> int:
        """Nanoseconds of all programs so far."""
        return sum(ns for ns, _ in self.read().values())

    def close(self) -> None:
        """Forgets the programs."""
        for fd in self._fds.values():
            os.close(fd)


def _field(fd: int, name: str) -> int | None:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value)
    return None
