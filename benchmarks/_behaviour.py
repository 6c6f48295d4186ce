# SPDX-License-Identifier: Apache-2.0
"""Calibration, cost and drift of whole baselines, on made-up agents and on traces that others recorded."""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from agentmon.errors import AgentmonError
from agentmon.fingerprint import document
from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.drift import NOTICED, DriftError, accept, anchored_score, capital
from agentmon.fingerprint.sequence import LONGEST
from agentmon.fingerprint.tokens import Token, Tokens
from agentmon.fingerprint.training import Recorded, observed, train
from agentmon.fingerprint.watching import Watcher
from benchmarks import _calls
from benchmarks._calls import percentiles
from benchmarks._common import Goal, Report, percentile
from benchmarks._plots import calibration as plot_calibration
from tests.support.behaviour import MadeSession, made

LEARNT = 200
HELD_OUT = 400
EVENTS = 100_000
DRIFTS = 10
DRIFT_LEARNT = 60
SESSIONS_OF_DRIFT = 200
RECORDED = 30


def recorded_tokens(session: MadeSession) -> Recorded:
    """A made-up session as tokens."""
    reader = Tokens()
    return Recorded(session.id, [t for r in session.records if (t := reader.read(r)) is not None])


def recorded(report: Report, args: argparse.Namespace) -> None:
    """Real sessions of agents, recorded in a guest: see `benchmarks._sessions`."""
    from benchmarks import _judged

    if args.logs is None:
        report.results["recorded sessions"] = "not measured: record them (benchmarks/_sessions.py) and give --logs DIR"
        report.goals += [
            Goal("false alerts per 100 recorded sessions", None, "", 1),
            Goal("recorded sessions with an attack: noticed", None, "%", 95, at_most=False),
            Goal("recorded sessions with an attack: median delay", None, "events", 3),
        ]
        return
    _judged.judge(report, args.logs, args.plots)


# ---- promises


def calibration(report: Report, args: argparse.Namespace) -> None:
    """Promised against observed alerts per session, at four levels."""
    sources = {"made-up agent": [recorded_tokens(made(seed)) for seed in range(LEARNT + HELD_OUT)]}
    try:
        sources["system calls (normal sessions of ADFA-LD, one split)"] = _real(args)
    except FileNotFoundError as error:
        report.missing.append(f"calibration: {error}")
    for name, sessions in sources.items():
        learnt = sessions[:LEARNT] if name.startswith("made") else sessions[::2]
        held_out = sessions[LEARNT:] if name.startswith("made") else sessions[1::2]
        baseline = train("bench", learnt, check=False)
        rows = [
            {**c.model_dump(), "observed": c.alerts / c.sessions}
            for c in observed(baseline, [s.tokens for s in held_out])
        ]
        report.results[f"promised and observed false alerts per session, {name}"] = {
            f"promised {row['promised']:.0%}": {
                k: round(row[k], 4) for k in ("observed", "low", "high", "sessions", "alerts")
            }
            for row in rows
        }
        plot_calibration(rows, args.plots, "fingerprint-calibration" + ("" if name.startswith("made") else "-calls"))
        for row in rows:
            report.goals.append(
                Goal(
                    f"{name.partition(' (')[0]}: promised {row['promised']:.0%}, lower end of what was seen",
                    round(row["low"], 4),
                    "",
                    row["promised"],
                )
            )


def _real(args: argparse.Namespace) -> list[Recorded]:
    """Normal sessions of one split in random order: exchangeable, as a promise supposes. Copies are left out."""
    traces = list({tuple(t): t for t in _calls.load(args.data)[0]}.values())
    random.Random(1).shuffle(traces)
    return [
        Recorded(str(i), [Token(n * 10**6, call, "", call, "", "", False, 1, 0) for n, call in enumerate(trace)])
        for i, trace in enumerate(traces)
    ]


# ---- cost


def cost(report: Report, args: argparse.Namespace) -> None:
    """Time of one event, of training, and memory; each in a process of its own."""
    words = [sys.executable, "-m", "benchmarks._behaviour"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    report.results["cost, made-up agent"] = found
    try:
        report.results["cost, sequences of system calls"] = calls = _calls.cost(args.data, EVENTS)
        report.goals.append(Goal("sequence model, one system call, p50", calls["one event, µs"]["p50"], "µs", 5))
    except FileNotFoundError as error:
        report.missing.append(f"cost: {error}")
    report.goals += [
        Goal("sequence model, one event, p50", found["sequence model, µs"]["p50"], "µs", 5),
        Goal("all of it, one record, p50", found["all of it, µs"]["p50"], "µs", 5, note="records to level"),
        Goal("training, 100,000 events", found["training, s"], "s", 30, note="wall time, one process"),
    ]


def measure() -> dict[str, Any]:
    """The figures of `cost`."""
    sessions: list[Recorded] = []
    seed = 0
    while sum(len(s.tokens) for s in sessions) < EVENTS:
        sessions.append(recorded_tokens(made(seed)))
        seed += 1
    wall, cpu = time.perf_counter(), time.process_time()
    baseline = train("bench", sessions, check=False)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = _peak_mb()
    text = document.write(baseline.body)
    start = time.process_time()
    Baseline.of(*document.parse(text, "bench"))
    load = time.process_time() - start
    return {
        "events": sum(len(s.tokens) for s in sessions),
        "sessions": len(sessions),
        "training, s": round(wall, 2),
        "training, processor s": round(cpu, 2),
        "peak memory of training, MB": peak,
        "file, bytes": len(text),
        "loading, processor s": round(load, 2),
        "memory of a loaded baseline, MB": _memory(text),
        "sequence model, µs": _each_model(baseline, seed),
        "all of it, µs": _each_record(baseline, seed),
    }


def _peak_mb() -> int:
    """The most that this process had in memory; what getrusage tells begins with the parent's."""
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) // 1024 if found else 0


def _memory(text: str) -> float:
    """What a process grows by when it loads a baseline of this text."""
    code = (
        "import sys, tracemalloc; from agentmon.fingerprint import document;"
        "from agentmon.fingerprint.baseline import Baseline;"
        "body = document.parse(sys.stdin.read(), 'x'); tracemalloc.start(); kept = Baseline.of(*body);"
        "print(tracemalloc.get_traced_memory()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True)
    return round(int(done.stdout) / 2**20, 1)


def _each_model(baseline: Baseline, seed: int) -> dict[str, float]:
    """Sessions that the baseline never saw; the least of two readings of the clock is not taken off."""
    surprise, groups = baseline.core.model.surprise, baseline.core.groups
    times = []
    for session in (recorded_tokens(made(seed + i)) for i in range(RECORDED)):
        numbers = [groups.number(t.group) for t in session.tokens]
        for i, number in enumerate(numbers):
            recent = tuple(numbers[max(0, i - LONGEST) : i])
            start = time.perf_counter_ns()
            surprise(recent, number)
            times.append(time.perf_counter_ns() - start)
    return percentiles(times)


def _each_record(baseline: Baseline, seed: int) -> dict[str, float]:
    times = []
    for session in (made(seed + i) for i in range(RECORDED)):
        take = Watcher(baseline).take  # as the daemon does it
        for record in session.records:
            start = time.perf_counter_ns()
            take(record)
            times.append(time.perf_counter_ns() - start)
    return percentiles(times)


# ---- drift


def drift(report: Report, args: argparse.Namespace) -> None:
    """An attacker has each session do a little more of what the baseline never did; every session is learnt from."""
    del args
    first = train("bench", [recorded_tokens(made(seed)) for seed in range(DRIFT_LEARNT)], check=False)
    noticed, windows, steals = [], [], []
    for attack in range(DRIFTS):
        number, seen, stolen = _poisoned(first, 10_000 + 1000 * attack)
        if number:
            noticed.append(number)
            windows.append(seen)
            steals.append(stolen)
    honest = [_honest(first, 50_000 + 1000 * run) for run in range(DRIFTS)]
    report.results["drift"] = {
        "attacks": DRIFTS,
        "noticed": len(noticed),
        "sessions until noticed, median": percentile(noticed, 50) if noticed else None,
        "windows until noticed, median": percentile(windows, 50) if windows else None,
        "programs of the attacker's run until then, median": percentile(steals, 50) if steals else None,
        "honest agents taken for drifting": sum(c >= NOTICED for c in honest),
        "honest agents": DRIFTS,
        "sessions of each honest agent": SESSIONS_OF_DRIFT // 2,
    }
    report.goals += [
        Goal("drift attacks noticed", 100 * len(noticed) / DRIFTS, "%", 100, at_most=False),
        Goal("windows until noticed, median", percentile(windows, 50) if windows else None, "", 2000),
    ]


def creeping(seed: int, step: int) -> MadeSession:
    """An ordinary session, in which more and more of the work is done by ways that the agent never took."""
    session = made(seed, tasks=4)
    for _ in range(8):
        session.task()
        if session.random.random() < 0.01 * step:
            session.runs("/usr/bin/awk", ("read", "/var/log/app/a.log"), ("create", f"{session.home}/.cache/notes"))
    return session


def _poisoned(baseline: Baseline, seed: int) -> tuple[int, int, int]:
    """(sessions, windows, programs of the attacker's run) until it was noticed; 0 if it never was."""
    windows = programs = 0
    for step in range(SESSIONS_OF_DRIFT):
        made_ = creeping(seed + step, step)
        session = recorded_tokens(made_)
        windows += max(0, len(session.tokens) // 16 - 3)
        programs += sum(t.detail == "awk" and t.operation == "exec" for t in session.tokens)
        try:
            baseline, _ = accept(baseline, [session])
        except DriftError:
            return step + 1, windows, programs
        except AgentmonError:  # it can grow no more
            break
    return 0, windows, programs


def _honest(baseline: Baseline, seed: int) -> float:
    scores = [anchored_score(baseline, recorded_tokens(made(seed + i))) for i in range(SESSIONS_OF_DRIFT // 2)]
    return capital(baseline, scores)


if __name__ == "__main__":
    print(json.dumps(measure()))
