# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: facts of the host, statistics, goals, and how results are printed."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: A guest without hardware help: no limit of time that people need can be met in it.
EMULATED = "QEMU" in Path("/proc/cpuinfo").read_text(encoding="ascii")
#: Resamples of a bootstrap: the ends of a 95 % interval are then good to about a percent of its width.
RESAMPLES = 2000
NOT_TIMED = (
    "not timed: this host has no BPF LSM, and time under emulation says nothing; the figures are the react tier's"
)


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure with its goal. ``at_most`` False: at least. ``note`` says how it was measured."""

    name: str
    value: float | None
    unit: str
    goal: float
    at_most: bool = True
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the goal is reached; what could not be measured is not."""
        if self.value is None or math.isnan(self.value):
            return False
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def as_json(self) -> dict[str, Any]:
        """As printed by ``--json``."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "goal": f"{'<=' if self.at_most else '>='} {self.goal:g}",
            "met": self.met,
            **({"note": self.note} if self.note else {}),
        }


@dataclass(slots=True)
class Report:
    """All that one benchmark says."""

    bench: str
    results: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def attempt(self, name: str, part: Callable[[Report], None]) -> None:
        """Runs one part; if it fails, the report says so and goes on."""
        say(name)
        start = time.monotonic()
        try:
            part(self)
        except Exception as error:  # noqa: BLE001  # whatever it is, the other figures are still wanted
            self.missing.append(f"{name}: {type(error).__name__}: {error}")
            say(f"{name} failed: {type(error).__name__}: {error}")
        else:
            say(f"{name}: {time.monotonic() - start:.1f} s")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median of some rounds with its 95 % bootstrap interval, and the least."""

    median: float
    low: float
    high: float
    least: float
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    """Summary of rounds."""
    rng = random.Random(1)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return Spread(
        round(statistics.median(values), 4),
        round(medians[int(0.025 * RESAMPLES)], 4),
        round(medians[int(0.975 * RESAMPLES)], 4),
        round(min(values), 4),
        len(values),
    )


def summary(values: Sequence[float]) -> dict[str, Any]:
    """`spread` for JSON."""
    return asdict(spread(values))


def signed_rank(before: Sequence[float], after: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on paired rounds (normal approximation, ties corrected)."""
    differences = [b - a for a, b in zip(before, after, strict=True) if a != b]
    n = len(differences)
    if n < 5:
        return 1.0
    order = sorted(range(n), key=lambda i: abs(differences[i]))
    ranks = {i: float(r) for r, i in enumerate(order, 1)}
    positive = sum(ranks[i] for i in range(n) if differences[i] > 0)
    mean = n * (n + 1) / 4
    deviation = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    return round(math.erfc(abs(positive - mean) / deviation / math.sqrt(2)), 5)


def percentile(values: Sequence[float], p: float) -> float:
    """The value that ``p`` percent do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(p / 100 * len(ordered)) - 1)]


def host() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo").read_text(errors="replace")
    model = re.search(r"model name\s*: (.*)", info)
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / n).read_text().strip() for n in ("level", "type", "size"))
        except OSError:
            continue
        caches[f"L{level} {kind.lower()}"] = size
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "caches": caches,
        "memory_mb": int(memory[1]) // 1024 if memory else None,
        "virtual": "hypervisor" in info,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "clang": _manifest().get("clang"),
        "revision": _manifest().get("revision"),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "tier": tier(),
        "bpf_jit": _read("/proc/sys/net/core/bpf_jit_enable"),
        "other_agentmon": other_agentmon(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def tier() -> str:
    """The tier that this host gets, `lsm` or `react`; what is timed is that one."""
    from agentmon.errors import AgentmonError
    from agentmon.kernel.objects import choose_tier

    try:
        return choose_tier()[0].name.lower()
    except AgentmonError as error:
        return f"none: {error}"


def other_agentmon() -> int:
    """Pinned sets of agentmon's programs on this host: each one slows what is called pristine here."""
    return len(list(Path("/sys/fs/bpf").glob("agentmon*/*/links")))


def _manifest() -> dict[str, Any]:
    try:
        text = (HERE.parent / "agentmon/kernel/objects/manifest.json").read_text()
    except OSError:
        return {}
    found: dict[str, Any] = json.loads(text)
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def say(message: str) -> None:
    """Progress, on standard error."""
    print(f"bench: {message}", file=sys.stderr, flush=True)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--rounds", type=int, default=0, help="interleaved rounds (default: what the figures need)")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="only this part (may be repeated)")
    return parser


def compile_c(folder: Path, name: str) -> Path:
    """Builds ``benchmarks/NAME.c``."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("no C compiler: install gcc, or run `./dev bench`, which does")
    target = folder / name
    subprocess.run([compiler, "-O2", "-o", target, HERE / f"{name}.c"], check=True)
    return target


def finish(report: Report, facts: dict[str, Any], *, as_json: bool) -> int:
    """Prints the report. Exit status 0: measured, whether or not the goals are met; 1: a part failed."""
    facts["other_agentmon_at_end"] = other_agentmon()
    facts["load_average_at_end"] = [round(x, 2) for x in os.getloadavg()]
    if as_json:
        line = {
            "bench": report.bench,
            "host": facts,
            "results": report.results,
            "goals": [g.as_json() for g in report.goals],
            "missing": report.missing,
        }
        print(json.dumps(line))
        return 1 if report.missing else 0
    load = facts["load_average"][0]
    machine = f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}"
    print(f"{report.bench}: {machine}, {facts['tier']} tier, load {load}")
    if facts["other_agentmon"] or facts["other_agentmon_at_end"]:
        print("note: another agentmon is loaded on this host; what is called pristine pays for it")
    _print_tree(report.results, 0)
    print("\ngoals")
    for goal in report.goals:
        value = "not measured" if goal.value is None else f"{goal.value:,.6g} {goal.unit}"
        sign = "<=" if goal.at_most else ">="
        note = f"  ({goal.note})" if goal.note else ""
        print(f"  {'met    ' if goal.met else 'NOT MET'}  {goal.name:<52} {value:>18}  {sign} {goal.goal:,g}{note}")
    for what in report.missing:
        print(f"  failed   {what}")
    return 1 if report.missing else 0


def _print_tree(tree: dict[str, Any], depth: int) -> None:
    for name, value in tree.items():
        indent = "  " * depth
        if isinstance(value, dict) and set(value) == {"median", "low", "high", "least", "rounds"}:
            print(
                f"{indent}{name:<{44 - len(indent)}} {value['median']:>12,.6g}"
                f"  95% {value['low']:,.6g} to {value['high']:,.6g}, {value['rounds']} rounds"
            )
        elif isinstance(value, dict):
            print(f"{'' if depth else chr(10)}{indent}{name}")
            _print_tree(value, depth + 1)
        elif isinstance(value, float | int) and not isinstance(value, bool):
            print(f"{indent}{name:<{44 - len(indent)}} {value:>12,.6g}")
        else:
            print(f"{indent}{name}: {value}")
