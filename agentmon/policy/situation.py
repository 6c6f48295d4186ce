# SPDX-License-Identifier: Apache-2.0
"""Who acts, and under which circumstances: what conditions are judged by outside of the kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agentmon.model.conditions import Arguments, AtRisk, Condition, During, Marked, Over, Parent, Risk, Users
from agentmon.policy import hours
from agentmon.policy.arguments import match
from agentmon.policy.glob import Glob


@dataclass(frozen=True, slots=True)
class Situation:
    """The programs of a process's ancestors in its session; the user that it acts as (-1: nobody that a rule names)."""

    parents: tuple[bytes, ...] = ()
    uid: int = -1
    risk: Risk = Risk.NORMAL
    time_s: float | None = None  # since 1970; None: nobody knows
    marks: tuple[str, ...] = ()  # in the order in which they were set last
    over: tuple[str, ...] = ()  # rules whose rate is used up
    arguments: tuple[bytes, ...] = ()  # of the program that starts, without its own name


#: Without ancestors, as no user that rules name.
NOBODY: Final = Situation()


def facts_in(
    conditions: Sequence[Condition],
    situation: Situation,
    exe_tags: Callable[[bytes], int],
    argument_sets: Sequence[Sequence[Glob]] = (),
) -> int:
    """The conditions that hold, a bit each. ``exe_tags``: the sets of programs that one is in."""
    tags = 0
    for program in situation.parents:
        tags |= exe_tags(program)
    told = {i for i, globs in enumerate(argument_sets) if match(globs, situation.arguments)}
    return sum(
        1 << i
        for i, condition in enumerate(conditions)
        if (condition.pattern in told if isinstance(condition, Arguments) else holds(condition, situation, tags))
    )


def holds(condition: Parent | Users | AtRisk | During | Marked | Over, situation: Situation, tags: int) -> bool:
    """Whether one condition holds, but for arguments. ``tags``: the sets of programs that some ancestor is in."""
    if isinstance(condition, Parent):
        return bool(tags >> condition.programs & 1)
    if isinstance(condition, Users):
        return situation.uid in condition.uids
    if isinstance(condition, AtRisk):
        return situation.risk >= condition.level
    if isinstance(condition, Over):
        return condition.rule in situation.over
    if isinstance(condition, Marked):
        since = situation.marks.index(condition.since) if condition.since in situation.marks else -1
        return condition.mark in situation.marks and situation.marks.index(condition.mark) > since
    if situation.time_s is None:
        return condition.unknown
    return during(condition, situation.time_s)


def during(condition: During, time_s: float) -> bool:
    """Whether it is one of those hours."""
    return any(hours.holds(each, time_s) for each in condition.hours)
