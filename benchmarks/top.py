# SPDX-License-Identifier: Apache-2.0
"""``./dev bench top``: whether the live view keeps up with 1,000 and 5,000 blocked operations a second.

All of it is real: an agent whose connections are denied, the kernel's ring, a daemon, its socket, and the view itself
(80x24, without a terminal: what a terminal takes to draw is not in it). A tick: from the look into the inbox to the
screen that shows what was there. A key: from the moment at which it is typed to the screen that shows what it did.
What others on a busy host make it wait for a processor (schedstat) is in that, and is told apart as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from textual import events

from agentmon.cli.live.app import TICK_S, Top
from agentmon.cli.live.feed import Feed
from agentmon.cli.live.inbox import Inbox
from agentmon.cli.live.state import State
from agentmon.control.client import Client
from benchmarks import _service
from benchmarks._agents import PATIENCE_S
from benchmarks._common import Goal, Report, arguments, finish, host, percentile, say

RATES = (1_000, 5_000)
SECONDS = 60.0
SIZE = (80, 24)
#: In a row; each changes what is seen: up and down the list, by pages, stand still and go on, one operation and all.
KEYS = ("k", "k", "j", "pageup", "end", "space", "k", "space", "o", "x", "home", "end")
#: Between two keys, at random, so that they are not in step with the ticks.
TYPED_EVERY_S = (0.05, 0.25)
STEP_S = 0.01
POLICY = """
policy: top-bench
default: {exec: allow, read: allow, write: allow, create: allow}
rules:
  - {id: nowhere, on: connect, cidrs: [0.0.0.0/0], action: deny, reason: nobody is to be reached}
"""


class Timed(Top):
    """The view, and when it did what."""

    ticks_ms: list[float]
    late_ms: list[float]
    keys_ms: list[float]
    own_ms: list[float]

    def begin(self) -> None:
        """From now on it is measured."""
        self.ticks_ms, self.late_ms, self.keys_ms, self.own_ms = [], [], [], []
        self._tick_s = self._last_s = self._typed_s = 0.0
        self._done, self._waited_ms = False, 0.0
        self.shown = asyncio.Event()

    def tick(self) -> None:
        """As it is, with a watch."""
        began_s = time.perf_counter()
        if self._last_s:
            self.late_ms.append(max(0.0, began_s - self._last_s - TICK_S) * 1e3)
        self._last_s = began_s
        if not self._tick_s:  # else the last one was not drawn yet, and counts until this is
            self._tick_s = began_s
        super().tick()

    async def type(self, key: str) -> None:
        """Type it; until its effect is seen. Raises `TimeoutError`."""
        self.shown.clear()
        self._waited_ms = _waited_ms()
        self._done, self._typed_s = False, time.perf_counter()
        self.post_message(events.Key(key, key if len(key) == 1 else None))
        await asyncio.wait_for(self.shown.wait(), PATIENCE_S)

    async def run_action(self, *arguments: Any, **named: Any) -> bool:
        """What a key means has been done: the next screen shows it."""
        did = await super().run_action(*arguments, **named)
        self._done = True
        return did

    def post_display_hook(self) -> None:
        """A screen was drawn."""
        now_s = time.perf_counter()
        if self._tick_s:
            self.ticks_ms.append((now_s - self._tick_s) * 1e3)
            self._tick_s = 0.0
        if self._typed_s and self._done:
            took_ms = (now_s - self._typed_s) * 1e3
            self.keys_ms.append(took_ms)
            self.own_ms.append(max(0.0, took_ms - (_waited_ms() - self._waited_ms)))
            self._typed_s = 0.0
            self.shown.set()


def _waited_ms() -> float:
    """For a processor, by this thread, so far (Documentation/scheduler/sched-stats.rst); 0 where nobody counts."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e6
    except OSError:
        return 0.0


@contextlib.contextmanager
def agent(service: _service.Service, folder: Path, rate: int) -> Iterator[None]:
    """Is denied so often a second, each time another port, so that no two rows are one."""
    gate_read, gate_write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(gate_write)
            os.read(gate_read, 1)
            _knock(rate)
        finally:
            os._exit(1)
    os.close(gate_read)
    try:
        with Client(service.socket, PATIENCE_S) as client:
            client.call(
                "enroll",
                pid=pid,
                policy={"name": "top.yaml", "text": POLICY},
                workspace=str(folder),
                accept=["all"],
                uid=0,
            )
        os.write(gate_write, b"!")
        yield
    finally:
        os.close(gate_write)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def _knock(rate: int) -> None:
    number, began_s = 0, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        while True:
            while number < (time.monotonic() - began_s) * rate:
                out.connect_ex((f"127.0.{number // 50_000 % 250}.1", 1024 + number % 50_000))
                number += 1
            time.sleep(STEP_S)


def stream(report: Report, rate: int, seconds: float) -> None:
    """One rate."""
    with tempfile.TemporaryDirectory(prefix="agentmon-bench-", dir="/tmp") as name, _service.service() as service:
        inbox = Inbox()
        state = State()
        app = Timed(state, inbox, Feed(lambda: Client(service.socket, PATIENCE_S), inbox))
        with agent(service, Path(name), rate):
            figures = asyncio.run(_watch(app, seconds))
        with Client(service.socket, PATIENCE_S) as client:
            lost = client.call("ps")["counters"]["ring_lost"]
    ticks, keys = _ms(app.ticks_ms), _ms(app.keys_ms)
    report.results[f"{rate:,} records a second"] = {
        **figures,
        "tick, ms": ticks,
        "tick, share of its time": {k: round(ticks[k] / TICK_S / 1e3, 3) for k in ("p50", "p99")},
        "tick, ms later than it should": _ms(app.late_ms),
        "key to screen, ms": keys,
        "the same, less the wait for a processor": _ms(app.own_ms),
        "lost in the ring": lost,
    }
    report.goals += [
        Goal(f"{rate:,}/s: key to screen, p99", keys["p99"], "ms", 100),
        Goal(f"{rate:,}/s: tick, p99", ticks["p99"], "ms", TICK_S * 1e3),
    ]


async def _watch(app: Timed, seconds: float) -> dict[str, Any]:
    app.begin()
    async with app.run_test(size=SIZE):
        await _filled(app)
        app.begin()
        cpu_s, began_s = time.process_time(), time.monotonic()
        arrived, missed = app.state.stream.arrived, app.state.stream.missed
        number = 0
        while time.monotonic() - began_s < seconds:
            await app.type(KEYS[number % len(KEYS)])
            number += 1
            await asyncio.sleep(random.uniform(*TYPED_EVERY_S))
        took_s = time.monotonic() - began_s
        return {
            "seconds": round(took_s, 1),
            "records that arrived, a second": round((app.state.stream.arrived - arrived) / took_s),
            "records that were dropped, or never on screen": app.state.stream.missed - missed,
            "of one processor, %": round(100 * (time.process_time() - cpu_s) / took_s, 1),
        }


async def _filled(app: Timed) -> None:
    """All rows that are kept are there, so that all that costs does."""
    stream = app.state.stream
    deadline_s = time.monotonic() + PATIENCE_S
    while len(stream.rows) < stream.kept:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"only {stream.arrived} records arrived")
        await asyncio.sleep(TICK_S)


def _ms(values: list[float]) -> dict[str, float]:
    return {
        "p50": round(percentile(values, 50), 2), "p99": round(percentile(values, 99), 2),
        "most": round(max(values), 2), "mean": round(statistics.mean(values), 2), "of": len(values),
    }  # fmt: skip


def main() -> int:
    """Run all rates, or those asked for by ``--only``."""
    parser = arguments("whether the live view keeps up; parts: " + ", ".join(map(str, RATES)))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each rate (%(default)g)")
    args = parser.parse_args()
    if unknown := set(args.only) - set(map(str, RATES)):
        parser.error(f"no part `{unknown.pop()}`: {', '.join(map(str, RATES))}")
    facts = host()
    report = Report("top")
    for rate in RATES:
        if not args.only or str(rate) in args.only:
            report.attempt(str(rate), partial(stream, rate=rate, seconds=args.seconds))
    if facts["virtual"]:
        say("on a shared host, the longest are the host's")
    return finish(report, facts, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
