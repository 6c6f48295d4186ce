# SPDX-License-Identifier: Apache-2.0
"""Steps in the making, and what joins them when there are more than a plan can have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

MOST_STEPS: Final = 64
MOST_WAYS: Final = 128
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


#: Programs, and their arguments (None: whatever they are).
Way = tuple[tuple[str, ...], tuple[str, ...] | None]


@dataclass(slots=True)
class Draft:
    """One step. Patterns are texts as in a plan; ``needs``, ``after`` and ``data`` have numbers of steps before it."""

    name: str
    ways: list[Way] = field(default_factory=list)  # none: a mark
    told: list[str] = field(default_factory=list)  # where it comes from, for people
    needs: set[int] = field(default_factory=set)  # steps that must be done
    after: set[int] = field(default_factory=set)  # steps that must have ended
    data: list[tuple[int, str]] = field(default_factory=list)  # who made it, and what it is
    reads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    execs: list[str] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)  # all that may be read; none: that is left to the policy
    no_exec: bool = False
    no_network: bool = False
    files_known: bool = False  # `writes` is all that it changes
    execs_known: bool = False
    repeat: bool = False
    holes: list[str] = field(default_factory=list)

    @property
    def key(self) -> object:
        """Equal for steps that nobody could tell apart by how they start."""
        return tuple(self.ways) or self.name


@dataclass(slots=True)
class Drafts:
    """All steps, and what is done outside of them: by the shell that starts them."""

    steps: list[Draft] = field(default_factory=list)
    shells: list[str] = field(default_factory=list)  # programs that start steps
    outside_writes: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)


def fit(drafts: Drafts) -> Drafts:
    """No more steps, and ways to start them, than a plan has: alike ones become one that may be repeated."""
    steps = drafts.steps
    notes = list(drafts.holes)
    if len(steps) > MOST_STEPS or _ways(steps) > MOST_WAYS:
        steps = _joined(steps, [step.key for step in steps])
    if len(steps) > MOST_STEPS or _ways(steps) > MOST_WAYS:
        notes.append("there are more steps than a plan can have: those of one program are one, with any arguments")
        steps = _joined([_any_arguments(step) for step in steps], [step.name for step in steps])
    if len(steps) > MOST_STEPS:
        notes.append("there are still more steps than a plan can have: neighbours are one")
        per = -(-len(steps) // MOST_STEPS)
        steps = _joined(steps, [i // per for i in range(len(steps))])
        steps = [replace(s, ways=[(tuple(dict.fromkeys(e for exe, _ in s.ways for e in exe)), None)]) for s in steps]
    return Drafts(steps, drafts.shells, drafts.outside_writes, notes)


def _ways(steps: Iterable[Draft]) -> int:
    return sum(len(step.ways) for step in steps)


def _any_arguments(step: Draft) -> Draft:
    exes = dict.fromkeys(exe for exe, _ in step.ways)
    return replace(step, ways=[(exe, None) for exe in exes])


def _joined(steps: Sequence[Draft], keys: Sequence[object]) -> list[Draft]:
    """Those of one key become one, where the first of them stood. Needs still lead to what stands before."""
    number: dict[object, int] = {}
    at = [number.setdefault(key, len(number)) for key in keys]
    found: list[Draft] = []
    for step, key, target in zip(steps, keys, at, strict=True):
        needs = {at[need] for need in step.needs if at[need] < target}
        after = {at[need] for need in step.after if at[need] < target} - needs
        data = [(at[who], what) for who, what in step.data if at[who] != target]
        if number[key] == len(found):
            found.append(replace(step, needs=needs, after=after, data=data))
            continue
        one = found[target]
        for name in ("ways", "told", "reads", "writes", "hosts", "addresses", "execs", "holes"):
            setattr(one, name, list(dict.fromkeys([*getattr(one, name), *getattr(step, name)])))
        one.data = list(dict.fromkeys([*one.data, *data]))
        one.repeat = True
        for name in ("no_exec", "no_network", "files_known", "execs_known"):
            setattr(one, name, getattr(one, name) and getattr(step, name))
        # the first of them did not wait for what the later ones need
    return found


def names(steps: Iterable[Draft]) -> list[str]:
    """An id for each step: its name, numbered where several have the same."""
    given: dict[str, int] = {}
    found: list[str] = []
    taken: set[str] = set()
    for step in steps:
        plain = _NO_NAME.sub("-", step.name).strip("-.")[:48] or "step"
        plain = plain if plain[0].isalnum() else f"s{plain}"
        while True:
            given[plain] = given.get(plain, 0) + 1
            name = plain if given[plain] == 1 else f"{plain}-{given[plain]}"
            if name not in taken:
                break
        taken.add(name)
        found.append(name)
    return found
