# SPDX-License-Identifier: Apache-2.0
"""What a directory may carry when it moves.

``mv ~/.ssh x`` names nothing that a rule on ``~/.ssh/*`` matches, yet frees all of it. So each state that a slash leads
to knows its *fence*: what the blocking rules say of everything below. Two directories with one fence are alike to all
of them, and what moves from one to the other is as fenced as before.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from agentmon.model.operations import Action, Operation
from agentmon.model.tables import NO_RULE, STICKY_BITS, Entry, Fence
from agentmon.policy.automaton import DEAD, Automaton, Row, merge

#: What a moved directory could free (a socket is reached by its name), or plant (`create`, and `write` again).
CARRIED = (Operation.READ, Operation.WRITE, Operation.CREATE, Operation.DELETE, Operation.UNIX)

Entries = tuple[Entry, ...]


def fencing(lists: Sequence[Entries], defaults: Sequence[Action]) -> tuple[Entries, ...]:
    """Of each operation's entries in `CARRIED`: what blocks, and what allows with holes what the default blocks."""
    return tuple(
        tuple(e for e in lists[o] if _blocks(e.action) or (e.sticky_not and _blocks(defaults[o]))) for o in CARRIED
    )


def _blocks(action: Action) -> bool:
    return action >= Action.HOLD


def fences(
    rows: list[Row],
    width: int,
    slash: int,
    labels: Sequence[Hashable],
    sticks: Sequence[int],
    entered: Sequence[Hashable],
    bits: Sequence[Hashable],
) -> tuple[list[int], tuple[Fence, ...]]:
    """(per state the number of its fence, the fences). Number 0 fences nothing.

    ``labels``, ``entered`` and ``bits``: what `fencing` says of each state, of entering it, of each sticky bit.
    """
    entries = {label: _flat(label) for label in {*labels, *entered, *bits}}
    holes = 0
    ends: dict[int, list[Entry]] = {}  # bit -> what allows, until this bit is set
    for found in entries.values():
        for entry in found:
            holes |= entry.sticky_not
            if not _blocks(entry.action):
                for bit in range(STICKY_BITS):
                    if entry.sticky_not >> bit & 1:
                        ends.setdefault(bit, []).append(entry)
    telling = holes | sum(1 << bit for bit, label in enumerate(bits) if entries[label])
    numbers: dict[Hashable, int] = {}
    masks = [mask & telling for mask in sticks]
    enters = [numbers.setdefault(pair, len(numbers)) for pair in zip(masks, entered, strict=True)]
    automaton = Automaton(b"", width, [DEAD], list(rows), [0] * len(rows), enters)
    stands_for = merge(automaton, [numbers.setdefault(label, len(numbers)) for label in labels])
    own: dict[int, list[Entry]] = {}
    for state in set(stands_for):
        own[state] = [*entries[labels[state]], *entries[entered[state]]]
        for bit in range(STICKY_BITS):
            if masks[state] >> bit & 1:
                own[state] += [*(entries[bits[bit]] if bit < len(bits) else ()), *ends.get(bit, ())]
    rules, opened = _reach(automaton.rows, stands_for, own)
    chosen: dict[tuple[int, ...], int] = {}
    found_fences = [Fence()]
    column = [0] * len(rows)
    for state in dict.fromkeys(others.get(slash, default) for default, others in rows):
        # not what arriving here means: no path ends in a slash, and its sticky bits are looked at as they are
        default, others = rows[state]
        below = tuple(stands_for[others.get(cls, default)] for cls in range(width))
        if below not in chosen:
            rule = min(rules.get(target, NO_RULE) for target in below)
            # without any rule below, all are alike
            chosen[below] = len(found_fences) if rule != NO_RULE else 0
            if rule != NO_RULE:
                mask = 0
                for target in set(below):
                    mask |= opened.get(target, 0)
                found_fences.append(Fence(mask, rule))
        column[state] = chosen[below]
    return column, tuple(found_fences)


def _flat(label: Hashable) -> Entries:
    assert isinstance(label, tuple)
    return tuple(entry for entries in label for entry in entries)


def _reach(
    rows: list[Row], stands_for: list[int], own: dict[int, list[Entry]]
) -> tuple[dict[int, int], dict[int, int]]:
    """Per state: the most severe blocking rule that anything below meets; all sticky bits that open holes in such."""
    before: dict[int, set[int]] = {state: set() for state in own}
    for state in own:
        default, others = rows[state]
        for target in {default, *others.values()}:
            before[stands_for[target]].add(state)

    def above(states: set[int]) -> set[int]:
        """Those states, and all from which they can be reached."""
        seen, todo = set(states), list(states)
        while todo:
            for state in before[todo.pop()]:
                if state not in seen:
                    seen.add(state)
                    todo.append(state)
        return seen

    at_rule: dict[int, set[int]] = {}
    at_hole: dict[int, set[int]] = {}
    for state, entries in own.items():
        for entry in entries:
            at_rule.setdefault(entry.rule, set()).add(state)
            if entry.sticky_not:
                at_hole.setdefault(entry.sticky_not, set()).add(state)
    rules: dict[int, int] = {}
    left = set(own)
    for rule in sorted(at_rule):
        todo = [state for state in at_rule[rule] if state in left]
        left.difference_update(todo)
        while todo:
            state = todo.pop()
            rules[state] = rule
            fresh = before[state] & left
            left -= fresh
            todo += fresh
    opened: dict[int, int] = {}
    for mask, states in at_hole.items():
        for state in above(states):
            opened[state] = opened.get(state, 0) | mask
    return rules, opened
