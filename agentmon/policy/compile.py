# SPDX-License-Identifier: Apache-2.0
"""From a policy to the tables of ``bpf/tables.h``: automaton, lists, address prefixes, pins."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from agentmon.errors import PolicyError
from agentmon.model.conditions import MAX_MARKS, Arguments, Over, Parent, arguments_of
from agentmon.model.operations import GUARDED, OPERATION_SLOTS, PATH_OPERATIONS, Operation
from agentmon.model.tables import (
    ACCEPT_NONE,
    LANES,
    LIST_LENGTH,
    MAX_STATES,
    NO_RULE,
    STICKY_BITS,
    Accept,
    CompiledPolicy,
    Entry,
    Fence,
    Pin,
)
from agentmon.policy.automaton import DEAD, Automaton, Patterns, Row, TooManyStatesError, build, merge
from agentmon.policy.bind import BoundPolicy, BoundRule, bind_policy, marks_of
from agentmon.policy.compile_net import compile_net
from agentmon.policy.fences import fences, fencing
from agentmon.policy.glob import SLASH, Glob
from agentmon.policy.hosts import compile_hosts
from agentmon.policy.place import Part, Placement, Use, place
from agentmon.policy.rules import Policy, Variables

#: Live policies share rows and lists in the kernel (``AM_MAX_ACCEPTS``, ``AM_MAX_LISTS``): one may not take all.
MAX_ACCEPTS = 49_152  # and no more than a u16 names
MAX_LISTS = 4_096

#: States of an automaton in one piece; a policy that needs more is split (see `place`).
MAX_UNSPLIT = 16_384
#: With more patterns than this, one piece is not tried: it would only take time to see that it is too large.
MAX_PATTERNS_UNSPLIT = 1_024


def compile_policy(
    policy: Policy | BoundPolicy, variables: Variables | None = None, *, split: bool | None = None
) -> CompiledPolicy:
    """Compile a policy for one set of variables. ``split`` forces or forbids several automata (see `place`).

    Raises:
        PolicyError: it does not fit; the message names the rules to blame and the remedy.
    """
    if isinstance(policy, Policy):
        if variables is None:
            raise TypeError("a policy needs its variables")
        policy = bind_policy(policy, variables)
    return _Compiler(policy, split).run()


def _lineage(bound: BoundPolicy) -> tuple[int, ...]:
    def number(programs: Collection[Glob]) -> int:
        text = repr(sorted(repr(glob) for glob in programs)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") or 1

    return tuple(number(bound.exe_sets[c.programs]) if isinstance(c, Parent) else 0 for c in bound.conditions)


class _Compiler:
    def __init__(self, bound: BoundPolicy, split: bool | None) -> None:
        self.bound = bound
        self.split = split
        self.path_rules = [r for r in bound.rules if any(o.is_path for o in r.operations)]
        self.bits: dict[Glob, int] = {}
        self.lists: dict[tuple[Entry, ...], int] = {(): 0}
        self.accepts: list[Accept] = []
        self.rows: dict[Accept, int] = {}
        self.too_long: tuple[Operation, list[Entry]] | None = None

    def run(self) -> CompiledPolicy:
        placed, automaton = self._automaton()
        self.bits = placed.bits
        for use in placed.bit_uses:
            self.accepts.append(self._accept([use]))
        self.accepts += [Accept()] * (STICKY_BITS + 1 - len(self.accepts))
        self.rows[Accept()] = ACCEPT_NONE
        table = self._table(placed, automaton)
        pins = self._pins()
        net = compile_net(self.bound)
        bare = self._bare()
        self._refuse_over(len(self.lists), MAX_LISTS, "rule lists")
        return CompiledPolicy(
            name=self.bound.policy.name,
            rules=self.bound.infos(),
            classes=automaton.classes,
            stride=automaton.width + 2,
            states=table.states,
            start=table.start,
            sticky_first=table.sticky_first,
            transitions=table.transitions,
            tails=table.tails,
            accepts=tuple(self.accepts),
            lists=tuple(self.lists),
            fences=table.fences,
            net=net,
            pins=pins,
            bare=bare,
            defaults=self.bound.defaults,
            severest=self.bound.severest,
            hosts=compile_hosts(self.bound),
            conditions=self.bound.conditions,
            arguments_start=table.arguments_start,
            arguments_watched=self._watched(),
            lineage=_lineage(self.bound),
            marks=marks_of(self.bound.policy),
            effects=self._effects(),
        )

    def _effects(self) -> tuple[tuple[int, int], ...]:
        marks = marks_of(self.bound.policy)
        rates = [c.rule for c in self.bound.conditions if isinstance(c, Over)]
        found = []
        for bound in self.bound.rules:
            mask = sum(1 << marks.index(m) for m in bound.rule.marks)
            if bound.rule.rate:
                mask |= 1 << MAX_MARKS + rates.index(bound.rule.id)
            found.append((bound.index, mask))
        return tuple((index, mask) for index, mask in found if mask)

    def _automaton(self) -> tuple[_Placed, Automaton]:
        """In one piece if that is small, else split."""
        pieces = [False, True] if self.split is None else [self.split]
        if self.split is None and sum(len(r.includes) for r in self.path_rules) > MAX_PATTERNS_UNSPLIT:
            pieces = [True]
        for split in pieces:
            placed = _Placed(place(self.bound, self.path_rules, split=split), self._argument_part())
            try:
                limit = MAX_STATES if len(pieces) == 1 or split else MAX_UNSPLIT
                return placed, build(placed.main.plain, placed.main.sticky, limit, placed.others)
            except TooManyStatesError as error:
                if split is pieces[-1]:
                    raise self._blame(placed, error.patterns) from None
        raise AssertionError("one of them was the last")

    def _watched(self) -> int:
        """Facts on arguments that no rule in force asks for: they are told, for what would be if all were."""
        asked = 0
        for rule in self.bound.rules:
            asked |= rule.need | rule.need_not
        return arguments_of(self.bound.conditions) & ~asked

    def _argument_part(self) -> Part:
        """What the arguments of programs are matched with. Its exe tags are facts."""
        part = Part()
        for i, condition in enumerate(self.bound.conditions):
            if isinstance(condition, Arguments):
                for glob in self.bound.argument_sets[condition.pattern]:
                    uses = part.entered if glob.lasting else part.plain
                    uses.setdefault(glob, Use()).exe_tags |= 1 << i
        return part

    def _table(self, placed: _Placed, automaton: Automaton) -> _Table:
        """The states that are left after merging, those that are more than passed through last."""
        plain = self._by_mask(placed.plain_uses, automaton.accepts)
        sticky = self._by_mask(placed.sticky_uses, automaton.sticks, placed)
        self._refuse_long_lists()
        labels = [plain[mask] for mask in automaton.accepts]
        enters = [sticky[mask] for mask in automaton.sticks]
        numbers: dict[object, int] = {}
        # Merging compares labels often: small numbers compare faster than rows.
        automaton.sticks = [numbers.setdefault(enter, len(numbers)) for enter in enters]
        stands_for = merge(automaton, [numbers.setdefault(label, len(numbers)) for label in labels])
        kept = sorted({*stands_for, DEAD}, key=lambda s: (enters[s] != Accept(), s))
        number = dict(zip(kept, range(len(kept)), strict=True))
        renamed = [number[s] for s in stands_for]
        rows = [
            (renamed[d], {cls: renamed[t] for cls, t in others.items()})
            for d, others in (automaton.rows[s] for s in kept)
        ]
        column, found = self._fences(placed, automaton, rows, [labels[s] for s in kept], [enters[s] for s in kept])
        transitions = array("H")
        for state, (default, others), fence in zip(kept, rows, column, strict=True):
            row = array("H", [default]) * automaton.width
            for cls, target in others.items():
                row[cls] = target
            row.extend([fence, self._row(replace(labels[state], enter=self._row(enters[state])))])
            transitions.extend(row)
        tails = array("H", [0])
        for (literal, _), start in zip(placed.beginnings, automaton.starts[1:], strict=False):
            tails.extend([len(literal), renamed[start], *literal])
        return _Table(
            states=len(kept),
            start=renamed[automaton.start],
            arguments_start=renamed[automaton.starts[-1]] if placed.arguments else 0,
            sticky_first=sum(1 for s in kept if enters[s] == Accept()),
            transitions=transitions,
            tails=tails,
            fences=found,
        )

    def _fences(
        self, placed: _Placed, automaton: Automaton, rows: list[Row], labels: list[Accept], enters: list[Accept]
    ) -> tuple[list[int], tuple[Fence, ...]]:
        if placed.tails:
            return [0] * len(rows), (Fence(),)  # what a tail leads to is not seen: no directory moves
        known: dict[Accept, Hashable] = {}
        lists = list(self.lists)

        def fenced(row: Accept) -> Hashable:
            if row not in known:
                first = [() if r == NO_RULE else (Entry(r, self.bound.rules[r].action),) for r in row.rules]
                entries = [(*lists[n], *rule) for n, rule in zip(row.lists, first, strict=True)]
                known[row] = fencing(entries, self.bound.defaults)
            return known[row]

        return fences(
            rows,
            automaton.width,
            automaton.classes[SLASH],
            [fenced(row) for row in labels],
            [row.sticky for row in enters],
            [fenced(row) for row in enters],
            [fenced(row) for row in self.accepts[: len(placed.bit_uses)]],
        )

    def _by_mask(self, uses: Sequence[Use], masks: Iterable[int], placed: _Placed | None = None) -> dict[int, Accept]:
        """The row of each set of uses; of entering a state if the tails are ``placed``."""
        found: dict[int, Accept] = {}
        for mask in masks:
            if mask not in found:
                found[mask] = self._accept([uses[i] for i in _bits_of(mask)], placed)
        return found

    def _accept(self, uses: Sequence[Use], placed: _Placed | None = None) -> Accept:
        holes = {r.index for use in uses for r in use.excepts}
        sure = {r.index: r for use in uses for r in use.sure}
        rules = {r.index: r for use in uses for r in use.includes if r.index not in holes}
        tags = bits = 0
        tails = [0] * LANES
        for use in uses:
            tags |= use.exe_tags
            bits |= use.bits
            for lane, tail in enumerate(use.tails):
                if tail >= 0 and placed:
                    tails[lane] = placed.beginnings[tail][1]
        accept = self._rule_row(rules | sure, set(sure))
        return replace(accept, sticky=bits, exe_tags=tags, tails=tuple(tails))

    def _rule_row(self, rules: dict[int, BoundRule], sure: Collection[int]) -> Accept:
        """Per operation the first rule without conditions, and those with conditions before it."""
        first = [NO_RULE] * PATH_OPERATIONS
        entries: list[list[Entry]] = [[] for _ in first]
        for index in sorted(rules):
            rule = rules[index]
            not_if = 0
            if index not in sure:
                for glob in rule.excepts:
                    not_if |= 1 << self.bits[glob] if glob in self.bits else 0
            entry = Entry(index, rule.action, 0, not_if, rule.exe_any, rule.exe_not, rule.need, rule.need_not)
            free = rule.for_anyone and not not_if
            for operation in rule.operations:
                if operation.is_path and first[operation] == NO_RULE:
                    if free:
                        first[operation] = index
                    else:
                        entries[operation].append(entry)
        return Accept(lists=tuple(self._list(Operation(i), e) for i, e in enumerate(entries)), rules=tuple(first))

    def _list(self, operation: Operation, entries: list[Entry]) -> int:
        kept: list[Entry] = []
        for entry in entries:
            if not any(_dominates(earlier, entry) for earlier in kept):
                kept.append(entry)
        if len(kept) > LIST_LENGTH and self.too_long is None:
            self.too_long = (operation, kept)
        return self.lists.setdefault(tuple(kept[:LIST_LENGTH]), len(self.lists))

    def _bare(self) -> tuple[int, ...]:
        lists = [0] * OPERATION_SLOTS
        for operation in GUARDED:
            rules = [r for r in self.bound.rules if operation in r.operations]
            entries = [Entry(r.index, r.action, 0, 0, r.exe_any, r.exe_not, r.need, r.need_not) for r in rules]
            lists[operation] = self._list(operation, entries)
        self._refuse_long_lists()
        return tuple(lists)

    def _refuse_long_lists(self) -> None:
        if self.too_long is None:
            return
        operation, entries = self.too_long
        rules = [self.bound.rules[e.rule].rule for e in entries]
        names = ", ".join(f"`{r.id}`" for r in rules)
        raise PolicyError(
            f"{rules[LIST_LENGTH].place}: {len(rules)} rules with conditions apply to `{operation.word}` of the same"
            f" path, {LIST_LENGTH} fit: {names}; merge some of them, or drop conditions from the most severe"
        )

    def _row(self, accept: Accept) -> int:
        if accept not in self.rows:
            self.rows[accept] = len(self.accepts)
            self.accepts.append(accept)
            self._refuse_over(len(self.accepts), MAX_ACCEPTS, "accept rows")
        return self.rows[accept]

    def _refuse_over(self, size: int, most: int, name: str) -> None:
        if size > most:
            raise PolicyError(
                f"{self.bound.policy.file}:1:1: the policy needs more than {most} {name}; use fewer overlapping globs"
            )

    def _pins(self) -> tuple[Pin, ...]:
        """Files named exactly by a blocking rule, which no other name of theirs may escape."""
        named: dict[bytes, dict[int, BoundRule]] = {}
        for rule in self.path_rules:
            if not rule.action.blocks:
                continue
            for glob in rule.includes:
                path = glob.exact
                if path is not None and not any(re.fullmatch(e.regex(), path, re.DOTALL) for e in rule.excepts):
                    named.setdefault(path, {})[rule.index] = rule
        pins = tuple(Pin(path, self._row(self._rule_row(rules, rules))) for path, rules in named.items())
        self._refuse_long_lists()
        return pins

    def _blame(self, placed: _Placed, patterns: Sequence[int]) -> PolicyError:
        blamed: dict[str, BoundRule] = {}
        for pattern in patterns:
            glob, use = placed.order[pattern]
            if pattern >= placed.first_argument:
                asking = [r for r in self.bound.rules if (r.need | r.need_not) & use.exe_tags]
                names = ", ".join(f"`{r.rule.id}`" for r in asking[:5])
                return PolicyError(
                    f"{asking[0].rule.place}: the `argv` of {names} need more than {MAX_STATES} states; begin them with"
                    " an argument instead of `**`, or use fewer of them"
                )
            bit_rules = [r for bit in _bits_of(use.bits) for r in placed.bit_uses[bit].includes]
            for rule in (*use.includes, *use.excepts, *bit_rules):
                if glob.floating and len(blamed) < 5:
                    blamed.setdefault(rule.rule.id, rule)
        if not blamed:
            largest = max(self.path_rules, key=lambda r: sum(len(g.elements) for g in r.includes))
            return PolicyError(
                f"{largest.rule.place}: the paths of all rules need more than {MAX_STATES} states, above all rule"
                f" `{largest.rule.id}`; name directories with `/**` instead of files, or split the policy"
            )
        rules = list(blamed.values())
        names = ", ".join(f"`{r.rule.id}`" for r in rules)
        return PolicyError(
            f"{rules[0].rule.place}: the globs with `**` in the middle need more than {MAX_STATES} states, above all"
            f" in {names}; start them with a directory, let both the glob and its `except` end in `/**`,"
            " or use fewer of them"
        )


class _Placed:
    """A placement as `build` takes it: patterns of one meaning share a bit; tails have their offsets."""

    def __init__(self, placement: Placement, arguments: Part) -> None:
        self.bits = placement.bits
        self.bit_uses = placement.bit_uses
        self.plain_uses: list[Use] = []
        self.sticky_uses: list[Use] = []
        self._numbers: dict[tuple[object, ...], int] = {}
        self.order: list[tuple[Glob, Use]] = []
        self.beginnings: list[tuple[bytes, int]] = []  # literal, offset in the table of tails
        offset = 1
        for tail in placement.tails:
            self.beginnings.append((tail.literal, offset))
            offset += 2 + len(tail.literal)
        self.main = self._patterns(placement.main)
        self.tails = [self._patterns(tail.part) for tail in placement.tails]
        self.first_argument = len(self.order)
        self.arguments = [self._patterns(arguments)] if arguments.plain or arguments.entered else []

    @property
    def others(self) -> list[Patterns]:
        """What has a start of its own, as in `Automaton.starts`."""
        return [*self.tails, *self.arguments]

    def _patterns(self, part: Part) -> Patterns:
        return Patterns(self._numbered(part.plain, self.plain_uses), self._numbered(part.entered, self.sticky_uses))

    def _numbered(self, uses: dict[Glob, Use], known: list[Use]) -> dict[Glob, int]:
        found = {}
        for glob, use in uses.items():
            self.order.append((glob, use))
            key = (known is self.plain_uses, *use.meaning)
            number = self._numbers.setdefault(key, len(known))
            if number == len(known):
                known.append(use)
            found[glob] = number
        return found


@dataclass(frozen=True, slots=True)
class _Table:
    states: int
    start: int
    arguments_start: int
    sticky_first: int
    transitions: array[int]
    tails: array[int]
    fences: tuple[Fence, ...]


def _bits_of(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _dominates(first: Entry, second: Entry) -> bool:
    """Whether the first, which comes earlier, holds whenever the second does."""
    if first.exe_any and (not second.exe_any or second.exe_any & ~first.exe_any):
        return False
    if first.need & ~second.need or first.need_not & ~second.need_not:
        return False
    return not (first.exe_not & ~second.exe_not or first.sticky_not & ~second.sticky_not)
