# SPDX-License-Identifier: Apache-2.0
"""Where in the automaton each pattern of a policy is looked for.

A pattern that ends in ``**`` is reported when it is complete, once and for good, and then takes no state any more.
If its rule has no conditions, that is all; else a *sticky bit* remembers it until the conditions are tested.

A policy that is too large for one automaton is *split*. Of a path or directory without wildcards, only the beginning
that tells it from all others is in the automaton; the rest of it is a *tail*, compared when that beginning was met
(lane 0). Patterns that begin with a directory and have wildcards go on in an automaton of their own from there
(lane 1). No path has two beginnings of one lane, so a decision walks its path once, and parts of it at most twice more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from agentmon.model.tables import LANES, STICKY_BITS
from agentmon.policy.bind import BoundPolicy, BoundRule
from agentmon.policy.glob import TAIL, Glob
from agentmon.policy.prune import Dominance


@dataclass(slots=True)
class Use:
    """What one pattern in the automaton is for. ``sure``: rules whose path exceptions cannot apply here."""

    includes: list[BoundRule] = field(default_factory=list)
    sure: list[BoundRule] = field(default_factory=list)
    excepts: list[BoundRule] = field(default_factory=list)
    exe_tags: int = 0
    bits: int = 0
    tails: list[int] = field(default_factory=lambda: [-1] * LANES)  # numbers of Placement.tails

    @property
    def meaning(self) -> tuple[object, ...]:
        """Equal for patterns that need not be told apart."""
        rules = (tuple(r.index for r in some) for some in (self.includes, self.sure, self.excepts))
        return (*rules, self.exe_tags, self.bits, *self.tails)


@dataclass(slots=True)
class Part:
    """Patterns of one automaton: reported by its states, or when complete."""

    plain: dict[Glob, Use] = field(default_factory=dict)
    entered: dict[Glob, Use] = field(default_factory=dict)


@dataclass(slots=True)
class Tail:
    """How a walk goes on when its path begins so: compare, then run the part."""

    literal: bytes
    part: Part


@dataclass(slots=True)
class Placement:
    """All patterns of a policy, placed. ``bit_uses``: the conditional rules of each sticky bit."""

    main: Part
    tails: list[Tail]
    bits: dict[Glob, int]
    bit_uses: list[Use]


@dataclass(slots=True)
class _Item:
    """One pattern of one rule (or of one set of programs)."""

    glob: Glob
    rule: BoundRule | None
    tag: int = 0
    sure: bool = False

    @property
    def plain(self) -> bool:
        """Whether nothing but the pattern decides."""
        rule = self.rule
        return rule is None or (rule.for_anyone and not (rule.excepts and not self.sure))

    def into(self, uses: dict[Glob, Use], glob: Glob) -> None:
        use = uses.setdefault(glob, Use())
        if self.rule is None:
            use.exe_tags |= self.tag
        else:
            (use.sure if self.sure else use.includes).append(self.rule)


def place(bound: BoundPolicy, rules: Sequence[BoundRule], *, split: bool) -> Placement:
    """Place the patterns of the rules and of all sets of programs."""
    return _Placer(bound, rules, split).run()


class _Placer:
    def __init__(self, bound: BoundPolicy, rules: Sequence[BoundRule], split: bool) -> None:
        self.bound = bound
        self.rules = rules
        self.split = split
        self.main = Part()
        self.tails: list[Tail] = []
        self.bits: dict[Glob, int] = {}
        self.bit_uses: list[Use] = []

    def run(self) -> Placement:
        items = list(self._items())
        self._give_bits(items)
        literals: dict[bytes, list[_Item]] = {}
        anchored: dict[bytes, list[_Item]] = {}
        for item in items:
            rule, glob = item.rule, item.glob
            if rule and not item.sure and any(e not in self.bits for e in rule.excepts):
                # A hole that only a state can tell: the rule must then live in states too.
                item.into(self.main.plain, glob)
                for hole in rule.excepts:
                    if hole not in self.bits:
                        use = self.main.plain.setdefault(hole, Use())
                        if not use.excepts or use.excepts[-1] is not rule:
                            use.excepts.append(rule)
                continue
            beginning = glob.beginning
            if not self.split or not beginning:
                self._put(self.main, item, glob)
            elif glob.elements[len(beginning) :] in ((), (TAIL,)):
                literals.setdefault(beginning, []).append(item)
            else:
                anchored.setdefault(beginning, []).append(item)
        self._cut_literals(literals, anchored)
        self._continue(anchored)
        for glob, bit in self.bits.items():
            self.main.entered.setdefault(glob, Use()).bits |= 1 << bit
        return Placement(self.main, self.tails, self.bits, self.bit_uses)

    def _items(self) -> Iterator[_Item]:
        dominance = Dominance(self.rules)
        for rule in self.rules:
            holes = _matcher(rule.excepts)
            for glob in rule.includes:
                path = glob.exact
                if (path is not None and holes and holes.fullmatch(path)) or dominance.covers(rule, glob):
                    continue
                yield _Item(glob, rule, sure=path is not None)
        for i, globs in enumerate(self.bound.exe_sets):
            for glob in globs:
                yield _Item(glob, None, tag=1 << i)

    def _give_bits(self, items: Iterable[_Item]) -> None:
        """Sticky bits for lasting patterns that conditions wait for. Patterns with one meaning share one.

        When they do not all fit, those with ``**`` inside come first: in the state, they would multiply it.
        """
        meaning: dict[Glob, set[tuple[str, int]]] = {}
        for each in self.rules:
            if all(glob.lasting for glob in each.excepts):
                for glob in each.excepts:
                    meaning.setdefault(glob, set()).add(("except", each.index))
        for item in items:
            rule = item.rule
            if not rule or item.plain or not item.glob.lasting or (self.split and item.glob.beginning):
                continue
            if all(e.lasting for e in rule.excepts):
                meaning.setdefault(item.glob, set()).add(("include", rule.index))
        # Who uses such a pattern besides: it must not get the bit of one that the other rule does not have.
        for each in self.rules:
            for kind, globs in (("except", each.excepts), ("include", each.includes)):
                for glob in globs:
                    if glob in meaning:
                        meaning[glob].add((kind, each.index))
        groups: dict[frozenset[tuple[str, int]], list[Glob]] = {}
        for glob, uses in meaning.items():
            groups.setdefault(frozenset(uses), []).append(glob)
        ranked = sorted(groups.values(), key=lambda group: not any(g.floating for g in group))[:STICKY_BITS]
        self.bits = {glob: bit for bit, group in enumerate(ranked) for glob in group}
        self.bit_uses = [Use() for _ in ranked]

    def _put(self, part: Part, item: _Item, glob: Glob) -> None:
        """Into a part; ``glob`` is the item's, or what is left of it there."""
        if glob.elements and glob.lasting and item.plain:
            item.into(part.entered, glob)
        elif part is self.main and item.rule and glob in self.bits:
            use = self.bit_uses[self.bits[glob]]
            if item.rule not in use.includes[-1:]:
                use.includes.append(item.rule)
        else:
            item.into(part.plain, glob)

    def _tail(self, lane: int, beginning: bytes, literal: bytes) -> Part:
        use = self.main.entered.setdefault(Glob(tuple(beginning)), Use())
        use.tails[lane] = len(self.tails)
        self.tails.append(Tail(literal, Part()))
        return self.tails[-1].part

    def _cut_literals(self, literals: dict[bytes, list[_Item]], anchored: dict[bytes, list[_Item]]) -> None:
        """Lane 0. What is itself a beginning of others stays whole, or is left to lane 1."""
        texts = sorted(literals)
        for before, text, after in zip([b"", *texts], texts, [*texts[1:], b""], strict=False):
            if after.startswith(text):
                for item in literals[text]:
                    if item.plain or item.glob.exact is not None:
                        self._put(self.main, item, item.glob)
                    else:
                        anchored.setdefault(text, []).append(item)
                continue
            cut = 1 + max(_shared(text, before), _shared(text, after))
            part = self._tail(0, text[:cut], text[cut:])
            for item in literals[text]:
                self._put(part, item, Glob(item.glob.elements[len(text) :]))

    def _continue(self, anchored: dict[bytes, list[_Item]]) -> None:
        """Lane 1. A beginning takes in those that begin with it: no path then has two."""
        current: bytes | None = None
        part = self.main
        for beginning in sorted(anchored):
            if current is None or not beginning.startswith(current):
                current = beginning
                part = self._tail(1, current, b"")
            for item in anchored[beginning]:
                self._put(part, item, Glob(item.glob.elements[len(current) :]))


def _shared(one: bytes, other: bytes) -> int:
    """How many bytes two texts have in common at their beginnings."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


def _matcher(globs: Iterable[Glob]) -> re.Pattern[bytes] | None:
    texts = [b"(?:" + g.regex() + b")" for g in globs]
    return re.compile(b"|".join(texts), re.DOTALL) if texts else None
