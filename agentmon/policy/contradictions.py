# SPDX-License-Identifier: Apache-2.0
"""Rules that apply to nothing, whatever else the policy says: they take away by `except` all that they name, or ask for
what is never true at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from agentmon.model.conditions import During, Hours, Marked, Over, Parent
from agentmon.model.operations import Operation
from agentmon.policy.automaton import Automaton, TooManyStatesError, build
from agentmon.policy.bind import BoundPolicy, BoundRule, Range, bind_policy, uid_of
from agentmon.policy.glob import ABSTRACT, SLASH, Glob
from agentmon.policy.network import MAPPED
from agentmon.policy.rules import Variables
from agentmon.policy.worlds import meanings, words, worlds

#: Automata of advice stop at this size: it must be quick.
MOST_STATES: Final = 5_000

_WEEK_MINUTES: Final = 7 * 24 * 60
_NEUTRAL: Final = Variables.of(workspace="/{workspace}", home="/{home}", tmp="/{tmp}", user="{user}")
_SOMEBODY: Final = 0xFFFF_FFF0  # no user has it


def contradictions(bound: BoundPolicy) -> dict[int, str]:
    """Rules that never apply, by their index: why, and what helps."""
    found = _found(bound, range(len(bound.rules)))
    if not found:
        return found
    sure = _found(neutral(bound), found)
    return {index: why for index, why in found.items() if index in sure}


def neutral(bound: BoundPolicy) -> BoundPolicy:
    """The policy for nobody: what only seems so because somebody's workspace is below some directory is no advice."""
    found = bind_policy(bound.policy, _NEUTRAL, uid_of=lambda name: uid_of(name) if name != "{user}" else _SOMEBODY)
    return found.observed or found


def within(some: Sequence[Glob], others: Collection[Glob], operation: Operation) -> bool:
    """Whether each object that any of the first match, one of the others does too. False where that is hard to tell."""
    left = dict.fromkeys((glob for glob in some if glob not in others), 0)
    if not left:
        return True
    try:
        automaton = build(left | dict.fromkeys(others, 1), {}, limit=MOST_STATES)
    except TooManyStatesError:
        return False
    return 1 not in objects(automaton, operation)


def objects(automaton: Automaton, operation: Operation) -> set[int]:
    """The patterns that some object matches, together: `**/x` would match more, but nothing is so called."""
    first = (SLASH, ABSTRACT) if operation is Operation.UNIX else (SLASH,)
    seen = {_step(automaton, automaton.start, byte) for byte in first}
    left = list(seen)
    while left:
        default, others = automaton.rows[left.pop()]
        new = {default, *others.values()} - seen
        seen |= new
        left += new
    return {automaton.accepts[state] for state in seen}


def _step(automaton: Automaton, state: int, byte: int) -> int:
    default, others = automaton.rows[state]
    return others.get(automaton.classes[byte], default)


def _found(bound: BoundPolicy, indices: Iterable[int]) -> dict[int, str]:
    return {i: why for i in indices if not bound.rules[i].rule.implied and (why := _why(bound, bound.rules[i]))}


def _why(bound: BoundPolicy, rule: BoundRule) -> str:
    narrow = "narrow the `except`, or drop the rule"
    if rule.excepts and all(within(rule.includes, rule.excepts, o) for o in rule.operations):
        return f"its `except` covers all of its paths; {narrow}"
    if rule.except_ranges and not rule.hosts and all(_covered(r, rule.except_ranges) for r in rule.ranges):
        return f"its `except` covers all of its addresses; {narrow}"
    programs, others = _programs(bound, rule.exe_any), _programs(bound, rule.exe_not)
    if programs and others and within(programs, others, Operation.EXEC):
        return f"its `except` covers all programs of its `exe`; {narrow}"
    return _conditions(bound, rule)


def _programs(bound: BoundPolicy, bit: int) -> tuple[Glob, ...]:
    return bound.exe_sets[bit.bit_length() - 1] if bit else ()


def _conditions(bound: BoundPolicy, rule: BoundRule) -> str:
    asked = [c for i, c in enumerate(bound.conditions) if rule.need >> i & 1]
    for i, c in enumerate(bound.conditions):
        if not rule.need_not >> i & 1:
            continue
        if isinstance(c, During):
            times = next((a.hours for a in asked if isinstance(a, During)), None)
            if _hours_within(times, c.hours):
                return "its `except` has all hours at which it would apply; take some out, or drop the rule"
        if isinstance(c, Parent):
            parents = (bound.exe_sets[a.programs] for a in asked if isinstance(a, Parent))
            if any(within(programs, bound.exe_sets[c.programs], Operation.EXEC) for programs in parents):
                return "its `except` covers all programs of its `parent`; narrow the `except`, or drop the rule"
    need = meanings(bound, rule.need)
    holes = [meanings(bound, 1 << bit) for bit in _bits(rule.need_not) if _settled(bound, bit)]
    everything, complete = worlds(need.union(*holes))
    if not complete:
        return ""
    possible = [world for world in everything if need <= world]
    if not possible:
        return f"{words(need)} are never true at once; ask for less, or write several rules"
    if any(not world & frozenset().union(*holes) for world in possible):
        return ""
    one = next((hole for hole in holes if all(hole <= world for world in possible)), None)
    hole = words(one if one is not None else frozenset().union(*holes))
    when = f"whenever what it asks for ({words(need)}) is; take one of them out" if need else "always; take it out"
    return f"its `except` ({hole}) is true {when}, or drop the rule"


def _settled(bound: BoundPolicy, bit: int) -> bool:
    """Whether `worlds` knows all ways of a condition: no use of a rate, no marks that one rule sets at one moment."""
    condition = bound.conditions[bit]
    if isinstance(condition, Marked) and condition.since:
        return not any({condition.mark, condition.since} <= set(rule.rule.marks) for rule in bound.rules)
    return not isinstance(condition, Over)


def _bits(mask: int) -> Iterator[int]:
    return (i for i in range(mask.bit_length()) if mask >> i & 1)


def _hours_within(some: Sequence[Hours] | None, others: Sequence[Hours]) -> bool:
    """Whether it is always one of the others' hours when it is one of the first (``None``: at any time)."""
    for zone in {hours.zone for hours in others}:
        there = _minutes(hours for hours in others if hours.zone == zone)
        if len(there) == _WEEK_MINUTES:
            return True
    if some is None or {hours.zone for hours in some} - {others[0].zone}:
        return False
    return _minutes(some) <= _minutes(hours for hours in others if hours.zone == others[0].zone)


def _minutes(hours: Iterable[Hours]) -> set[int]:
    """Minutes of the week by the clock on the wall."""
    found: set[int] = set()
    for each in hours:
        length = each.end - each.start if each.start < each.end else each.end - each.start + 24 * 60
        for day in each.days:
            start = day * 24 * 60 + each.start
            found.update(minute % _WEEK_MINUTES for minute in range(start, start + length))
    return found


def _covered(some: Range, others: Sequence[Range]) -> bool:
    """Whether every address and port of a range is in one of the others."""
    if not some.family:
        mapped = Range(4, MAPPED, 96, some.low, some.high)
        four = mapped if some.length_bits <= 96 else some
        return all(
            _covered(Range(f, r.address, r.length_bits, r.low, r.high), others) for f, r in ((4, four), (6, some))
        )
    near = [r for r in others if r.family in (0, some.family) and r.low <= some.high and some.low <= r.high]
    edges = {edge for r in near for edge in (r.low, r.high + 1) if some.low < edge <= some.high}
    starts = sorted({some.low, *edges})
    ends = [*(start - 1 for start in starts[1:]), some.high]
    return all(
        _prefix_covered(some.address, some.length_bits, [r for r in near if r.low <= low and high <= r.high])
        for low, high in zip(starts, ends, strict=True)
    )


def _prefix_covered(address: int, length: int, others: Sequence[Range]) -> bool:
    if any(r.length_bits <= length and not (r.address ^ address) >> (128 - r.length_bits) for r in others):
        return True
    inside = [r for r in others if r.length_bits > length and not (r.address ^ address) >> (128 - length)]
    if not inside:
        return False
    half = 1 << (127 - length)
    return _prefix_covered(address, length + 1, inside) and _prefix_covered(address | half, length + 1, inside)
