# SPDX-License-Identifier: Apache-2.0
"""``./dev bench rules``: what a policy of many rules costs: to compile, to decide by, in memory, to swap."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from agentmon.errors import PolicyError
from agentmon.kernel.monitor import Monitor
from agentmon.model.tables import CompiledPolicy
from agentmon.policy.compile import compile_policy
from agentmon.policy.load import load_text
from agentmon.policy.rules import Variables
from benchmarks import _cost, _kernel
from benchmarks._common import Goal, Report, arguments, finish, host, percentile, summary
from tests.support import rulesets

COUNTS = (10, 100, 1_000, 10_000)
#: Rules `**/NAME/**`, each of another name: the kind that multiplies states if it is not taken care of.
EVERYWHERE = 5_000
FILES = 256
BATCHES = 4
ROUNDS = 10
RATIO = 1.15

#: What is measured: files that no rule is about, files below a directory that a rule names, one file again and again.
CASES = ("anew, by the default", "anew, by a rule", "allowed before")


def text(count: int) -> str:
    """That many rules of all kinds, one of them for the files of the measurement; none of them blocks."""
    policy: dict[str, Any] = json.loads(rulesets.mixed(count - 1, "{workspace}", actions=rulesets.LENIENT))
    named = {"id": "named", "on": "read", "action": "allow", "paths": "{workspace}/core3/util7/named/**"}
    policy["rules"].append(named)
    return json.dumps(policy, separators=(",", ":"))


def variables(workspace: Path) -> Variables:
    """Of the measurement's policies."""
    return Variables.of(workspace=str(workspace), home="/root", user="root")


def compiled(count: int, workspace: Path) -> CompiledPolicy:
    """The tables of `text`."""
    return compile_policy(load_text(text(count), f"{count}.yaml"), variables(workspace))


# ---- compile time, each in a fresh process


def compile_time(report: Report, rounds: int = 0) -> None:
    """Text to policy, policy to tables: wall and processor time; and the tables' size."""
    found: dict[str, Any] = {}
    wall: list[float] = []
    for count in COUNTS:
        runs = [_in_fresh_process(f"mixed:{count}") for _ in range(rounds or 5)]
        wall = [run["compile_s"] for run in runs]
        found[f"{count} rules"] = {
            "read and check the text, s": summary([run["load_s"] for run in runs]),
            "compile, s": summary(wall),
            "compile, processor s": summary([run["compile_cpu_s"] for run in runs]),
            **{k: runs[0][k] for k in ("states", "table_bytes", "accept_rows", "lists", "pins", "prefixes", "peak_mb")},
        }
    everywhere = _in_fresh_process(f"everywhere:{EVERYWHERE}")
    found[f"{EVERYWHERE} rules `**/NAME/**`"] = everywhere
    report.results["compiling"] = found
    report.goals.append(
        Goal(
            "compile 10,000 mixed rules", round(statistics.median(wall), 3), "s", 5, note="wall time; text not included"
        )
    )
    done = "refused" in everywhere or everywhere["states"] <= 65_535
    report.goals.append(
        Goal(f"{EVERYWHERE:,} rules `**/NAME/**` neither explode nor hang", float(done), "", 1, at_most=False)
    )


def _in_fresh_process(what: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.rules", "--compile", what]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def compile_one(what: str) -> dict[str, Any]:
    """``KIND:COUNT``: how long it took, and how large it became."""
    kind, _, number = what.partition(":")
    source = text(int(number)) if kind == "mixed" else rulesets.everywhere(int(number))
    start = time.perf_counter()
    policy = load_text(source, "rules.yaml")
    read = time.perf_counter()
    cpu = time.process_time()
    try:
        tables = compile_policy(policy, variables(Path("/home/dev/project")))
    except PolicyError as error:
        return {"load_s": read - start, "compile_s": time.perf_counter() - read, "refused": str(error)}
    return {
        "load_s": round(read - start, 4),
        "compile_s": round(time.perf_counter() - read, 4),
        "compile_cpu_s": round(time.process_time() - cpu, 4),
        "states": tables.states,
        "table_bytes": 2 * (len(tables.transitions) + len(tables.tails)),
        "accept_rows": len(tables.accepts),
        "lists": len(tables.lists),
        "pins": len(tables.pins),
        "prefixes": len(tables.net),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


# ---- the kernel


@contextmanager
def _stage() -> Iterator[tuple[Path, Path, list[Path], list[Path]]]:
    """(workspace, the loop program, files that no rule is about, files that one is), as deep as each other."""
    with tempfile.TemporaryDirectory(prefix="agentmon-bench-", dir="/tmp") as name:
        workspace = Path(name)
        trees = []
        for tree in ("other", "named"):
            folder = workspace / "core3" / "util7" / tree
            folder.mkdir(parents=True)
            files = [folder / f"item_{n:04}.txt" for n in range(FILES)]
            for file in files:
                file.write_text("x\n")
            trees.append(files)
        yield workspace, _cost.compile_c(workspace, "loops"), *trees


@contextmanager
def _session(monitor: Monitor, policy_slot: int, pid: int) -> Iterator[None]:
    slot, _ = monitor.open_session(policy_slot)
    try:
        monitor.enroll([pid], slot)
        yield
    finally:
        monitor.close_session(slot)
        monitor.read(1_000_000)


def decisions(report: Report, rounds: int = 0) -> None:
    """Run time of the program that decides, all policies within each round; memory with all of them installed."""
    times: dict[int, dict[str, list[float]]] = {count: {case: [] for case in CASES} for count in COUNTS}
    with _stage() as (workspace, program, others, named), _kernel.loaded() as monitor:
        empty = monitor.memory_bytes()
        policies = {count: compiled(count, workspace) for count in COUNTS}
        slots = {count: monitor.install_policy(policy)[0] for count, policy in policies.items()}
        memory = monitor.memory_bytes()
        with (
            _kernel.statistics_on(),
            _kernel.worker(program, others, cpu=0) as tour,
            _kernel.worker(program, named, cpu=0) as named_tour,
        ):
            cost = _kernel.Cost(monitor.pin_directory)
            for number in range(rounds or ROUNDS):
                idle = _cost.spare_ns(cost, tour)
                # the other way round in every second round: a drift of the machine hits each alike
                for count in COUNTS if number % 2 else COUNTS[::-1]:
                    found = times[count]
                    found[CASES[0]].append(_anew(cost, tour, idle, monitor, slots[count]))
                    found[CASES[1]].append(_anew(cost, named_tour, idle, monitor, slots[count]))
                    with _session(monitor, slots[count], tour.pid):
                        tour.ask("warm", FILES)
                        found[CASES[2]].append(_cost.judged_ns(cost, tour, idle, 20_000) - idle)
            cost.close()
        report.results["open, cold caches"] = _cold(monitor, slots, program, others, rounds)
    report.results["kernel decision, ns (BPF run-time statistics)"] = {
        f"{count} rules": {case: summary(values) for case, values in found.items()} for count, found in times.items()
    }
    report.results["kernel memory, bytes"] = {"no policy": empty, "all of these policies": memory}
    report.goals.append(Goal("kernel memory with all these policies", round(memory / 2**20, 1), "MB", 64))
    for case in CASES:
        # of one round: what the machine did to both is the same
        pairs = zip(times[COUNTS[-1]][case], times[COUNTS[0]][case], strict=True)
        ratios = [many / few for many, few in pairs]
        report.results[f"ratio 10,000 / 10 rules, {case}"] = summary(ratios)
        report.goals.append(
            Goal(f"decision, 10,000 / 10 rules, {case}", round(statistics.median(ratios), 3), "", RATIO, note="warm")
        )


def _anew(cost: _kernel.Cost, tour: _kernel.Worker, idle_ns: float, monitor: Monitor, policy_slot: int) -> float:
    """Each file for the first time in a session; its record is part of it. What is idle is subtracted."""
    batches = []
    tour.ask("warm", FILES)
    for _ in range(BATCHES):
        with _session(monitor, policy_slot, tour.pid):
            batches.append(_cost.judged_ns(cost, tour, idle_ns, FILES) - idle_ns)
    return statistics.fmean(batches)


def _cold(
    monitor: Monitor, slots: dict[int, int], program: Path, files: list[Path], rounds: int
) -> dict[str, dict[str, float]]:
    """Nanoseconds of one open, each after 32 MiB of other memory."""
    calls: dict[str, list[int]] = {"not enrolled": []} | {f"{count} rules": [] for count in slots}
    with _kernel.worker(program, files, cpu=0) as tour:
        tour.ask("cold", 3, _cost.EVICT_BYTES)
        for _ in range(rounds or 3):
            calls["not enrolled"] += tour.ask("cold", 100, _cost.EVICT_BYTES)
            for count, slot in slots.items():
                with _session(monitor, slot, tour.pid):
                    calls[f"{count} rules"] += tour.ask("cold", 100, _cost.EVICT_BYTES)
    return {name: {f"p{p}": percentile(values, p) for p in (50, 90)} for name, values in calls.items()}


def swap(report: Report, rounds: int = 0) -> None:
    """A policy of 10,000 rules is written beside the one in force; then a session changes over; the old one goes."""
    install: list[float] = []
    change: list[float] = []
    settle: list[float] = []
    with _stage() as (workspace, _, _, _), _kernel.loaded() as monitor:
        policies = [compiled(COUNTS[-1] - n, workspace) for n in (0, 1)]
        live, _ = monitor.install_policy(policies[0])
        session, _ = monitor.open_session(live)
        for number in range(rounds or ROUNDS):
            start = time.perf_counter()
            fresh, _ = monitor.install_policy(policies[1 - number % 2])
            written = time.perf_counter()
            monitor.change_policy(session, fresh)
            changed = time.perf_counter()
            monitor.settle()
            settle.append((time.perf_counter() - changed) * 1e3)
            change.append((changed - written) * 1e6)
            install.append((written - start) * 1e3)
            monitor.remove_policy(live)
            live = fresh
        memory = monitor.memory_bytes()
        monitor.close_session(session)
    report.results["swap of 10,000 rules"] = {
        "write the tables, ms": summary(install),
        "the session changes over, µs": summary(change),
        "nothing is decided by the old one any more, ms": summary(settle),
        "kernel memory, bytes": memory,
    }


PARTS = {"compile": compile_time, "decisions": decisions, "swap": swap}


def main() -> int:
    """Run all parts, or those asked for by ``--only``."""
    parser = arguments("what a policy of many rules costs; parts: " + ", ".join(PARTS))
    parser.add_argument("--compile", metavar="KIND:COUNT", help="compile once, in this process: mixed, everywhere")
    args = parser.parse_args()
    if args.compile:
        print(json.dumps(compile_one(args.compile)))
        return 0
    unknown = set(args.only) - set(PARTS)
    if unknown:
        parser.error(f"no part `{unknown.pop()}`: {', '.join(PARTS)}")
    facts = host()
    report = Report("rules")
    for name, part in PARTS.items():
        if not args.only or name in args.only:
            report.attempt(name, partial(part, rounds=args.rounds))
    return finish(report, facts, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
