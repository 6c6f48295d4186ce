# SPDX-License-Identifier: Apache-2.0
"""``./dev bench hold``: how soon what is held is frozen, and goes on once approved; and whether any is ever lost.

A real daemon, agents that connect to a rule with `action: hold`, and an operator who approves. Parked: from the call's
begin to the moment at which the kernel says that its cgroup is frozen. Resumed: from the operator's request to the
return of the call. It runs in whatever tier this host gets, so also in a guest of `./dev vm`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from agentmon.control.client import Client
from agentmon.control.protocol import RefusedError
from agentmon.errors import AgentmonError
from benchmarks import _kernel, _service
from benchmarks._agents import PATIENCE_S, Agent, Done, Team, boot_ns, freezes
from benchmarks._common import EMULATED, Goal, Report, arguments, finish, host, percentile, say

ROUNDS = 200
RESTART_ROUNDS = 20
TEAM = 50
CONCURRENT, OF_ONE_SESSION = 100, 15
CYCLES, CYCLING = 1000, 8
LOAD_RECORDS, LOAD_EVERY_S = 50, 0.01
#: Limits that people need, and a benchmark does not. An emulated processor is not in time for anything.
PARK_MS = 60_000 if EMULATED else 500
CONFIG = f"[hold]\nopen_per_session = 64\nasked_per_minute = 100000\npark_ms = {PARK_MS}\n"
POLICY = """
policy: hold-bench
default: {{exec: allow, read: allow, write: allow, create: allow, connect: allow, send: allow}}
rules:
  - {{id: out, on: connect, cidrs: [127.0.0.0/8], ports: [{port}], action: hold}}
"""


class Sink:
    """Takes connections, and counts them."""

    def __init__(self) -> None:
        self._server = socket.create_server(("0.0.0.0", 0), backlog=512)
        self.port = self._server.getsockname()[1]
        self.taken = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._server.accept()[0].close()
                self.taken += 1

    def close(self) -> None:
        """No more."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


class Operator:
    """Hears of approvals as they are asked for, and answers."""

    def __init__(self, path: Path) -> None:
        self.asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.denied: Counter[str] = Counter()
        self.client = Client(path, PATIENCE_S)
        self._ears = Client(path, PATIENCE_S)
        self._listening = threading.Event()
        threading.Thread(target=self._hear, daemon=True).start()
        self._listening.wait()

    def _hear(self) -> None:
        with contextlib.suppress(AgentmonError):
            for message in self._ears.stream("watch"):
                self._listening.set()
                event = message.get("event", {})
                if event.get("kind") == "approval" and event["verdict"] == "hold":
                    self.asked.put(event["detail"].split()[0])
                elif event.get("kind") == "decision":
                    self.denied[event["reason"]] += 1

    def next(self) -> str:
        """The id of the next approval. Raises `queue.Empty` when nothing is asked."""
        return self.asked.get(timeout=PATIENCE_S)

    def approve(self, approval: str) -> int:
        """Let it go on. When that was asked for. What was denied meanwhile is counted: its agent fails."""
        at_ns = boot_ns()
        try:
            self.client.call("approve", approval=approval)
        except RefusedError as error:
            self.denied[str(error).partition(": ")[2]] += 1
        return at_ns

    def close(self) -> None:
        """Hang up."""
        self._ears.interrupt()
        self.client.close()


@dataclass(slots=True)
class Stage:
    """A daemon, a sink, and an operator."""

    folder: Path
    service: _service.Service
    sink: Sink
    operator: Operator
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def team(self, name: str, size: int, *, apart: bool = True, policy: str = "") -> list[Agent]:
        """Agents in a session of their own."""
        team = Team(name, size, apart=apart)
        self.stack.callback(team.close)
        text = policy or POLICY.format(port=self.sink.port)
        with Client(self.service.socket, PATIENCE_S) as client:
            client.call(
                "enroll", pid=team.pid, policy={"name": "hold.yaml", "text": text}, workspace=str(self.folder),
                accept=["all"], uid=0,
            )  # fmt: skip
        team.go()
        return team.agents

    def counters(self) -> dict[str, int]:
        """The daemon's."""
        found: dict[str, int] = self.operator.client.call("ps")["counters"]
        return found


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """All of it."""
    with tempfile.TemporaryDirectory(prefix="agentmon-bench-", dir="/tmp") as name, _service.service(CONFIG) as service:
        sink, operator = Sink(), Operator(service.socket)
        made = Stage(Path(name), service, sink, operator)
        try:
            yield made
        finally:
            made.stack.close()
            operator.close()
            sink.close()


def _ms(values: list[float]) -> dict[str, float]:
    """Nanoseconds, as a summary in milliseconds."""
    ms = [value / 1e6 for value in values]
    return {
        "p50": round(percentile(ms, 50), 3), "p90": round(percentile(ms, 90), 3), "p99": round(percentile(ms, 99), 3),
        "most": round(max(ms), 3), "mean": round(statistics.mean(ms), 3), "of": len(ms),
    }  # fmt: skip


def _plain_ns(agent: Agent) -> float:
    """Processor time of a connection that nothing holds."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        taken: list[float] = []
        for _ in range(20):
            agent.connect("127.0.0.1", server.getsockname()[1])
            server.accept()[0].close()
            taken.append(agent.done().cpu_ns)
    return statistics.median(taken)


def _hold(stage: Stage, agent: Agent, address: str, wait_s: float) -> tuple[Done, int]:
    """One hold: what the agent saw of it, and when it was approved."""
    agent.connect(address, stage.sink.port)
    approval = stage.operator.next()
    time.sleep(wait_s)
    at_ns = stage.operator.approve(approval)
    done = agent.done()
    if done.errno:
        time.sleep(0.2)  # its record is on its way
        why = ", ".join(stage.operator.denied)
        raise RuntimeError(f"an approved connection failed: {os.strerror(done.errno)} ({why})")
    return done, at_ns


def one(report: Report, rounds: int) -> None:
    """One at a time, by processes that were never held, and by one that often is."""
    rounds = rounds or ROUNDS
    fresh = max(rounds // 2, 1)
    with contextlib.ExitStack() as stack:
        try:
            trace = stack.enter_context(freezes())
        except OSError as error:
            trace = None
            report.missing.append(f"parked: {error}")
        here = stack.enter_context(stage())
        agents = [agent for n in range(0, fresh, TEAM) for agent in here.team(f"one-{n}", min(TEAM, fresh - n))]
        plain_ns = _plain_ns(agents[0])
        for name, who in (("first hold of a process", agents), ("held again", agents[:1] * rounds)):
            found = [  # not in step with anything that the daemon does by the clock
                (agent, *_hold(here, agent, f"127.0.1.{n % 250 + 1}", 0.05 + n % 7 * 0.013))
                for n, agent in enumerate(who)
            ]
            results: dict[str, Any] = {}
            if trace is not None:
                frozen = trace.read()
                results["parked, ms"] = parked = _ms([_parked_ns(frozen, agent, done) for agent, done, _ in found])
                note = "call to frozen, by the kernel's trace"
                report.goals.append(Goal(f"{name}: parked, p99", parked["p99"], "ms", 10, note=note))
            results["resumed, ms"] = resumed = _ms([done.ended_ns - at_ns for _, done, at_ns in found])
            results["cpu of a hold, ms"] = cpu = _ms([max(0.0, done.cpu_ns - plain_ns) for _, done, _ in found])
            results["restarts of a hold"] = _restarts(here, agents if name.startswith("first") else agents[:1])
            report.results[name] = results
            report.goals += [
                Goal(f"{name}: resumed, p99", resumed["p99"], "ms", 20, note="approval asked for to the call's return"),
                Goal(f"{name}: processor time", cpu["mean"], "ms", 2, note="of the held task, mean of a hold"),
            ]
        report.results["cpu of a connection that is not held, ms"] = round(plain_ns / 1e6, 3)


def _parked_ns(trace: list[tuple[int, str]], agent: Agent, done: Done) -> float:
    """From the call to the first time its cgroup was frozen after it."""
    lot = f"/{agent.cgroup.relative_to(agent.cgroup.parents[1])}/agentmon-held-"
    for at_ns, where in trace:
        if lot in where and where.endswith(f"-{agent.pid}") and done.began_ns <= at_ns <= done.ended_ns:
            return float(at_ns - done.began_ns)
    raise RuntimeError("a hold was never frozen")


def _restarts(here: Stage, agents: list[Agent]) -> dict[str, Any]:
    """How often the call met its hook until it was frozen, by the kernel's statistics of that program."""
    counts = []
    with _kernel.statistics_on():
        cost = _kernel.Cost(here.service.pins)
        for number in range(RESTART_ROUNDS):
            before = cost.read()
            _hold(here, agents[number % len(agents)], f"127.0.2.{number + 1}", 0.05)
            after = cost.read()
            counts.append(max((after[name][1] - before[name][1] for name in after if "connect" in name), default=0))
        cost.close()
    return {"median": statistics.median(counts), "most": max(counts), "of": len(counts)}


def concurrent(report: Report, rounds: int) -> None:
    """A hundred at once, in seven sessions."""
    del rounds
    with stage() as here:
        agents: list[Agent] = []
        while len(agents) < CONCURRENT:
            size = min(OF_ONE_SESSION, CONCURRENT - len(agents))
            agents += here.team(f"many-{len(agents)}", size, apart=False)
        began_ns = boot_ns()
        for number, agent in enumerate(agents):
            agent.connect(f"127.0.3.{number + 1}", here.sink.port)
        ids = [here.operator.next() for _ in agents]
        asked_ns = boot_ns()
        time.sleep(1.0)  # beyond the kernel's own deadline: who is not frozen by then is denied
        waiting = here.operator.client.call("approvals")["approvals"]
        at_ns = boot_ns()
        for approval in ids:
            here.operator.approve(approval)
        done = [agent.done() for agent in agents]
        failed = sum(one_.errno != 0 for one_ in done)
        report.results[f"{CONCURRENT} holds at once"] = {
            "asked, ms until the last": round((asked_ns - began_ns) / 1e6, 1),
            "held, a second later": len(waiting),
            "failed": failed,
            "why": ", ".join(here.operator.denied),
            "went on, ms from the first approval to the last return": round(
                (max(one_.ended_ns for one_ in done) - at_ns) / 1e6, 1
            ),
            "cpu of a hold, ms": _ms([float(one_.cpu_ns) for one_ in done]),
        }
        report.goals.append(
            Goal("held at once and let go on, unharmed", min(len(waiting), len(done) - failed), "", 100, at_most=False)
        )


def cycles(report: Report, rounds: int) -> None:
    """A thousand times held and approved, while another session makes thousands of records a second."""
    wanted = rounds * 10 if rounds else CYCLES
    with stage() as here, _load(here) as made:
        agents = [here.team(f"cycle-{number}", 1)[0] for number in range(CYCLING)]
        before, load_before, began_s = here.counters(), made(), time.monotonic()
        at_ns: list[int] = []
        found: list[Done] = []
        started = _begin_all(here, agents, wanted)
        while len(found) < wanted:
            with contextlib.suppress(queue.Empty):
                # at once: some before the daemon has them frozen
                at_ns.append(here.operator.approve(here.operator.asked.get(timeout=0.001)))
            ready, _, _ = select.select(agents, [], [], 0)
            for agent in ready:
                found.append(agent.done())
                if started < wanted:
                    agent.connect(_address(started), here.sink.port)
                    started += 1
            if time.monotonic() - began_s > PATIENCE_S * 10:
                raise RuntimeError(f"{wanted - len(found)} of {wanted} did not go on")
        seconds, after = time.monotonic() - began_s, here.counters()
        load = made() - load_before
        failed = sum(one_.errno != 0 for one_ in found)
        time.sleep(0.2)
        report.results[f"{wanted} holds and approvals under load"] = {
            "seconds": round(seconds, 1),
            "of another session meanwhile, records a second": round(load / seconds),
            "failed": failed,
            "why": ", ".join(here.operator.denied),
            "connections that arrived": here.sink.taken,
            "approvals that are left": len(here.operator.client.call("approvals")["approvals"]),
            "records that were lost": after["ring_lost"] - before["ring_lost"],
            "call to return, approved at once, ms": _ms([float(one_.ended_ns - one_.began_ns) for one_ in found]),
            "cpu of a hold, ms": _ms([float(one_.cpu_ns) for one_ in found]),
        }
        lost = wanted - min(len(found) - failed, here.sink.taken, len(at_ns))
        report.goals.append(Goal(f"lost of {wanted} holds", lost, "", 0))


def _begin_all(here: Stage, agents: list[Agent], wanted: int) -> int:
    started = min(len(agents), wanted)
    for number, agent in enumerate(agents[:started]):
        agent.connect(_address(number), here.sink.port)
    return started


def _address(number: int) -> str:
    """Another for each: the kernel's tables have to be cleared of what was answered."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


@contextlib.contextmanager
def _load(here: Stage) -> Iterator[Callable[[], int]]:
    """A session that makes records all the time; yields how many decisions it has come to."""
    gate_read, gate_write = os.pipe()
    files = [here.folder / f"load-{number}" for number in range(500)]
    for file in files:
        file.touch()
    pid = os.fork()
    if not pid:
        try:
            os.close(gate_write)
            os.read(gate_read, 1)
            number = 0
            while True:
                for _ in range(LOAD_RECORDS):
                    os.close(os.open(files[number % len(files)], os.O_RDONLY))
                    number += 1
                time.sleep(LOAD_EVERY_S)
        finally:
            os._exit(1)
    os.close(gate_read)
    with Client(here.service.socket, PATIENCE_S) as client:
        session = client.call(
            "enroll", pid=pid, policy={"name": "load.yaml", "text": _kernel.TELL_ALL}, workspace=str(here.folder),
            accept=["all"], uid=0,
        )["session"]  # fmt: skip

    def made() -> int:
        sessions = here.operator.client.call("ps")["sessions"]
        return next(int(found["decisions"]) for found in sessions if found["session"] == session)

    os.write(gate_write, b"!")
    os.close(gate_write)
    try:
        yield made
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


PARTS: dict[str, Callable[[Report, int], None]] = {"one": one, "concurrent": concurrent, "cycles": cycles}


def main() -> int:
    """Run all parts, or those asked for by ``--only``."""
    parser = arguments("how soon what is held is frozen, and goes on; parts: " + ", ".join(PARTS))
    args = parser.parse_args()
    unknown = set(args.only) - set(PARTS)
    if unknown:
        parser.error(f"no part `{unknown.pop()}`: {', '.join(PARTS)}")
    facts = host()
    report = Report("hold")
    for name, part in PARTS.items():
        if not args.only or name in args.only:
            report.attempt(name, partial(part, rounds=args.rounds))
    if facts["tier"] == "lsm" and facts["virtual"]:
        say("in an emulated guest, times say nothing; that nothing is lost does")
    return finish(report, facts, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
