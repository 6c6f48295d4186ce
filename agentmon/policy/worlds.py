# SPDX-License-Identifier: Apache-2.0
"""The ways in which conditions can be true together: whoever acts, each way is one world.

Two policies have numbers of their own for their conditions, so here a condition goes by what it means.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Iterable, Sequence
from itertools import combinations, islice, permutations, product
from typing import Final

from agentmon.model.conditions import Arguments, AtRisk, Condition, During, Marked, Over, Parent, Risk, Users
from agentmon.policy.automaton import TooManyStatesError, build
from agentmon.policy.bind import BoundPolicy
from agentmon.policy.glob import ANY, ANYTHING, DIRECTORIES, STAR, TAIL, Glob
from agentmon.policy.situation import Situation, holds

#: Worlds of one object that are looked at.
MOST_WORLDS: Final = 256

#: Conditions of which each may be true or not; of more, only two at once are.
MOST_FREE: Final = 8

#: Marks that may be set, in any order; of more, only so many at once are.
MOST_MARKS: Final = 3

#: What a condition means, whatever its number.
Meaning = Hashable
World = frozenset[Meaning]


def meanings(bound: BoundPolicy, mask: int) -> World:
    """What some bits of a policy's facts mean."""
    return frozenset(_meaning(bound, c) for i, c in enumerate(bound.conditions) if mask >> i & 1)


def facts_of(bound: BoundPolicy, world: Collection[Meaning]) -> int:
    """The facts of a policy in a world."""
    return sum(1 << i for i, c in enumerate(bound.conditions) if _meaning(bound, c) in world)


def worlds(asked: Collection[Meaning]) -> tuple[list[World], bool]:
    """Every way in which these can be true together, and whether these are all: there may be too many."""
    users = [m for m in asked if isinstance(m, Users)]
    uids = sorted({-1, *(uid for m in users for uid in m.uids)})
    kinds: list[Iterable[World]] = [dict.fromkeys(frozenset(m for m in users if uid in m.uids) for uid in uids)]
    risks = [m for m in asked if isinstance(m, AtRisk)]
    kinds.append(dict.fromkeys(frozenset(m for m in risks if level >= m.level) for level in Risk))
    marked = [m for m in asked if isinstance(m, Marked)]
    names = sorted({name for m in marked for name in (m.mark, m.since) if name})
    lengths = range(min(len(names), MOST_MARKS) + 1)
    orders = (Situation(marks=order) for length in lengths for order in permutations(names, length))
    kinds.append(dict.fromkeys(frozenset(m for m in marked if holds(m, order, 0)) for order in orders))
    told = [m for m in asked if isinstance(m, tuple) and m[0] == "arguments"]
    together = _together(told)
    if together is not None:
        kinds.append(together)
    known = {*users, *risks, *marked, *(told if together is not None else [])}
    free = sorted((m for m in asked if m not in known), key=repr)
    found = [frozenset().union(*parts) for parts in islice(product(_subsets(free), *kinds), MOST_WORLDS + 1)]
    return found[:MOST_WORLDS], len(found) <= MOST_WORLDS and len(free) <= MOST_FREE and len(names) <= MOST_MARKS


def _together(told: Sequence[Meaning]) -> list[World] | None:
    """Which patterns of arguments are met together by any; None: there are too many to tell."""
    bits: dict[Glob, int] = {}
    of: dict[int, set[Meaning]] = {}
    for meaning in told:
        assert isinstance(meaning, tuple)
        for glob in meaning[1]:
            of.setdefault(bits.setdefault(glob, len(bits)), set()).add(meaning)
    try:
        masks = build(bits, {}).accepts if bits else [0]
    except TooManyStatesError:
        return None
    found = (frozenset(m for bit, those in of.items() if mask >> bit & 1 for m in those) for mask in masks)
    return list(dict.fromkeys(found))


def words(world: Collection[Meaning]) -> str:
    """A world for people."""
    return ", ".join(sorted(_words(m) for m in world))


def _subsets(items: Sequence[Meaning]) -> list[World]:
    sizes = range(len(items) + 1 if len(items) <= MOST_FREE else 3)
    return [frozenset(some) for size in sizes for some in combinations(items, size)]


def _meaning(bound: BoundPolicy, condition: Condition) -> Meaning:
    if isinstance(condition, During):
        return ("time", condition.hours)  # one hour for all, whatever counts when it is not known
    if isinstance(condition, Arguments):
        return ("arguments", bound.argument_sets[condition.pattern])
    return ("parent", bound.exe_sets[condition.programs]) if isinstance(condition, Parent) else condition


def _words(meaning: Meaning) -> str:
    if isinstance(meaning, Users):
        return "user " + " or ".join(map(str, meaning.uids))
    if isinstance(meaning, AtRisk):
        return f"risk {meaning.level.word}"
    if isinstance(meaning, Marked):
        return f"mark {meaning}"
    if isinstance(meaning, Over):
        return f"the rate of `{meaning.rule}` used up"
    assert isinstance(meaning, tuple)
    if meaning[0] == "time":
        return "time " + " or ".join(map(str, meaning[1]))
    if meaning[0] == "arguments":
        return "arguments " + " or ".join(_argument_text(glob) for glob in meaning[1])
    return "parent " + " or ".join(_text(glob) for glob in meaning[1])


def _argument_text(glob: Glob) -> str:
    """The arguments about as they were written."""
    words = _text(glob).removeprefix("/").replace("/", " ").replace("\0", "/")
    return f"`{words}`" if words else "none"


def _text(glob: Glob) -> str:
    """A pattern about as it was written."""
    wild: dict[object, bytes] = {TAIL: b"/**", STAR: b"*", ANYTHING: b"**", DIRECTORIES: b"**/", ANY: b"?"}
    return os.fsdecode(
        b"".join(bytes([e]) if isinstance(e, int) and e >= 0 else wild.get(e, b"[...]") for e in glob.elements)
    )
