# SPDX-License-Identifier: Apache-2.0
"""The daemon's evaluator per event, on made-up but lifelike paths."""

from __future__ import annotations

import gc
import random
import statistics
import time
from pathlib import Path

from agentmon.model.operations import Operation
from agentmon.policy.fast import FastEvaluator
from benchmarks import _kernel
from benchmarks._common import Goal, Report, percentile

WORDS = [
    "core",
    "util",
    "api",
    "model",
    "view",
    "test",
    "data",
    "config",
    "parse",
    "lexer",
    "token",
    "index",
    "cache",
    "store",
    "client",
    "server",
    "proto",
    "build",
    "tool",
    "main",
    "base",
    "common",
    "async",
    "stream",
    "buffer",
    "event",
    "queue",
    "graph",
    "node",
    "edge",
    "table",
    "schema",
    "query",
    "plan",
    "rule",
    "match",
    "path",
    "glob",
]
DISTINCT = 60_000


def paths(number: int, seed: int = 1) -> list[bytes]:
    """Distinct paths as an agent's session opens them: sources, dependencies, libraries, caches; in no order."""
    rng = random.Random(seed)
    roots = (
        ("/home/dev/project/src", 30, ["py", "c", "h", "rs", "ts"]),
        ("/home/dev/project/node_modules", 30, ["js", "json", "map"]),
        ("/home/dev/project/.git/objects", 10, [""]),
        ("/usr/lib/python3/dist-packages", 15, ["py", "pyc", "so"]),
        ("/usr/include", 8, ["h"]),
        ("/home/dev/.cache/pip", 4, ["whl", ""]),
        ("/tmp/build", 3, ["o", "d"]),
    )
    directories: dict[str, list[str]] = {}
    for root, weight, _ in roots:
        directories[root] = [root] + [
            f"{root}/{'/'.join(rng.choices(WORDS, k=rng.randint(1, 4)))}" for _ in range(weight * 20)
        ]
    found: dict[bytes, None] = {}
    while len(found) < number:
        root, _, suffixes = rng.choices(roots, [w for _, w, _ in roots])[0]
        name = f"{rng.choice(WORDS)}_{rng.choice(WORDS)}{rng.randint(0, 9999)}"
        suffix = rng.choice(suffixes)
        found[f"{rng.choice(directories[root])}/{name}{'.' + suffix if suffix else ''}".encode()] = None
    return list(found)


def evaluator(report: Report, rounds: int = 0) -> None:
    """Distinct objects, then the same ones again."""
    policy = _kernel.pack(Path("/home/dev/project"))
    objects = paths(DISTINCT)
    again = objects[:8_000]  # fewer than are kept
    clock = _clock_ns()
    fresh_p50: list[float] = []
    fresh_p99: list[float] = []
    repeated_p50: list[float] = []
    repeated_p99: list[float] = []
    for _ in range(rounds or 7):
        judge = FastEvaluator(policy)
        gc.collect()
        times = _each(judge, objects)
        fresh_p50.append(percentile(times, 50) - clock)
        fresh_p99.append(percentile(times, 99) - clock)
        judge = FastEvaluator(policy)
        _each(judge, again)
        times = _each(judge, again)
        repeated_p50.append(percentile(times, 50) - clock)
        repeated_p99.append(percentile(times, 99) - clock)
    us = 1e-3
    figures = {
        "distinct, p50": statistics.median(fresh_p50) * us,
        "distinct, p99": statistics.median(fresh_p99) * us,
        "repeated, p50": statistics.median(repeated_p50) * us,
        "repeated, p99": statistics.median(repeated_p99) * us,
    }
    report.results["Python evaluator, µs an event"] = {
        "policy": "coding-agent",
        "distinct paths": len(objects),
        **{name: round(value, 3) for name, value in figures.items()},
        "subtracted for the clock": round(clock * us, 3),
    }
    for name, limit in (("distinct, p50", 4), ("repeated, p50", 1), ("distinct, p99", 20), ("repeated, p99", 20)):
        report.goals.append(Goal(f"Python evaluator, {name}", round(figures[name], 3), "µs", limit))


def _each(judge: FastEvaluator, objects: list[bytes]) -> list[int]:
    times = []
    clock, path, read = time.perf_counter_ns, judge.path, Operation.READ
    for item in objects:
        start = clock()
        path(read, item, 0)
        times.append(clock() - start)
    return times


def _clock_ns() -> float:
    clock = time.perf_counter_ns
    times = []
    for _ in range(20_000):
        start = clock()
        times.append(clock() - start)
    return statistics.median(times)
