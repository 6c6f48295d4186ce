# SPDX-License-Identifier: Apache-2.0
"""From a policy to the tables of ``bpf/tables.h``: automaton, lists, address prefixes, pins."""

from __future__ import annotations

import re
from array import array
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from agentmon.errors import PolicyError
from agentmon.model.operations import PATH_OPERATIONS, Operation
from agentmon.model.tables import (
    ACCEPT_NONE,
    LIST_LENGTH,
    MAX_STATES,
    STICKY_BITS,
    Accept,
    CompiledPolicy,
    Entry,
    Fence,
    Pin,
)
from agentmon.policy.automaton import DEAD, Automaton, TooManyStatesError, build, merge
from agentmon.policy.bind import BoundPolicy, BoundRule, bind_policy
from agentmon.policy.compile_net import compile_net
from agentmon.policy.fences import fences, fencing
from agentmon.policy.glob import SLASH, Glob
from agentmon.policy.rules import Policy, Variables

#: Live policies share rows and lists in the kernel (``AM_MAX_ACCEPTS``, ``AM_MAX_LISTS``): one may not take all.
MAX_ACCEPTS = 16_384
MAX_LISTS = 4_096


def compile_policy(policy: Policy | BoundPolicy, variables: Variables | None = None) -> CompiledPolicy:
    """Compile a policy for one set of variables.

    Raises:
        PolicyError: it does not fit; the message names the rules to blame and the remedy.
    """
    if isinstance(policy, Policy):
        if variables is None:
            raise TypeError("a policy needs its variables")
        policy = bind_policy(policy, variables)
    return _Compiler(policy).run()


@dataclass(slots=True)
class _Use:
    """What one glob of the automaton is for."""

    includes: list[BoundRule] = field(default_factory=list)
    excepts: list[BoundRule] = field(default_factory=list)
    exe_tags: int = 0

    @property
    def meaning(self) -> tuple[object, ...]:
        """Equal for globs that need not be told apart."""
        return tuple(r.index for r in self.includes), tuple(r.index for r in self.excepts), self.exe_tags


class _Compiler:
    def __init__(self, bound: BoundPolicy) -> None:
        self.bound = bound
        self.path_rules = [r for r in bound.rules if any(o.is_path for o in r.operations)]
        self.bits = _sticky_bits(bound, self.path_rules)
        self.sticky_uses = [_Use() for _ in range(max(self.bits.values(), default=-1) + 1)]
        self.plain_uses: dict[Glob, _Use] = {}
        self.lists: dict[tuple[Entry, ...], int] = {(): 0}
        self.accepts: list[Accept] = []
        self.rows: dict[Accept, int] = {}
        self.too_long: tuple[Operation, list[Entry]] | None = None

    def run(self) -> CompiledPolicy:
        self._place_rules()
        for use in self.sticky_uses:
            self.accepts.append(self._state_accept([use]))
        self.accepts += [Accept()] * (STICKY_BITS + 1 - len(self.accepts))
        self.rows[Accept()] = ACCEPT_NONE
        classes, stride, start, sticky_first, transitions, states, fences_found = self._automaton()
        pins = self._pins()
        net = compile_net(self.bound)
        for name, size, most in (("accept rows", self.accepts, MAX_ACCEPTS), ("rule lists", self.lists, MAX_LISTS)):
            if len(size) > most:
                raise PolicyError(
                    f"{self.bound.policy.file}:1:1: the policy needs {len(size)} {name}, {most} fit;"
                    " use fewer overlapping globs"
                )
        return CompiledPolicy(
            name=self.bound.policy.name,
            rules=self.bound.infos(),
            classes=classes,
            stride=stride,
            states=states,
            start=start,
            sticky_first=sticky_first,
            transitions=transitions,
            accepts=tuple(self.accepts),
            lists=tuple(self.lists),
            fences=fences_found,
            net=net,
            pins=pins,
            defaults=self.bound.defaults,
            severest=self.bound.severest,
        )

    def _place_rules(self) -> None:
        """Decide for each glob of each rule whether a sticky bit or a state reports it."""
        for rule in self.path_rules:
            if any(glob not in self.bits for glob in rule.excepts):
                # A hole that only a state can tell: the rule must then live in states too.
                for glob in rule.includes:
                    self._plain(glob).includes.append(rule)
            else:
                for glob in rule.includes:
                    use = self.sticky_uses[self.bits[glob]] if glob in self.bits else self._plain(glob)
                    use.includes.append(rule)
            for glob in rule.excepts:
                if glob not in self.bits:
                    self._plain(glob).excepts.append(rule)
        for i, globs in enumerate(self.bound.exe_sets):
            for glob in globs:
                use = self.sticky_uses[self.bits[glob]] if glob in self.bits else self._plain(glob)
                use.exe_tags |= 1 << i

    def _plain(self, glob: Glob) -> _Use:
        return self.plain_uses.setdefault(glob, _Use())

    def _automaton(self) -> tuple[bytes, int, int, int, array[int], int, tuple[Fence, ...]]:
        groups: dict[tuple[object, ...], int] = {}
        plain: dict[Glob, int] = {}
        uses: list[_Use] = []
        for glob, use in self.plain_uses.items():
            plain[glob] = groups.setdefault(use.meaning, len(groups))
            if len(groups) > len(uses):
                uses.append(use)
        try:
            automaton = build(plain, self.bits)
        except TooManyStatesError as error:
            globs = list(plain)
            raise self._blame([globs[p] for p in error.patterns]) from None
        by_mask: dict[int, Accept] = {}
        for mask in automaton.accepts:
            if mask not in by_mask:
                by_mask[mask] = self._state_accept([use for i, use in enumerate(uses) if mask >> i & 1] if mask else [])
        self._refuse_long_lists()
        labels = [by_mask[mask] for mask in automaton.accepts]
        # Merging compares labels often: small numbers compare faster than rows.
        numbers: dict[Accept, int] = {}
        stands_for = merge(automaton, [numbers.setdefault(label, len(numbers)) for label in labels])
        kept = sorted({*stands_for, DEAD}, key=lambda s: (automaton.sticks[s] != 0, s))
        number = dict(zip(kept, range(len(kept)), strict=True))
        renamed = [number[s] for s in stands_for]
        rows = [[renamed[t] for t in automaton.rows[state]] for state in kept]
        column, found = self._fences(automaton, rows, kept, labels)
        transitions = array("H")
        for state, row, fence in zip(kept, rows, column, strict=True):
            label, sticks = labels[state], automaton.sticks[state]
            row += [fence, self._row(Accept(sticks, label.exe_tags, label.lists) if sticks else label)]
            transitions.extend(row)
        sticky_first = sum(1 for s in kept if not automaton.sticks[s])
        start = renamed[automaton.start]
        return automaton.classes, automaton.width + 2, start, sticky_first, transitions, len(kept), found

    def _fences(
        self, automaton: Automaton, rows: list[list[int]], kept: list[int], labels: list[Accept]
    ) -> tuple[list[int], tuple[Fence, ...]]:
        entries = list(self.lists)
        known: dict[Accept, Hashable] = {}

        def fenced(label: Accept) -> Hashable:
            if label not in known:
                known[label] = fencing([entries[number] for number in label.lists], self.bound.defaults)
            return known[label]

        return fences(
            rows,
            automaton.classes[SLASH],
            [fenced(labels[state]) for state in kept],
            [automaton.sticks[state] for state in kept],
            [fenced(row) for row in self.accepts[: len(self.sticky_uses)]],
        )

    def _state_accept(self, uses: Sequence[_Use]) -> Accept:
        holes = {r.index for use in uses for r in use.excepts}
        rules = {r.index: r for use in uses for r in use.includes if r.index not in holes}
        tags = 0
        for use in uses:
            tags |= use.exe_tags
        return self._accept(rules.values(), tags)

    def _accept(self, rules: Iterable[BoundRule], tags: int, *, pinned: bool = False) -> Accept:
        per_operation: list[list[Entry]] = [[] for _ in range(PATH_OPERATIONS)]
        for rule in sorted(rules, key=lambda r: r.index):
            not_if = 0
            if not pinned:
                for glob in rule.excepts:
                    not_if |= 1 << self.bits[glob] if glob in self.bits else 0
            entry = Entry(rule.index, rule.action, 0, not_if, rule.exe_any, rule.exe_not)
            for operation in rule.operations:
                if operation.is_path:
                    per_operation[operation].append(entry)
        return Accept(0, tags, tuple(self._list(Operation(i), e) for i, e in enumerate(per_operation)))

    def _list(self, operation: Operation, entries: list[Entry]) -> int:
        kept: list[Entry] = []
        for entry in entries:
            if not any(_dominates(earlier, entry) for earlier in kept):
                kept.append(entry)
        if len(kept) > LIST_LENGTH and self.too_long is None:
            self.too_long = (operation, kept)
        return self.lists.setdefault(tuple(kept[:LIST_LENGTH]), len(self.lists))

    def _refuse_long_lists(self) -> None:
        if self.too_long is None:
            return
        operation, entries = self.too_long
        rules = [self.bound.rules[e.rule].rule for e in entries]
        names = ", ".join(f"`{r.id}`" for r in rules)
        raise PolicyError(
            f"{rules[LIST_LENGTH].place}: {len(rules)} rules with conditions apply to `{operation.word}` of the same"
            f" path, {LIST_LENGTH} fit: {names}; merge some of them, or drop `exe` or `except` from the most severe"
        )

    def _row(self, accept: Accept) -> int:
        if accept not in self.rows:
            self.rows[accept] = len(self.accepts)
            self.accepts.append(accept)
        return self.rows[accept]

    def _pins(self) -> tuple[Pin, ...]:
        """Files named exactly by a blocking rule, which no other name of theirs may escape."""
        named: dict[bytes, list[BoundRule]] = {}
        for rule in self.path_rules:
            if not rule.action.blocks:
                continue
            for glob in rule.includes:
                path = glob.exact
                if path is not None and not any(re.fullmatch(e.regex(), path, re.DOTALL) for e in rule.excepts):
                    named.setdefault(path, []).append(rule)
        pins = tuple(Pin(path, self._row(self._accept(rules, 0, pinned=True))) for path, rules in named.items())
        self._refuse_long_lists()
        return pins

    def _blame(self, globs: Sequence[Glob]) -> PolicyError:
        blamed: dict[str, BoundRule] = {}
        for glob in globs:
            use = self.plain_uses[glob]
            for rule in (*use.includes, *use.excepts):
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
            f"{rules[0].rule.place}: the globs with `**` in the middle multiply beyond what fits, above all in {names};"
            " start them with a directory, or let both the glob and its `except` end in `/**`"
        )


def _sticky_bits(bound: BoundPolicy, rules: Iterable[BoundRule]) -> dict[Glob, int]:
    """The globs that get a sticky bit. Globs that mean the same (to the same rules and sets) share one.

    When they do not all fit, those with ``**`` inside come first: in the state, they would multiply it.
    """
    meaning: dict[Glob, set[tuple[str, int]]] = {}
    for rule in rules:
        # A hole that is no bit puts the rule into states, but its other holes remain bits: they count here.
        included = rule.includes if all(glob.lasting for glob in rule.excepts) else ()
        for kind, globs in (("include", included), ("except", rule.excepts)):
            for glob in globs:
                if glob.lasting:
                    meaning.setdefault(glob, set()).add((kind, rule.index))
    for i, globs in enumerate(bound.exe_sets):
        for glob in globs:
            if glob.lasting:
                meaning.setdefault(glob, set()).add(("exe", i))
    groups: dict[frozenset[tuple[str, int]], list[Glob]] = {}
    for glob, uses in meaning.items():
        groups.setdefault(frozenset(uses), []).append(glob)
    ranked = sorted(groups.values(), key=lambda group: not any(g.floating for g in group))
    return {glob: bit for bit, group in enumerate(ranked[:STICKY_BITS]) for glob in group}


def _dominates(first: Entry, second: Entry) -> bool:
    """Whether the first, which comes earlier, holds whenever the second does."""
    if first.exe_any and (not second.exe_any or second.exe_any & ~first.exe_any):
        return False
    return not (first.exe_not & ~second.exe_not or first.sticky_not & ~second.sticky_not)
