# SPDX-License-Identifier: Apache-2.0
"""Proving the fence: canaries under the built-in policy, and the programs that no canary can miss."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agentmon.daemon.policies import PolicyBook, Source
from agentmon.errors import AgentmonError
from agentmon.kernel import canary
from agentmon.kernel.monitor import Monitor
from agentmon.kernel.objects import RINGS
from agentmon.model.events import Event
from agentmon.model.operations import OPERATIONS, Operation, Posture, Tier, is_kept

#: How often canaries are sent out at most, when the kernel skipped programs meanwhile.
ROUNDS = 3


@dataclass(slots=True)
class Health:
    """What the canaries last saw. `skipped`: runs of programs that the kernel skipped while they were out."""

    findings: tuple[canary.Finding, ...] = ()
    postures: dict[Operation, Posture] | None = None
    error: str = ""
    duration_s: float = 0.0
    time_ns: int = 0
    leftovers: tuple[Event, ...] = ()
    tier: Tier = Tier.LSM
    skipped: int = 0

    @property
    def enforcing(self) -> bool:
        """Whether a canary of every operation that this tier claims to stop was really stopped, or else seen."""
        return self.postures is not None and all(is_kept(self.tier, o, self.posture(o)) for o in OPERATIONS)

    def posture(self, operation: Operation) -> Posture:
        """Of one operation; blind when no canary came back."""
        return (self.postures or {}).get(operation, Posture.BLIND)


def check(monitor: Monitor, book: PolicyBook, parent: Path) -> Health:
    """Send out the canaries, in a directory below `parent`. Never raises for what they meet.

    Where the kernel skips a program now and then (Linux 7, react tier: `Monitor.counters`), one that got away says
    nothing of the fence as such: they are sent out again, and what was skipped is told.
    """
    leftovers: tuple[Event, ...] = ()
    skipped = 0
    for _ in range(ROUNDS):
        before = _skipped(monitor)
        health = _send_out(monitor, book, parent)
        meanwhile = _skipped(monitor) - before
        leftovers += health.leftovers
        skipped += meanwhile
        if health.enforcing or health.error or not meanwhile:
            break
    health.leftovers, health.skipped = leftovers, skipped
    return health


def _skipped(monitor: Monitor) -> int:
    return monitor.counters().get("program_missed", 0)


def _send_out(monitor: Monitor, book: PolicyBook, parent: Path) -> Health:
    try:
        grounds = canary.Grounds.make(parent / "canaries")
        try:
            source = Source("canary.yaml", grounds.policy_text)
            prepared = book.prepare(source, workspace=str(grounds.directory), home="/root", user="root")
            found = canary.run(monitor, prepared.compiled, grounds)
        finally:
            grounds.remove()
    except (AgentmonError, OSError) as error:
        return Health(error=str(error), time_ns=time.time_ns())
    postures = found.postures
    for operation in blinded(monitor.programs()):
        postures[operation] = Posture.BLIND
    return Health(found.findings, postures, "", found.duration_s, time.time_ns(), found.leftovers, monitor.tier)


def blinded(programs: Mapping[str, str]) -> set[Operation]:
    """Operations that lack a program. Of those on rings, which are one under two names, one is enough."""
    missing = {name for name, state in programs.items() if state.startswith("missing")}
    if not missing >= RINGS:
        missing -= RINGS
    return {operation for name in missing for operation in canary.operations_of(name)}
