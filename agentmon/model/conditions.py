# SPDX-License-Identifier: Apache-2.0
"""What rules ask of who acts: each distinct condition of a policy is one bit of its *facts*.

The kernel gathers the facts of a process once per hook (`facts_of` in ``bpf/actor.bpf.h``); every record carries them.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from agentmon.model.operations import Action, Operation

#: Bits of the facts, and so distinct conditions of one policy.
MAX_CONDITIONS: Final = 32

#: Marks of one policy, and conditions on them.
MAX_MARKS: Final = 16

#: Rules of one policy that have a rate (``AM_RATES``).
MAX_RATES: Final = 8

#: Spans of time that the kernel is told ahead (``AM_SPANS``).
MAX_SPANS: Final = 16

#: In the upper half of the facts: those that nobody knows. A rule that asks for them holds if it blocks.
UNSURE_SHIFT: Final = 32

#: Instead of facts: what may come (``AM_WHATEVER``).
WHATEVER: Final = (1 << MAX_CONDITIONS) - 1 << UNSURE_SHIFT


@dataclass(frozen=True, slots=True)
class Parent:
    """An ancestor runs a program of this set of programs. The set and this condition have the same number."""

    programs: int


@dataclass(frozen=True, slots=True)
class Arguments:
    """The program was started with arguments of this pattern, by its number."""

    pattern: int


@dataclass(frozen=True, slots=True)
class Users:
    """The process acts as one of these users."""

    uids: tuple[int, ...]  # sorted


class Risk(enum.IntEnum):
    """How far a session is from what is usual."""

    NORMAL = 0
    ELEVATED = 1
    HIGH = 2

    @property
    def word(self) -> str:
        """The level as written in a policy."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class AtRisk:
    """The session's risk is at least this."""

    level: Risk


@dataclass(frozen=True, slots=True)
class Hours:
    """Hours of the week by the clock on a wall. Minutes of the day; ``end`` may be before ``start``."""

    days: tuple[int, ...]  # 0 is Monday
    start: int
    end: int
    zone: str

    def __str__(self) -> str:
        days = ",".join(("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[day] for day in self.days)
        clock = "-".join(f"{minutes // 60:02}:{minutes % 60:02}" for minutes in (self.start, self.end))
        return f"{days} {clock} {self.zone}"


@dataclass(frozen=True, slots=True)
class During:
    """It is one of these hours. ``unknown``: what counts when nobody can tell any more."""

    hours: tuple[Hours, ...]
    unknown: bool


@dataclass(frozen=True, slots=True)
class Marked:
    """The session has this mark; and it was set after `since` was, if that ever was."""

    mark: str
    since: str = ""

    def __str__(self) -> str:
        return f"{self.mark} since {self.since}" if self.since else self.mark


@dataclass(frozen=True, slots=True)
class Over:
    """What a rule lets through at most is used up: so many at once, and one more each interval."""

    rule: str
    count: int
    interval_s: float


Condition = Parent | Arguments | Users | AtRisk | During | Marked | Over


def parents_of(conditions: Collection[Condition]) -> int:
    """The facts that are exe tags of the same number."""
    return sum(1 << i for i, condition in enumerate(conditions) if isinstance(condition, Parent))


def arguments_of(conditions: Collection[Condition]) -> int:
    """The facts that the arguments of a program say."""
    return sum(1 << i for i, condition in enumerate(conditions) if isinstance(condition, Arguments))


def over_of(conditions: Collection[Condition]) -> int:
    """The facts that a rate is used up."""
    return sum(1 << i for i, condition in enumerate(conditions) if isinstance(condition, Over))


def with_starter(operation: Operation, facts: int, exe_tags: int, parents: int) -> int:
    """The facts of an operation: who starts a program is its ancestor."""
    return facts | exe_tags & parents if operation is Operation.EXEC else facts


def facts_hold(facts: int, need: int, need_not: int, action: Action) -> bool:
    """Whether a rule of this action holds for what it asks of the facts."""
    sure = facts & ~WHATEVER
    unsure = facts >> UNSURE_SHIFT
    if unsure:
        yes, no = (sure | unsure, sure) if action >= Action.HOLD else (sure, sure | unsure)
        return not (need & ~yes or need_not & no)
    return not (need & ~facts or need_not & facts)
