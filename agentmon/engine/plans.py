# SPDX-License-Identifier: Apache-2.0
"""Where a session is in its plan, as far as the kernel's records tell; and what people are told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agentmon.engine.sessions import Judge
from agentmon.model.events import StepEvent, Stepping
from agentmon.model.operations import Reason
from agentmon.model.plans import OUTSIDE, CompiledPlan, StepState

#: What people read when a plan gave the verdict.
REASONS: dict[Reason, str] = {
    Reason.PLAN_RULE: "forbids this",
    Reason.PLAN_CLOSED: "does not allow this",
    Reason.PLAN_ORDER: "may not begin yet",
    Reason.PLAN_RUNNING: "is under way",
    Reason.PLAN_DONE: "was begun before, and is not to be repeated",
    Reason.PLAN_BYTES: "has written as much as it may",
    Reason.PLAN_FILES: "has changed as many files as it may",
    Reason.PLAN_PROCS: "has as many processes as it may",
    Reason.PLAN_TIME: "has had its time",
    Reason.PLAN_MARK: "cannot be marked like this",
}

_WORDS = {
    Stepping.BEGAN: "began",
    Stepping.JOINED: "joined",
    Stepping.DONE: "done",
    Stepping.FAILED: "failed",
    Stepping.REFUSED: "refused",
}


@dataclass(frozen=True, slots=True)
class PlanView:
    """A plan, and how to judge by it. ``part``: of a step, or `OUTSIDE`."""

    compiled: CompiledPlan
    part: Callable[[int], Judge]

    def name(self, step: int) -> str:
        """Of a step; empty for none."""
        return self.compiled.steps[step].id if 0 <= step < len(self.compiled.steps) else ""

    def pauses(self, step: int) -> bool:
        """Whether what is against this step (or outside of all) stops the session."""
        if 0 <= step < len(self.compiled.steps):
            return self.compiled.steps[step].on_violation == "pause"
        return self.compiled.on_violation == "pause"


@dataclass(slots=True)
class Progress:
    """Steps that are done, and that have ended, a bit each."""

    done: int = 0
    ended: int = 0

    @classmethod
    def of(cls, states: tuple[StepState, ...]) -> Progress:
        """What the kernel says."""
        return cls(
            sum(1 << i for i, state in enumerate(states) if state.done),
            sum(1 << i for i, state in enumerate(states) if state.ended),
        )

    def stepped(self, event: StepEvent) -> str:
        """Take a record of the kernel; says what it is called."""
        if event.what in (Stepping.DONE, Stepping.FAILED):
            self.ended |= 1 << event.step
            self.done |= (event.what is Stepping.DONE) << event.step
        return _WORDS[event.what]

    def why(self, plan: PlanView, step: int, reason: Reason) -> str:
        """Why the plan forbids something, for people."""
        if step == OUTSIDE:
            said = {
                Reason.PLAN_CLOSED: "it is of no step of the plan, and outside of them it is not allowed",
                Reason.PLAN_RULE: "it is of no step of the plan, and outside of them it is forbidden",
            }
            return said.get(reason, f"the plan {REASONS[reason]}")
        text = f"step {plan.name(step)} {REASONS[reason]}"
        if reason is Reason.PLAN_ORDER and step < len(plan.compiled.steps):
            info = plan.compiled.steps[step]
            missing = info.needs & ~self.done | info.after & ~self.ended
            names = [s.id for i, s in enumerate(plan.compiled.steps) if missing >> i & 1]
            text += f": it comes after {', '.join(names)}" if names else ""
        return text


def states_of(plan: CompiledPlan, states: tuple[StepState, ...]) -> list[dict[str, object]]:
    """Each step, with where it is (see `agentmon.plan.track.State`). For JSON."""
    done = sum(1 << i for i, state in enumerate(states) if state.done)
    ended = sum(1 << i for i, state in enumerate(states) if state.ended)
    found: list[dict[str, object]] = []
    for info, state in zip(plan.steps, states, strict=False):
        if state.alive:
            word = "active"
        elif state.done:
            word = "done"
        elif state.begun:
            word = "failed"
        else:
            word = "waiting" if info.needs & ~done or info.after & ~ended else "enabled"
        found.append({"step": info.id, "state": word, "processes": state.alive, "status": state.status})
    return found
