# SPDX-License-Identifier: Apache-2.0
"""Dominance: a pattern whose every match an earlier, at least as severe rule takes is left out of the automaton.

Only what is cheap to see: what lies below a directory that is covered (``/a/**``) or below a name that is covered
everywhere (``**/x/**``). Rules are numbered most severe first, so a lower number is the verdict either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentmon.model.operations import Operation
from agentmon.policy.bind import BoundRule
from agentmon.policy.glob import ANYTHING, DIRECTORIES, SLASH, TAIL, Element, Glob

#: Components of the longest ``**/a/b/c/**`` that is looked for inside other patterns.
LONGEST_RUN = 4


@dataclass(frozen=True, slots=True)
class _Cover:
    rule: BoundRule
    glob: Glob
    plain: bool  # without conditions

    def holds(self, rule: BoundRule, glob: Glob) -> bool:
        if self.rule is rule:
            return self.glob != glob
        return self.plain and self.rule.index < rule.index and rule.operations <= self.rule.operations


class Dominance:
    """What some rules cover."""

    def __init__(self, rules: Sequence[BoundRule]) -> None:
        self._below: dict[bytes, list[_Cover]] = {}
        self._anywhere: dict[tuple[bytes, ...], list[_Cover]] = {}
        for rule in rules:
            plain = rule.for_anyone and not rule.excepts
            for glob in rule.includes:
                beginning = glob.beginning
                rest = glob.elements[len(beginning) :]
                if rest == (TAIL,):
                    found = self._below.setdefault(beginning, [])
                elif rest[:2] == (ANYTHING, SLASH) and rest[-1] == TAIL and not beginning:
                    name = Glob(rest[2:-1]).exact
                    if not name:
                        continue
                    found = self._anywhere.setdefault(tuple(name.split(b"/")), [])
                else:
                    continue
                # of many with one meaning the first is enough, unless its operations are fewer
                if len(found) < 4:
                    found.append(_Cover(rule, glob, plain))
        self._first_names = {names[0] for names in self._anywhere}

    def covers(self, rule: BoundRule, glob: Glob) -> bool:
        """Whether the rule can do without this pattern."""
        return self.cover(rule, glob) is not None

    def cover(self, rule: BoundRule, glob: Glob) -> BoundRule | None:
        """By which rule, which may be the same: it has another pattern."""
        paths_only = glob.beginning.startswith(b"/") or Operation.UNIX not in rule.operations
        return next((cover.rule for cover in self._covers(glob, paths_only) if cover.holds(rule, glob)), None)

    def _covers(self, glob: Glob, paths_only: bool) -> Iterator[_Cover]:
        beginning = glob.beginning
        rest = glob.elements[len(beginning) :]
        if paths_only:  # `/**` covers no name of an abstract socket
            yield from self._below.get(b"", ())
        at = beginning.find(b"/", 1)
        while at > 0:
            yield from self._below.get(beginning[:at], ())
            at = beginning.find(b"/", at + 1)
        if rest in ((), (TAIL,)):
            yield from self._below.get(beginning, ())
        for names in _names(glob.elements):
            for i, name in enumerate(names):
                if name in self._first_names:
                    for j in range(i + 1, min(len(names), i + LONGEST_RUN) + 1):
                        yield from self._anywhere.get(tuple(names[i:j]), ())


def _names(elements: tuple[Element, ...]) -> Iterator[list[bytes]]:
    """Each run of components without wildcards."""
    names: list[bytes] = []
    name: bytearray | None = None  # None: behind a wildcard, or before the first slash
    for element in (*elements, SLASH):
        if element in (SLASH, TAIL):
            if name:
                names.append(bytes(name))
            name = bytearray()
        elif isinstance(element, int) and element >= 0:
            if name is not None:
                name.append(element)
        else:
            yield names
            names = []
            name = bytearray() if element == DIRECTORIES else None
    yield names
