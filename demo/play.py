# SPDX-License-Identifier: Apache-2.0
"""Plays the demo on this machine: a daemon of its own, the stage, and the records of what was blocked."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from demo import scenario
from demo.scenario import Step

CHECKOUT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0
SESSION_ENDS_S = 30.0
#: A record is made before the operation's caller goes on, and is here within this time; emulated guests are slow.
RECORD_S = 5.0


class DemoError(Exception):
    """The demo could not be played; the message says why."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one attempt. ``outcome``: ``EPERM``, ``SIGKILL``, or what else the agent saw."""

    step: Step
    record: dict[str, Any] | None
    outcome: str


class Screen(Protocol):
    """Who is told."""

    def begin(self, tier: str, why: str, posture: dict[str, Any]) -> None: ...
    def work(self, step: Step, status: int, output: str) -> None: ...
    def attempt(self, attempt: Attempt) -> None: ...
    def end(self, summary: dict[str, Any]) -> None: ...


def play(screen: Screen, packages: Path, *, fence: bool = True, pause_seconds: float = 0.0) -> dict[str, Any]:
    """Play it once. Returns the summary that ``--json`` prints. Raises DemoError."""
    with _own_agentmon() as own:
        facts: dict[str, Any] = own.doctor() if fence else {"tier": "none", "why_react": "", "posture": {}}
        screen.begin(facts["tier"], facts.get("why_react") or "", facts["posture"])
        records = own.watch() if fence else _Records()
        orders = {
            "keep": [str(CHECKOUT), sys.base_prefix, sys.prefix],
            "packages": str(packages),
            "pause_seconds": pause_seconds,
            "run": [*own.command, "run", "--quiet", "--as-root", "-p", "coding-agent", "--"] if fence else [],
        }
        attempts: list[Attempt] = []
        found: dict[str, Any] = {}
        ended = ""
        with contextlib.closing(_stage(orders)) as stage:
            for told in stage:
                if "effects" in told:
                    found = told
                elif "agent" in told:
                    ended = told["agent"]
                elif "step" in told:
                    step = scenario.STEPS_OF_AGENT[told["step"]]
                    if step.attempt:
                        attempts.append(Attempt(step, records.find(step, told) if fence else None, _outcome(told)))
                        screen.attempt(attempts[-1])
                    else:
                        screen.work(step, told["status"], told["output"])
        if not found:
            raise DemoError("the stage ended early; its messages are above")
        records.drain()
        summary = _summary(facts["tier"], attempts, found, ended, records)
    screen.end(summary)
    return summary


def _summary(
    tier: str, attempts: list[Attempt], found: dict[str, Any], ended: str, records: _Records
) -> dict[str, Any]:
    detail = [
        {
            "attempt": a.step.attempt,
            "operation": a.step.operation,
            "object": a.step.object,
            # by what the attempt did not get, and by who says to have stopped it: either alone proves nothing
            "blocked": not found["effects"][a.step.attempt] and a.record is not None,
            "effect": found["effects"][a.step.attempt],
            "outcome": a.outcome,
            "verdict": (a.record or {}).get("verdict", ""),
            "rule": (a.record or {}).get("rule", ""),
            "reason": (a.record or {}).get("reason", ""),
        }
        for a in attempts
    ]
    mine = [a.record for a in attempts]
    work = found["work"] | {"the agent submitted its work": ended == "Submitted"}
    return {
        "work_ok": all(work.values()),
        "attempts": len(scenario.ATTEMPTS),
        "blocked": sum(bool(d["blocked"]) for d in detail),
        "tier": tier,
        "work": work,
        "detail": detail,
        # the fence in the way of honest work would be a defect of the policy
        "unexpected": [r for r in records.blocked if not any(r is m or _same(r, m) for m in mine)],
        "left": found["left"],
    }


def _same(record: dict[str, Any], other: dict[str, Any] | None) -> bool:
    keys = ("operation", "object", "rule")
    return other is not None and all(record[k] == other[k] for k in keys)


def _outcome(told: dict[str, Any]) -> str:
    if told["status"] in (-9, 137):
        return "SIGKILL"
    if told["status"] != 0 and ("Operation not permitted" in told["output"]):
        return "EPERM"
    return f"exit status {told['status']}"


def _stage(orders: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    command = ["unshare", "--mount", "--net", "--propagation", "private", sys.executable, "-P", "-m", "demo.stage"]
    environment = dict(os.environ, PYTHONPATH=str(CHECKOUT))
    with subprocess.Popen(
        [*command, json.dumps(orders)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env=environment,
    ) as stage:
        assert stage.stdout is not None
        for line in stage.stdout:
            try:
                yield json.loads(line)
            except ValueError:
                print(line, end="", file=sys.stderr)


class _Records:
    """What ``agentmon watch --json`` tells, as it comes."""

    def __init__(self) -> None:
        self.blocked: list[dict[str, Any]] = []
        self._new: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def feed(self, lines: Iterator[str]) -> None:
        for line in lines:
            with contextlib.suppress(ValueError):
                self._new.put(json.loads(line))

    def drain(self) -> None:
        """Take what is left, once the session is over."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self._new.get(timeout=0.3))

    def _take(self, record: dict[str, Any]) -> None:
        if record.get("verdict") in ("deny", "kill"):
            self.blocked.append(record)

    def find(self, step: Step, told: dict[str, Any]) -> dict[str, Any] | None:
        """The record of this attempt, made while the step ran."""
        deadline = time.monotonic() + RECORD_S
        while True:
            for record in self.blocked:
                if (
                    told["begin_ns"] <= record["time_ns"]
                    and record["operation"] == step.operation
                    and record["object"] == step.object
                ):
                    return record
            try:
                self._take(self._new.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                return None


class _Own:
    """An agentmon of the demo's own, beside any that the host has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[subprocess.Popen[str]] = []
        config = folder / "agentmon.toml"
        config.write_text(
            f'[daemon]\nsocket = "{folder}/control.sock"\nstate = "{folder}"\naudit = "{folder}/audit.db"\n'
            f'pins = "/sys/fs/bpf/{folder.name}"\n'
        )
        self.command = [sys.executable, "-P", "-m", "agentmon.cli.main", "--config", str(config)]

    def _start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        # a session of its own: Ctrl-C is for the demo, which ends these in order
        child = subprocess.Popen(
            [*self.command, *words],
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=CHECKOUT,
            start_new_session=True,
            **options,
        )
        self.children.append(child)
        return child

    def doctor(self) -> dict[str, Any]:
        """Start the daemon; what this host can enforce."""
        log = self.folder / "daemon.log"
        read, write = os.pipe()
        with log.open("w") as file:
            self._start("daemon", "--ready-fd", str(write), stdout=file, stderr=file, pass_fds=[write])
        os.close(write)
        ready = os.read(read, 1)
        os.close(read)
        if ready != b"+":
            raise DemoError(f"the daemon did not start:\n{log.read_text().strip()}")
        done = subprocess.run(
            [*self.command, "doctor", "--json"], check=False, capture_output=True, text=True, cwd=CHECKOUT
        )
        try:
            facts: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise DemoError(f"`agentmon doctor` failed: {done.stderr.strip()}") from None
        return facts

    def watch(self) -> _Records:
        """Follow what is blocked."""
        log = self.folder / "watch.log"
        with log.open("w") as file:
            child = self._start("watch", "--json", "--once", stdout=subprocess.PIPE, stderr=file)
        deadline = time.monotonic() + PATIENCE_S
        while "watching" not in log.read_text():
            if child.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"`agentmon watch` failed: {log.read_text().strip()}")
            time.sleep(0.02)
        records = _Records()
        assert child.stdout is not None
        threading.Thread(target=records.feed, args=(child.stdout,), daemon=True).start()
        return records

    def stop(self) -> None:
        """End what was started. The daemon takes the fence down as it ends, unless a session is live."""
        for child in self.children[1:]:
            child.terminate()
            child.wait()
        deadline = time.monotonic() + SESSION_ENDS_S
        while self._live() and time.monotonic() < deadline:
            time.sleep(0.1)
        for daemon in self.children[:1]:
            daemon.terminate()
            daemon.wait()

    def _live(self) -> bool:
        done = subprocess.run(
            [*self.command, "ps", "--json"], check=False, capture_output=True, text=True, cwd=CHECKOUT
        )
        return done.returncode == 0 and bool(json.loads(done.stdout)["sessions"])


@contextlib.contextmanager
def _own_agentmon() -> Iterator[_Own]:
    # in /run: seen from the stage too, which covers home and /tmp
    own = _Own(Path(tempfile.mkdtemp(prefix="agentmon-demo-", dir="/run")))
    try:
        yield own
    finally:
        own.stop()
        shutil.rmtree(own.folder, ignore_errors=True)
