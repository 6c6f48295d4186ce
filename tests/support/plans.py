# SPDX-License-Identifier: Apache-2.0
"""A second machine for plans, made of masks alone: as the kernel is to do it (``docs/design/0008-plans.md``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentmon.model.plans import CompiledPlan

NONE = -1


@dataclass
class Masks:
    """The state of one session under a compiled plan. Steps and ways are bits; processes are numbers."""

    plan: CompiledPlan
    done: int = 0
    ended: int = 0
    begun: int = 0
    active: int = 0
    used: int = 0  # ways
    alive: list[int] = field(default_factory=list)
    bad: int = 0  # steps whose run has failed already
    step_of: dict[int, int] = field(default_factory=dict)
    roots: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        steps = self.plan.steps
        self.alive = [0] * len(steps)
        self.once = sum(1 << i for i, step in enumerate(steps) if step.once)
        self.repeat = sum(1 << i for i, step in enumerate(steps) if step.repeat)

    @property
    def ready(self) -> int:
        steps = enumerate(self.plan.steps)
        return sum(1 << i for i, step in steps if not (step.needs & ~self.done or step.after & ~self.ended))

    def choose(self, matched: int) -> int:
        """The way that is taken, of those that a program matches; NONE: it may not start."""
        begin = self.ready & ~self.active & ~(self.begun & self.once) & (~self.done | self.repeat)
        fresh = matched & self.plan.ways_of(begin & ~self.done)
        join = matched & self.plan.ways_of(self.active) & (~self.used | self.plan.ways_of(self.repeat))
        chosen = fresh or join | matched & self.plan.ways_of(begin)
        return (chosen & -chosen).bit_length() - 1

    def full(self, step: int) -> bool:
        most = self.plan.steps[step].max_procs
        return most is not None and self.alive[step] >= most

    def exec(self, pid: int, matched: int, allowed_outside: bool) -> bool:
        """Whether it takes place."""
        if self.step_of[pid] != NONE:
            return True
        if not matched:
            return allowed_outside
        way = self.choose(matched)
        if way == NONE:
            return False
        step = self.plan.ways[way]
        if self.full(step):
            return False
        self._join(pid, step, 1 << way)
        return True

    def mark(self, pid: int, step: int) -> bool:
        info = self.plan.steps[step]
        begin = self.ready & ~self.active & ~(self.begun & self.once) & (~self.done | self.repeat)
        fits = info.mark and (begin >> step & 1 or self.active & self.repeat & 1 << step)
        if self.step_of[pid] != NONE or not fits or self.full(step):
            return False
        self._join(pid, step, 0)
        return True

    def _join(self, pid: int, step: int, way: int) -> None:
        if not self.alive[step]:
            self.active |= 1 << step
            self.begun |= 1 << step
            self.bad &= ~(1 << step)
            self.used &= ~self.plan.ways_of(1 << step)
        self.used |= way
        self.alive[step] += 1
        self.step_of[pid] = step
        self.roots.add(pid)

    def fork(self, pid: int, child: int) -> bool:
        step = self.step_of[pid]
        if step != NONE:
            if self.full(step):
                return False
            self.alive[step] += 1
        self.step_of[child] = step
        return True

    def leave(self, pid: int, status: int) -> None:
        step = self.step_of[pid]
        self.step_of[pid] = NONE
        if step == NONE:
            return
        if pid in self.roots and not self.plan.steps[step].exits >> status & 1:
            self.bad |= 1 << step
        self.roots.discard(pid)
        self.alive[step] -= 1
        if not self.alive[step]:
            self.active &= ~(1 << step)
            self.ended |= 1 << step
            self.done |= ~self.bad & 1 << step
