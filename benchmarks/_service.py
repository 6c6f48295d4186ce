# SPDX-License-Identifier: Apache-2.0
"""The daemon as a whole: from the ring to the audit log, its start, its memory."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentmon.control.client import Client
from agentmon.daemon.app import Daemon
from agentmon.daemon.config import Config, DaemonConfig
from agentmon.engine import Session, View
from agentmon.policy.fast import FastEvaluator
from benchmarks import _kernel
from benchmarks._common import Goal, Report, percentile, summary
from benchmarks._cost import make_files, stage

#: Records of one filling: 4 MiB of ring holds 24,000 of this size.
FILLING = 18_000
READY_S = 300.0  # under emulation; here it takes one or two


def ring_to_audit(report: Report, rounds: int = 0) -> None:
    """Fills the ring, then lets the daemon's own loop body bring it to the audit file (decode, judge, write, flush)."""
    rates: list[float] = []
    mismatches = 0
    with stage() as (folder, program, _), _kernel.loaded() as monitor:
        files = make_files(folder, 2048)
        policy = _kernel.tell_all(folder)
        daemon = Daemon(_config(folder), monitor)
        view = View(policy.rules, FastEvaluator(policy))
        with _kernel.worker(program, files, cpu=-1) as loop, _kernel.session(monitor, policy, [loop.pid]) as slot:
            session = Session("s-bench", slot, policy.name, 0, time.time_ns(), view)
            daemon.engine.open(session)
            for _ in range(rounds or 12):
                daemon.drain()
                daemon.audit.flush()
                before = daemon.audit.written
                loop.ask("warm", FILLING)
                start = time.perf_counter()
                daemon.drain()
                daemon.audit.flush()
                seconds = time.perf_counter() - start
                rates.append((daemon.audit.written - before) / seconds)
            mismatches = daemon.engine.mismatches
            daemon.engine.close(slot, time.time_ns(), "ended")
        lost = monitor.counters()["ring_lost"]
        daemon.audit.close()
    report.results["ring to audit record"] = {
        "records a second": summary(rates),
        "records of a filling": FILLING,
        "lost": lost,
        "verdicts that differ from the evaluator's": mismatches,
    }
    report.goals.append(
        Goal("ring to audit record", round(statistics.median(rates)), "1/s", 50_000, at_most=False, note="one process")
    )


def _config(folder: Path) -> Config:
    state = folder / "state"
    state.mkdir(exist_ok=True)
    return Config(
        daemon=DaemonConfig(socket=state / "control.sock", state=state, audit=state / "audit.db", pins=_kernel.pins())
    )


@dataclass(frozen=True, slots=True)
class Service:
    """A running daemon of the benchmark's own."""

    pid: int
    socket: Path
    pins: Path
    ready_s: float  # from exec to READY=1

    def memory_kb(self, name: str = "VmRSS") -> int:
        """A line of /proc/PID/status."""
        found = re.search(rf"^{name}:\s*(\d+)", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0

    def enroll(self, pid: int, workspace: Path, policy: str = "coding-agent") -> str:
        """Enrols a process; its session's id."""
        with Client(self.socket) as client:
            reply = client.call(
                "enroll", pid=pid, policy={"name": policy}, workspace=str(workspace), accept=["all"], uid=0
            )
            return str(reply["session"])


@contextlib.contextmanager
def service(more: str = "") -> Iterator[Service]:
    """``agentmon daemon`` with its own socket, state and pins, up to READY=1; ended by SIGTERM.

    ``more``: further tables of its configuration.
    """
    with tempfile.TemporaryDirectory(prefix="agentmon-bench-", dir="/tmp") as name:
        folder = Path(name)
        config = folder / "agentmon.toml"
        pins = f"{_kernel.pins()}-service"
        lines = {
            "socket": folder / "control.sock", "state": folder / "state", "audit": folder / "audit.db", "pins": pins,
        }  # fmt: skip
        config.write_text("[daemon]\n" + "".join(f'{key} = "{value}"\n' for key, value in lines.items()) + more)
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(str(folder / "notify"))
        notify.settimeout(READY_S)
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        start = time.perf_counter()
        daemon = subprocess.Popen(
            [sys.executable, "-m", "agentmon.cli.main", "--config", config, "daemon"],
            env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            while b"READY=1" not in notify.recv(4096):
                pass
            ready_s = time.perf_counter() - start
            yield Service(daemon.pid, folder / "control.sock", next(Path(pins).iterdir()), ready_s)
        except TimeoutError:
            daemon.kill()
            errors = daemon.stderr.read().decode(errors="replace")[-500:] if daemon.stderr else ""
            raise RuntimeError(f"the daemon was not ready within {READY_S} s: {errors}") from None
        finally:
            notify.close()
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.communicate(timeout=20)
            if daemon.poll() is None:
                daemon.kill()


_IN_FORCE = """
import sys
from pathlib import Path
from benchmarks import _kernel
with _kernel.loaded() as monitor, _kernel.session(monitor, _kernel.pack(Path("/tmp")), [int(sys.argv[1])]):
    print("in force", flush=True)
    sys.stdin.read()
"""


def start_and_memory(report: Report, rounds: int = 0) -> None:
    """Start to ``enforcing``, resident memory idle and after a flood, kernel memory."""
    daemon_s: list[float] = []
    bare_s: list[float] = []
    idle_kb = busy_kb = peak_kb = kernel_bytes = 0
    with stage() as (folder, program, target):
        for number in range(rounds or 7):
            bare_s.append(_bare_s(program, target))
            with service() as daemon:
                daemon_s.append(daemon.ready_s)
                if number == 0:
                    idle_kb = daemon.memory_kb()
                    busy_kb, peak_kb = _flooded(daemon, folder, program)
        with _kernel.loaded() as monitor:
            kernel_bytes = monitor.memory_bytes()
    report.results["start, s"] = {
        "agentmon daemon: exec to READY, canaries included": summary(daemon_s),
        "programs and one policy alone: exec to in force": summary(bare_s),
        "daemon, slowest": round(percentile(daemon_s, 100), 3),
    }
    report.results["memory, MB"] = {
        "daemon resident, idle": round(idle_kb / 1024, 1),
        "daemon resident, after 200,000 records of 20,000 files": round(busy_kb / 1024, 1),
        "daemon resident, peak": round(peak_kb / 1024, 1),
        "kernel, maps": round(kernel_bytes / 2**20, 1),
    }
    report.goals += [
        Goal("start to enforcing", round(statistics.median(daemon_s), 3), "s", 1, note="canaries stopped, READY sent"),
        Goal("resident memory of the daemon", round(peak_kb / 1024, 1), "MB", 80, note="peak, under a flood"),
        Goal("kernel memory", round(kernel_bytes / 2**20, 1), "MB", 64),
    ]


def _bare_s(program: Path, target: Path) -> float:
    with _kernel.worker(program, [target]) as loop:
        start = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-c", _IN_FORCE, str(loop.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout
        child.stdout.readline()
        taken = time.perf_counter() - start
        child.communicate(b"")
        return taken


def _flooded(daemon: Service, folder: Path, program: Path) -> tuple[int, int]:
    """Resident and peak kB after many records of many objects."""
    policy = folder / "tell-all.yaml"
    policy.write_text(_kernel.TELL_ALL)
    files = make_files(folder, 20_000)
    text = policy.read_text()
    for batch in range(10):
        with _kernel.worker(program, files[batch * 2000 : batch * 2000 + 2000]) as loop:
            with Client(daemon.socket) as client:
                client.call(
                    "enroll", pid=loop.pid, policy={"name": str(policy), "text": text}, workspace=str(folder),
                    accept=["all"], uid=0,
                )  # fmt: skip
            for _ in range(10):
                loop.ask("warm", 2000)
                time.sleep(0.03)
    time.sleep(0.5)
    return daemon.memory_kb(), daemon.memory_kb("VmHWM")
