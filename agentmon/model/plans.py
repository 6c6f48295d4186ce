# SPDX-License-Identifier: Apache-2.0
"""A compiled plan: masks and numbers, as the kernel will keep them (``docs/design/0008-plans.md``).

Step n is bit n of every mask. What the steps may do is not here: it is rules, each with the mask of its steps.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

#: One bit each of a word in the kernel.
MAX_STEPS: Final = 64
#: Ways to start, of all steps together.
MAX_WAYS: Final = 128
#: The number of no step: of what the agent does outside of all of them.
OUTSIDE: Final = 0xFF


class Violation(enum.StrEnum):
    """Why a plan forbids an action."""

    NO_STEP = "no step"  # outside of all steps, and the agent itself may not
    OUT_OF_ORDER = "out of order"  # it would begin a step whose needs are not done
    RUNNING = "running"  # … that is under way
    DONE = "done"  # … that has been, and is not to be repeated
    NOT_ALLOWED = "not allowed"  # a rule or constraint of the step
    TOO_MUCH = "too much"  # bytes
    TOO_MANY_FILES = "too many files"
    TOO_MANY_PROCESSES = "too many processes"
    OVERTIME = "overtime"
    NOT_MARKED = "not marked"  # a mark that does not fit


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One step. ``exits``: a bit for each status that counts as done, 256 of them. Limits: None is none."""

    id: str
    source: str  # file:line
    needs: int  # steps that must be done
    after: int  # steps that must have ended
    once: bool
    repeat: bool
    exits: int
    on_violation: str
    mark: bool  # whether a mark may begin it
    max_write_bytes: int | None = None
    max_files: int | None = None
    max_procs: int | None = None
    timeout_ns: int | None = None


@dataclass(frozen=True, slots=True)
class CompiledPlan:
    """A plan. ``ways``: the step of each way to start by a program; ``closed``: by operation, the steps in which it is
    forbidden when no rule of theirs matches (bit `MAX_STEPS`: outside of all steps).
    """

    name: str
    steps: tuple[StepInfo, ...]
    ways: tuple[int, ...]
    closed: tuple[int, ...]  # OPERATION_SLOTS
    on_violation: str = "deny"  # outside of all steps
    asks: int = (1 << MAX_STEPS + 1) - 1  # steps that may ask for names of hosts (bit `MAX_STEPS`: outside of all)

    def ways_of(self, steps: int) -> int:
        """The ways that start any of some steps."""
        return sum(1 << way for way, step in enumerate(self.ways) if steps >> step & 1)


@dataclass(frozen=True, slots=True)
class StepState:
    """Where a step of a session is, as the kernel has it. ``alive``: its processes; the last four are of its runs."""

    done: bool
    ended: bool
    begun: bool
    alive: int
    status: int  # of the last run, the first that does not count as done; else 0
    began_ns: int  # boot time; 0: no run is under way
    written: int  # bytes
    files: int
