# SPDX-License-Identifier: Apache-2.0
"""Warnings about rules that do nothing: they contradict themselves, or others decide first."""

from __future__ import annotations

from collections.abc import Iterator

from agentmon.model.operations import Operation
from agentmon.model.tables import CompiledPolicy
from agentmon.policy.automaton import TooManyStatesError, build
from agentmon.policy.bind import BoundPolicy, BoundRule
from agentmon.policy.contradictions import MOST_STATES, contradictions, neutral, objects, within
from agentmon.policy.glob import Glob
from agentmon.policy.prune import Dominance

#: Each rule is held against all earlier ones up to this many; of more, only what is plain to see is said.
MOST_RULES = 150

#: Rules that a message names.
NAMED = 3


def in_vain(bound: BoundPolicy, compiled: CompiledPolicy) -> Iterator[str]:
    """One ``file:line:column: message`` for each rule that never applies, or never decides."""
    never = contradictions(bound)
    for rule in bound.rules:
        if rule.index in never:
            yield f"{rule.rule.place}: rule `{rule.rule.id}` never applies: {never[rule.index]}"
    yield from _never_decides(bound, compiled, never)


def _never_decides(bound: BoundPolicy, compiled: CompiledPolicy, never: dict[int, str]) -> Iterator[str]:
    deciding = {entry.rule for prefix in compiled.net for entry in prefix.entries}
    deciding |= {entry.rule for number in compiled.bare for entry in compiled.lists[number]}
    deciding |= {entry.rule for _, entry in compiled.hosts}
    plainly = _plainly_covered(bound) if len(bound.rules) > MOST_RULES else None
    for rule in bound.rules:
        if rule.rule.implied or rule.index in never or rule.index in deciding:
            continue  # what is implied, nobody could drop
        if not any(o.is_path for o in rule.operations):
            first: set[int] | None = set()
        elif plainly is not None:
            first = plainly.get(rule.index)
        else:
            first = _decide_first(bound, rule.index)
            if first is not None and _decide_first(neutral(bound), rule.index) is None:
                first = None
        if first is not None:
            yield (
                f"{rule.rule.place}: rule `{rule.rule.id}` can never decide: whatever it matches,"
                f" {_named(bound, rule, first)} first; drop it, or carve a hole with `except` in the other"
            )


def _named(bound: BoundPolicy, rule: BoundRule, first: set[int]) -> str:
    """Those that decide first, and of a rule without paths those that can."""
    found = [r for r in bound.rules[: rule.index] if r.index in first or (_as_often(r, rule) and _same_kind(r, rule))]
    said = [f"`{r.rule.id}` ({r.action.word}, {r.rule.place.file}:{r.rule.place.line})" for r in found]
    if not said:
        return "a rule as severe or more decides"
    more = f" and {len(said) - NAMED} more" if len(said) > NAMED else ""
    return f"{', '.join(said[:NAMED])}{more} {'decides' if len(said) == 1 else 'decide'}"


def _same_kind(first: BoundRule, second: BoundRule) -> bool:
    """Whether an earlier rule may keep another from deciding about addresses, or where there is no object."""
    shared = [o for o in first.operations & second.operations if not o.is_path]
    if not any(o.is_net for o in shared):
        return bool(shared)
    return any(
        a.low <= b.high and b.low <= a.high and _meet(a.address, a.length_bits, b.address, b.length_bits)
        for a in first.ranges
        for b in second.ranges
    )


def _meet(a: int, a_bits: int, b: int, b_bits: int) -> bool:
    return not (a ^ b) >> (128 - min(a_bits, b_bits))


def _as_often(first: BoundRule, second: BoundRule) -> bool:
    """Whether what a rule asks of who acts, and when, is true whenever it is of another."""
    if first.exe_any not in (0, second.exe_any) or first.exe_not not in (0, second.exe_not):
        return False
    return not (first.need & ~second.need or first.need_not & ~second.need_not)


def _plainly_covered(bound: BoundPolicy) -> dict[int, set[int]]:
    """Rules whose every pattern an earlier rule has too, or lies below one of an earlier rule; by which, if known."""
    rules = [r for r in bound.rules if any(o.is_path for o in r.operations)]
    dominance = Dominance(rules)
    firsts: dict[Glob, BoundRule] = {}
    found: dict[int, set[int]] = {}
    for rule in rules:
        same = [firsts.get(glob) for glob in rule.includes]
        covers = [
            first if first and rule.operations <= first.operations else dominance.cover(rule, glob)
            for first, glob in zip(same, rule.includes, strict=True)
        ]
        if all(covers):
            found[rule.index] = {cover.index for cover in covers if cover and cover is not rule}
        if rule.for_anyone and not rule.excepts:
            for glob in rule.includes:
                firsts.setdefault(glob, rule)
    return found


def _decide_first(bound: BoundPolicy, index: int) -> set[int] | None:
    """The earlier rules that match every path that this one does (language inclusion); None: there are others."""
    found: set[int] = set()
    for operation in bound.rules[index].operations:
        if operation.is_path:
            first = _decide_first_about(bound, bound.rules[index], operation)
            if first is None:
                return None
            found |= first
    return found


def _decide_first_about(bound: BoundPolicy, rule: BoundRule, operation: Operation) -> set[int] | None:
    earlier: dict[Glob, int] = {}
    for other in bound.rules[: rule.index]:
        if operation in other.operations and _as_often(other, rule) and set(other.excepts) <= set(rule.excepts):
            for glob in other.includes:
                earlier.setdefault(glob, other.index)
    left = [glob for glob in rule.includes if glob not in earlier]
    first = {earlier[glob] for glob in rule.includes if glob in earlier}
    if not left:
        return first
    if not earlier or not within(left, earlier, operation):  # with few bits, which is quick
        return None
    others = sorted(set(earlier.values()))
    bits = dict.fromkeys(left, 0) | {glob: 1 + others.index(index) for glob, index in earlier.items()}
    try:
        masks = [mask for mask in objects(build(bits, {}, limit=MOST_STATES), operation) if mask & 1]
    except TooManyStatesError:
        return first
    return first | {others[_lowest(mask >> 1)] for mask in masks}


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


__all__ = ["MOST_RULES", "in_vain"]
