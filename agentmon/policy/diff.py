# SPDX-License-Identifier: Apache-2.0
"""What changes from one policy to another: in its text, in its verdicts, in its verdicts on recorded sessions.

Verdicts are compared on a witness of every class of paths, of every range of addresses and ports, and of every class of
names at each of those, that either policy tells apart, for every set of programs that their ``exe`` conditions tell
apart. What is only observed is no verdict: rules and defaults are compared with it, verdicts without.
So "no difference" is not a sample: it holds for every object (`Difference` gives one example of each).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise, product

from agentmon.model.conditions import Risk, facts_hold
from agentmon.model.events import Address
from agentmon.model.names import NameTable
from agentmon.model.operations import GUARDED, OPERATIONS, PART_OF_WRITE, Action, Operation
from agentmon.model.tables import NO_RULE
from agentmon.policy.bind import BoundPolicy, BoundRule, Range
from agentmon.policy.evaluate import Evaluator, Verdict
from agentmon.policy.glob import Glob
from agentmon.policy.name_classes import examples
from agentmon.policy.network import family_of
from agentmon.policy.recorded import RecordedAction, RecordedSession, Target
from agentmon.policy.replay import Replay
from agentmon.policy.rules import Host, Network, Pattern, Requirement, Rule, Time, User
from agentmon.policy.witness import MOST_STATES, Witnesses
from agentmon.policy.worlds import World, facts_of, meanings, words, worlds

_FIELDS = (
    "on",
    "action",
    "paths",
    "exe",
    "argv",
    "parent",
    "user",
    "risk",
    "time",
    "requires",
    "rate",
    "marks",
    "cidrs",
    "hosts",
    "ports",
    "except paths",
    "except exe",
    "except argv",
    "except parent",
    "except user",
    "except risk",
    "except time",
    "except requires",
    "except cidrs",
    "reason",
    "quiet",
    "mode",
)


#: The port of an example, where any would do.
_USUAL_PORT = 443


@dataclass(frozen=True, slots=True)
class RuleChange:
    """A rule that only one policy has, or that both have with other words: (key, old words, new words)."""

    id: str
    old: Rule | None
    new: Rule | None
    fields: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Side:
    """What one policy says, and by which rule (empty: its default)."""

    action: Action
    rule: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One example of objects that the policies judge differently. ``exe``: the program that it takes, if it does.

    What is part of ``write`` is left out where it goes as ``write`` goes.
    """

    operation: Operation
    object: str
    exe: str
    old: Side
    new: Side
    when: str = ""  # the conditions that it takes


@dataclass(frozen=True, slots=True)
class Verdicts:
    """All differences, most severe first. ``complete`` is False where the policies were too large to see all."""

    differences: tuple[Difference, ...]
    complete: bool


def rule_changes(old: BoundPolicy, new: BoundPolicy) -> list[RuleChange]:
    """Rules added, removed and changed, by id."""
    before, after = ({r.rule.id: r.rule for r in policy.rules} for policy in (_written(old), _written(new)))
    found = []
    for name in sorted(before.keys() | after.keys()):
        one, two = before.get(name), after.get(name)
        if one is None or two is None:
            found.append(RuleChange(name, one, two))
            continue
        words = zip(_FIELDS, rule_words(one), rule_words(two), strict=True)
        fields = tuple((key, a, b) for key, a, b in words if a != b)
        if fields:
            found.append(RuleChange(name, one, two, fields))
    return found


def default_changes(old: BoundPolicy, new: BoundPolicy) -> list[tuple[Operation, Action, Action]]:
    """Operations whose default differs; those that are part of ``write`` only where they differ from it."""
    pairs = {o: (_written(old).defaults[o], _written(new).defaults[o]) for o in OPERATIONS}
    own = {o: p for o, p in pairs.items() if o not in PART_OF_WRITE or p != pairs[Operation.WRITE]}
    return [(o, before, after) for o, (before, after) in own.items() if before != after]


def _written(policy: BoundPolicy) -> BoundPolicy:
    """With what is only observed."""
    return policy.observed or policy


def _arguments(argv: tuple[Pattern, ...] | None) -> list[str]:
    return [] if argv is None else [p.text for p in argv] or ["(no arguments)"]


def rule_words(rule: Rule) -> tuple[str, ...]:
    """What a rule says, in the order of its keys."""
    lists = (
        _texts(rule.paths), _texts(rule.exe), _arguments(rule.argv), _texts(rule.parent), _texts(rule.users),
        _risk(rule.risk),
        _texts(rule.times), _texts(rule.requires), [rule.rate.text] if rule.rate else [], rule.marks,
        _texts(rule.networks), _texts(rule.hosts),
        [str(low) if low == high else f"{low}-{high}" for low, high in rule.ports],
        _texts(rule.except_paths), _texts(rule.except_exe), _arguments(rule.except_argv),
        _texts(rule.except_parent), _texts(rule.except_users),
        _risk(rule.except_risk), _texts(rule.except_times), _texts(rule.except_requires),
        _texts(rule.except_networks),
    )  # fmt: skip
    operations = ", ".join(o.word for o in rule.operations)
    quiet = "true" if rule.quiet else ""
    return (
        operations,
        rule.action.word,
        *(", ".join(words) for words in lists),
        rule.reason,
        quiet,
        mode_word(rule.observe),
    )


def mode_word(observe: bool) -> str:
    """The mode of a policy or rule as written."""
    return "observe" if observe else "enforce"


def _texts(items: Iterable[Pattern | Network | Host | User | Time | Requirement]) -> list[str]:
    return [item.text for item in items]


def _risk(level: Risk | None) -> list[str]:
    return [] if level is None else [level.word]


def verdicts(old: BoundPolicy, new: BoundPolicy, *, limit: int = MOST_STATES, whole: bool = False) -> Verdicts:
    """Compare two policies on every object, both bound with the same variables.

    ``whole``: with what is part of ``write``, where it goes as ``write`` goes too.
    """
    return _Comparison(old, new, limit, whole).run()


def on_session(
    old: BoundPolicy, new: BoundPolicy, session: RecordedSession
) -> list[tuple[RecordedAction, Side | None, Side | None]]:
    """The recorded actions that the policies judge differently; None: it cannot be known."""
    one, two = Replay(old), Replay(new)
    found = []
    for action in session.actions:
        before, after = one.judge(action), two.judge(action)
        if (before and before.action) != (after and after.action):
            found.append((action, _side(old, before), _side(new, after)))
    return found


def _side(policy: BoundPolicy, verdict: Verdict | None) -> Side | None:
    if verdict is None:
        return None
    return Side(verdict.action, policy.rules[verdict.rule].rule.id if verdict.rule != NO_RULE else "")


_Tags = tuple[int, int, str]  # of the old policy, of the new one; a program that carries them


_Said = tuple[int, BoundRule, int, int]  # a policy, a rule of it that has some name, and the ports
_Segment = tuple[int, int, list[list[BoundRule]]]  # from a port on, until below another: what matches, per policy


class _Comparison:
    def __init__(self, old: BoundPolicy, new: BoundPolicy, limit: int, whole: bool) -> None:
        self.policies = (old, new)
        self.limit = limit
        self.whole = whole
        self.complete = True
        self.found: dict[tuple[Operation, Side, Side], Difference] = {}
        meanings = [{_meaning(p, r) for r in p.rules} for p in self.policies]
        #: Rules that only one of them has: only where one of these matches can verdicts differ.
        self.own = [[r for r in p.rules if _meaning(p, r) not in meanings[1 - i]] for i, p in enumerate(self.policies)]

        self.own_numbers = [{r.index for r in rs} for rs in self.own]

    def run(self) -> Verdicts:
        self._programs()
        self._paths()
        self._addresses()
        for operation in GUARDED:
            self._compare(operation, [list(p.rules) for p in self.policies], None)
        order = sorted(self.found.values(), key=lambda d: (-max(d.old.action, d.new.action), d.operation, d.object))
        return Verdicts(tuple(order), self.complete)

    def _programs(self) -> None:
        globs = sorted({g for p in self.policies for s in p.exe_sets for g in s}, key=lambda g: g.regex())
        witnesses = Witnesses(globs, limit=self.limit)
        evaluators = [Evaluator(p) for p in self.policies]
        tags = {(0, 0): ""}
        for path, _ in witnesses:
            carried = (evaluators[0].exe_tags(path), evaluators[1].exe_tags(path))
            tags.setdefault(carried, os.fsdecode(path))
        self.complete &= witnesses.complete
        self.tags: list[_Tags] = [(*carried, path) for carried, path in tags.items()]

    def _paths(self) -> None:
        operations = [o for o in OPERATIONS if o.is_path]
        rules = [[r for r in p.rules if any(o.is_path for o in r.operations)] for p in self.policies]
        globs = sorted({g for rs in rules for r in rs for g in (*r.includes, *r.excepts)}, key=lambda g: g.regex())
        number = {glob: i for i, glob in enumerate(globs)}
        alive = {number[g] for rs in self.own for r in rs if any(o.is_path for o in r.operations) for g in r.includes}
        old, new = self.policies
        everywhere = any(old.defaults[o] != new.defaults[o] for o in operations)
        masks = [[(r, _numbers(r.includes, number), _numbers(r.excepts, number)) for r in rs] for rs in rules]
        witnesses = Witnesses(globs, alive=None if everywhere else alive, limit=self.limit)
        for path, matched in witnesses:
            candidates = [[r for r, ways, holes in ms if ways & matched and not holes & matched] for ms in masks]
            for operation in (Operation.UNIX,) if path.startswith(b"@") else operations:
                self._compare(operation, candidates, path)
        self.complete &= witnesses.complete

    def _addresses(self) -> None:
        operations = [o for o in OPERATIONS if o.is_net]
        rules = [[r for r in p.rules if any(o.is_net for o in r.operations)] for p in self.policies]
        ranges = [x for rs in rules for r in rs for x in (*r.ranges, *r.except_ranges)]
        cuts = {0, 0xFFFF << 32, 1 << 48}
        for x in ranges:
            cuts |= {x.address, x.address + (1 << (128 - x.length_bits))}
        ports = {end for x in ranges for end in (x.low, x.high + 1)} if any(r.hosts for rs in rules for r in rs) else ()
        # names are judged at an address that no rule names, as `explain` has it, and then at each kind of address
        kinds = {_key(cell := _segments(rules, ports, _holds_ipv4)): ("", cell)}
        for address in sorted(cuts - {1 << 128}):
            family = family_of(address)
            here = [x for x in ranges if x.holds(family, address, x.low)]
            packed = address.to_bytes(16, "big")
            cell = _segments(rules, {p for x in here for p in (x.low, x.high + 1)}, partial(_holds, family, address))
            for low, beyond, candidates in cell:
                port = _USUAL_PORT if low <= _USUAL_PORT < beyond else low
                for operation in operations:
                    self._compare(operation, candidates, (packed, port))
            kinds.setdefault(_key(cell), (f"at {str(Address(0, packed, 0)).removesuffix(':0')}", cell))
        names = _names(rules)
        if len(names) * len(kinds) > self.limit:
            self.complete = False
            kinds = dict(islice(kinds.items(), 1))
        for (at, cell), (name, said) in product(kinds.values(), names):
            self._name(name, said, at, cell)

    def _name(self, name: str, said: Sequence[_Said], at: str, cell: Sequence[_Segment]) -> None:
        """Compare a name at one kind of address."""
        lows = [low for low, _, _ in cell]
        ends = {end for _, _, low, high in said for end in (low, high + 1)}
        for low, beyond in pairwise(sorted({0, 1 << 16, *lows, *ends})):
            named = [(i, r) for i, r, first, last in said if first <= low <= last]
            if not named:
                continue  # as without the name
            around = cell[bisect_right(lows, low) - 1][2]
            both = [{r.index: r for r in rs} | {r.index: r for j, r in named if j == i} for i, rs in enumerate(around)]
            candidates = [[rs[number] for number in sorted(rs)] for rs in both]
            port = _USUAL_PORT if low <= _USUAL_PORT < beyond else low
            for operation in (Operation.CONNECT, Operation.SEND):
                if self._may_differ(operation, candidates):
                    self._compare(operation, candidates, (name, port), at)

    def _may_differ(self, operation: Operation, candidates: Sequence[Sequence[BoundRule]]) -> bool:
        old, new = self.policies
        own = any(r.index in mine for mine, rs in zip(self.own_numbers, candidates, strict=True) for r in rs)
        return own or old.defaults[operation] != new.defaults[operation]

    def _compare(
        self, operation: Operation, candidates: list[list[BoundRule]], target: Target | tuple[str, int], at: str = ""
    ) -> None:
        """Note where the verdicts differ. ``candidates``: per policy, the rules that match but for their programs.

        ``at``: what else it takes.
        """
        here = self._worlds(candidates)
        for (*carried, exe), (*facts, when) in product(self.tags, here):
            old, new = (self._judge(i, operation, candidates[i], carried[i], facts[i]) for i in (0, 1))
            if operation in PART_OF_WRITE and not self.whole:
                writing = tuple(self._judge(i, Operation.WRITE, candidates[i], carried[i], facts[i]) for i in (0, 1))
                if writing == (old, new):
                    continue
            if old.action != new.action and (operation, old, new) not in self.found:
                takes = ", ".join(filter(None, (at, when)))
                self.found[operation, old, new] = Difference(operation, _text(target), exe, old, new, takes)

    def _worlds(self, candidates: list[list[BoundRule]]) -> list[tuple[int, int, str]]:
        """The facts of each policy, in each world that some rules tell apart; what is true there."""
        asked: World = frozenset()
        for policy, rules in zip(self.policies, candidates, strict=True):
            mask = 0
            for rule in rules:
                mask |= rule.need | rule.need_not
            asked |= meanings(policy, mask) if mask else frozenset()
        if not asked:
            return [(0, 0, "")]
        found, complete = worlds(asked)
        self.complete &= complete
        old, new = self.policies
        return [(facts_of(old, world), facts_of(new, world), words(world)) for world in found]

    def _judge(self, i: int, operation: Operation, candidates: Iterable[BoundRule], tags: int, facts: int) -> Side:
        for rule in candidates:  # most severe first
            wanted = not rule.exe_any or rule.exe_any & tags
            wanted = wanted and facts_hold(facts, rule.need, rule.need_not, rule.action)
            if operation in rule.operations and wanted and not rule.exe_not & tags:
                return Side(rule.action, rule.rule.id)
        return Side(self.policies[i].defaults[operation], "")


def _text(target: Target | tuple[str, int]) -> str:
    if not isinstance(target, tuple):
        return os.fsdecode(target or b"")
    where, port = target
    return f"{where}:{port}" if isinstance(where, str) else str(Address(0, where, port))


def _meaning(policy: BoundPolicy, rule: BoundRule) -> tuple[object, ...]:
    """What a rule does, whatever it is called: two rules of the same meaning are interchangeable."""

    def programs(bits: int) -> frozenset[object]:
        return frozenset(policy.exe_sets[i] for i in range(len(policy.exe_sets)) if bits >> i & 1)

    return (
        rule.operations, rule.action, frozenset(rule.includes), frozenset(rule.excepts), programs(rule.exe_any),
        programs(rule.exe_not), frozenset(rule.ranges), frozenset(rule.except_ranges),
        frozenset(rule.hosts),
        meanings(policy, rule.need), meanings(policy, rule.need_not), rule.rule.marks,
    )  # fmt: skip


def _numbers(globs: Iterable[Glob], number: Mapping[Glob, int]) -> frozenset[int]:
    return frozenset(number[glob] for glob in globs)


def _segments(
    rules: Sequence[Sequence[BoundRule]], ends: Iterable[int], holds: Callable[[BoundRule, int], bool]
) -> list[_Segment]:
    """Which rules hold at each range of ports of one kind of address."""
    ports = sorted({0, 1 << 16, *ends})
    return [(low, beyond, [[r for r in rs if holds(r, low)] for rs in rules]) for low, beyond in pairwise(ports)]


def _key(cell: Iterable[_Segment]) -> Hashable:
    """The same for addresses that no rule tells apart."""
    rows = [(low, [[r.index for r in rs] for rs in candidates]) for low, _, candidates in cell]
    kept = [row for before, row in pairwise([(0, None), *rows]) if row[1] != before[1]]
    return tuple((low, *map(tuple, numbers or ())) for low, numbers in kept)


def _names(rules: Sequence[Sequence[BoundRule]]) -> list[tuple[str, list[_Said]]]:
    """A name of each class of which the rules say different things, and what they say."""
    found: dict[Hashable, tuple[str, list[_Said]]] = {}
    hosts = NameTable((h.pattern, (i, r, h.low, h.high)) for i, rs in enumerate(rules) for r in rs for h in r.hosts)
    for name in examples({h.pattern for rs in rules for r in rs for h in r.hosts}):
        said = [each for _, each in hosts.look_up(name)]
        found.setdefault(frozenset((i, r.index, low, high) for i, r, low, high in said), (name, said))
    return list(found.values())


def _holds_ipv4(rule: BoundRule, port: int) -> bool:
    """Whether a rule holds an IPv4 address that no rule names."""
    return any(x.holds_ipv4(port) for x in rule.ranges) and not any(x.holds_ipv4(port) for x in rule.except_ranges)


def _holds(family: int, address: int, rule: BoundRule, port: int) -> bool:
    def inside(ranges: Iterable[Range]) -> bool:
        return any(x.holds(family, address, port) for x in ranges)

    return inside(rule.ranges) and not inside(rule.except_ranges)
