# SPDX-License-Identifier: Apache-2.0
"""An agentmon of a test's own: its own socket, state, audit log and pins, beside any other on this host."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agentmon.control.client import Client, reachable
from agentmon.host import process
from agentmon.kernel import objects
from agentmon.kernel.host import BPFFS

REPOSITORY = Path(__file__).parents[2]
EMULATED = "QEMU" in Path("/proc/cpuinfo").read_text()
#: Emulated guests are slow, the more so beside others; native hosts never wait this long.
PATIENCE_S = 400.0 if EMULATED else 180.0
_numbers = itertools.count()


class Host:
    """Use as a context manager; `agentmon` runs the command line, `start` a daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(os.path.realpath(directory))
        self.state = self.directory / "state"
        self.state.mkdir(mode=0o755)
        self.pins = BPFFS / f"agentmon-test-{os.getpid()}-{next(_numbers)}"
        self.config = self.directory / "agentmon.toml"
        self.config.write_text(
            f'[daemon]\nsocket = "{self.socket}"\nstate = "{self.state}"\n'
            f'audit = "{self.audit}"\npins = "{self.pins}"\n'
            f"[hold]\npark_ms = {5000 if EMULATED else 2000}\n"
        )
        self.daemons: list[subprocess.Popen[bytes]] = []

    @property
    def socket(self) -> Path:
        return self.state / "control.sock"

    @property
    def audit(self) -> Path:
        return self.state / "audit.db"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._daemons_and_forks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self.daemons:
            daemon.wait()
        if self.pins.is_dir():
            for build in list(self.pins.iterdir()):
                objects.remove(build)
            self.pins.rmdir()

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line of agentmon with these arguments."""
        return [sys.executable, "-m", "agentmon.cli.main", "--config", str(self.config), *map(str, arguments)]

    def environment(self) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SUDO_")}
        return environment | {"PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"}

    def agentmon(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        options = {"capture_output": True, "text": True, "timeout": PATIENCE_S, "env": self.environment()} | options
        options.setdefault("cwd", self.directory)
        return subprocess.run(self.command(*arguments), check=False, **options)

    def spawn(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start it."""
        options = {"text": True, "env": self.environment()} | options
        options.setdefault("cwd", self.directory)
        return subprocess.Popen(self.command(*arguments), **options)

    def json(self, *arguments: str | Path) -> dict[str, Any]:
        """Its one JSON object."""
        done = self.agentmon(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def start(self) -> subprocess.Popen[bytes]:
        """A daemon as a service would be, ready."""
        with open(self.directory / "daemon.log", "ab") as log:
            daemon = subprocess.Popen(self.command("daemon"), stderr=log, stdout=log, env=self.environment())
        self.daemons.append(daemon)
        wait_for(lambda: daemon.poll() is not None or reachable(self.socket), "the daemon to answer")
        assert daemon.poll() is None, self.log()
        return daemon

    def log(self) -> str:
        """What the daemons said."""
        texts = [p.read_text() for p in (self.directory / "daemon.log", self.state / "embedded.log") if p.exists()]
        return "\n".join(texts)

    def client(self) -> Client:
        return Client(self.socket, PATIENCE_S)

    def daemon_pids(self) -> list[int]:
        """Daemons of this host that run, embedded or not; without what they have just forked."""
        found = self._daemons_and_forks()
        return [pid for pid, parent in found.items() if parent not in found]

    def _daemons_and_forks(self) -> dict[int, int]:
        """With the parents of each."""
        wanted = str(self.config).encode()
        found: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if wanted in words and b"daemon" in words:
                    pid = int(path.parent.name)
                    found[pid] = process.stat(pid).ppid
        return found

    def gone(self) -> bool:
        """Whether the daemon is gone with all that it made. It is not asked: that would keep an embedded one."""
        return not self.pins.exists() and not self.socket.exists()

    def policy(self, rules: str, name: str = "test") -> Path:
        """A policy file that allows everything but what `rules` (a YAML list) says."""
        path = self.directory / f"{name}.yaml"
        path.write_text(
            f"policy: {name}\n"
            "default: {exec: allow, read: allow, write: allow, create: allow, connect: allow,"
            " bind: allow, listen: allow, unix: allow}\n"
            f"rules:\n{rules}\n"
        )
        return path


def wait_for(condition: Any, what: str, timeout_s: float = PATIENCE_S) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)
