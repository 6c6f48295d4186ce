# SPDX-License-Identifier: Apache-2.0
"""What a plan adds to a decision in the kernel: the same opens by a process under a policy, and with a plan besides."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from agentmon.kernel.monitor import Monitor
from agentmon.model.tables import CompiledPolicy
from agentmon.plan.fence import Fenced
from agentmon.plan.load import load_text
from agentmon.policy.load import load
from benchmarks import _cost, _kernel
from benchmarks._common import Goal, Report, summary

GOAL_NS = 100
#: A step that may read and write here, of ten.
_PLAN = """
plan: bench
agent: {{rules: [{{id: any, on: exec, action: allow}}]}}
steps:
  - id: work
    starts: mark
    repeat: true
    rules:
      - {{id: read, on: read, paths: ["{folder}/**", "/usr/**", "/etc/**", "/proc/**"], action: allow}}
      - {{id: out, on: [write, create], paths: ["{folder}/**", "{{tmp}}/**"], action: allow}}
{others}
"""
_OTHER = '  - {{id: s{0}, needs: work, starts: {{exe: "**/tool{0}", argv: [run, "**"]}}, no-network: true}}\n'


def with_plan(workspace: Path) -> CompiledPolicy:
    """The shipped policy ``coding-agent``, and a plan."""
    text = _PLAN.format(folder=workspace, others="".join(_OTHER.format(i) for i in range(9)))
    return Fenced(load("coding-agent"), load_text(text, "bench.yaml"), _kernel.variables(workspace)).compile()


def decision(report: Report, rounds: int = 0) -> None:
    """Run time of the programs per open: under the policy alone, and with the plan; interleaved."""
    with _cost.stage() as (folder, program, target), _kernel.loaded() as monitor:
        policies = {"policy alone": _kernel.pack(folder), "policy and plan": with_plan(folder)}
        files = _cost.make_files(folder, _cost.FILES)
        again: dict[str, list[float]] = {name: [] for name in policies}
        anew: dict[str, list[float]] = {name: [] for name in policies}
        with (
            _kernel.statistics_on(),
            _kernel.worker(program, [target], cpu=0) as loop,
            _kernel.worker(program, files, cpu=0) as tour,
        ):
            cost = _kernel.Cost(monitor.pin_directory)
            for _ in range(rounds or _cost.ROUNDS):
                idle = _cost.spare_ns(cost, loop)
                for name, policy in policies.items():
                    with _kernel.session(monitor, policy, [loop.pid]) as slot:
                        _enter(monitor, slot, policy)
                        loop.ask("warm", 1000)
                        again[name].append(_cost.judged_ns(cost, loop, idle))
                    anew[name].append(_anew(cost, tour, idle, monitor, policy))
            cost.close()
        found = {
            "allowed before": (again["policy alone"], again["policy and plan"]),
            "judged anew and told": (anew["policy alone"], anew["policy and plan"]),
        }
        added = {name: _differences(*pair) for name, pair in found.items()}
        report.results["added to a decision in the kernel, ns (BPF run-time statistics)"] = {
            "plan": "10 steps; the process is in one that may read and write some directories",
            **{f"{name}, {which}": summary(v) for name, pair in found.items()
               for which, v in zip(("policy alone", "policy and plan"), pair, strict=True)},
            **{f"added, {name}": summary(values) for name, values in added.items()},
        }  # fmt: skip
        for name, values in added.items():
            report.goals.append(Goal(f"added by a plan, {name}", round(statistics.median(values), 1), "ns", GOAL_NS))


def _enter(monitor: Monitor, slot: int, policy: CompiledPolicy) -> None:
    if policy.plan is not None:
        for key, state in monitor.processes().items():
            if state.session == slot:
                assert monitor.mark_step(key, 0) is None


def _anew(cost: _kernel.Cost, tour: _kernel.Worker, idle_ns: float, monitor: Monitor, policy: CompiledPolicy) -> float:
    batches: list[float] = []
    tour.ask("warm", _cost.FILES)
    for _ in range(8):
        monitor.read(1_000_000)
        with _kernel.session(monitor, policy, [tour.pid]) as slot:
            _enter(monitor, slot, policy)
            batches.append(_cost.judged_ns(cost, tour, idle_ns, _cost.FILES))
    return statistics.fmean(batches)


def _differences(before: Sequence[float], after: Sequence[float]) -> list[float]:
    return [b - a for a, b in zip(before, after, strict=True)]
