# SPDX-License-Identifier: Apache-2.0
"""A policy with its variables filled in: what the evaluator and the compiler both start from.

Rules are numbered most severe first (equal ones as written), so the lowest number that matches is the verdict.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from agentmon.errors import PolicyError
from agentmon.model.conditions import (
    MAX_CONDITIONS,
    MAX_MARKS,
    MAX_RATES,
    Arguments,
    AtRisk,
    Condition,
    During,
    Marked,
    Over,
    Parent,
    Risk,
    Users,
)
from agentmon.model.names import HostPattern
from agentmon.model.operations import OPERATION_SLOTS, OPERATIONS, PART_OF_WRITE, Action, Operation
from agentmon.model.tables import NO_RULE, RuleInfo
from agentmon.policy.arguments import argument_globs
from agentmon.policy.glob import EVERY_ABSTRACT, EVERYTHING, MAX_TEXT_BYTES, Glob, bind
from agentmon.policy.network import ALL_PORTS, MAPPED, covers, family_of
from agentmon.policy.rules import Complaints, Network, Pattern, Policy, Requirement, Rule, Time, User, Variables

#: Distinct sets of programs that `exe` conditions may name: one bit of a process each.
MAX_EXE_SETS = 64


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses and ports of a rule. ``family`` 0 is both."""

    family: int
    address: int
    length_bits: int
    low: int
    high: int

    def holds(self, family: int, address: int, port: int) -> bool:
        """Whether an address of the folded space and a port are inside."""
        if self.family not in (0, family) or not self.low <= port <= self.high:
            return False
        return not (self.address ^ address) >> (128 - self.length_bits)

    def holds_ipv4(self, port: int) -> bool:
        """Whether every IPv4 address is inside, at this port."""
        return self.length_bits <= 96 and self.holds(4, MAPPED, port)


@dataclass(frozen=True, slots=True)
class HostRange:
    """Names and ports of a rule."""

    pattern: HostPattern
    low: int
    high: int

    def holds(self, name: str, port: int) -> bool:
        """Whether a canonical name and a port are inside."""
        return self.low <= port <= self.high and self.pattern.holds(name)


@dataclass(frozen=True, slots=True)
class BoundRule:
    """A rule as the tables know it.

    ``exe_any`` and ``exe_not`` are bits of `BoundPolicy.exe_sets`; ``need`` and ``need_not`` of
    `BoundPolicy.conditions`.
    """

    index: int
    rule: Rule
    operations: frozenset[Operation]
    action: Action
    includes: tuple[Glob, ...]
    excepts: tuple[Glob, ...]
    exe_any: int
    exe_not: int
    ranges: tuple[Range, ...]
    except_ranges: tuple[Range, ...]
    hosts: tuple[HostRange, ...] = ()
    need: int = 0
    need_not: int = 0

    @property
    def for_anyone(self) -> bool:
        """Whether nothing but the object decides."""
        return not (self.exe_any or self.exe_not or self.need or self.need_not)

    @property
    def waits_by_name(self) -> bool:
        """Whether it holds, and nothing that only the kernel knows decides when."""
        return self.action is Action.HOLD and not (self.need or self.need_not)


@dataclass(frozen=True, slots=True)
class BoundPolicy:
    """A policy for one session."""

    policy: Policy
    variables: Variables
    rules: tuple[BoundRule, ...]
    exe_sets: tuple[tuple[Glob, ...], ...]
    defaults: tuple[Action, ...]  # OPERATION_SLOTS
    severest: tuple[Action, ...]  # OPERATION_SLOTS
    #: The same policy if what is only observed were enforced; None: nothing is. Its programs have the same bits.
    observed: BoundPolicy | None = None
    #: What each bit of the facts means; those of ancestors first.
    conditions: tuple[Condition, ...] = ()
    #: The patterns that `argv` conditions name.
    argument_sets: tuple[tuple[Glob, ...], ...] = ()

    @property
    def holds(self) -> bool:
        """Whether anything may come to wait for an answer."""
        return Action.HOLD in self.defaults or any(rule.action is Action.HOLD for rule in self.rules)

    def gated(self, *operations: Operation, rule: int | None = None) -> set[bytes]:
        """Files that a rule holds by their exact names, whenever one of these is done to them; of one rule, or all.

        In the react tier only these can wait before they are opened: it has to know which they are.
        """
        return {
            path
            for r in self.rules
            if rule in (None, r.index) and r.waits_by_name and r.operations.intersection(operations)
            for glob in r.includes
            if (path := glob.exact) is not None
        }

    def infos(self) -> tuple[RuleInfo, ...]:
        """What people are told about each rule."""
        return tuple(
            RuleInfo(
                r.rule.id,
                r.rule.pack,
                r.action,
                f"{r.rule.place.file}:{r.rule.place.line}",
                r.rule.reason,
                r.rule.quiet,
            )
            for r in self.rules
        )


def globs(patterns: Iterable[Pattern], values: dict[str, bytes]) -> tuple[Glob, ...]:
    """All flat globs of some patterns, each once.

    Raises:
        PolicyError: one is longer than any path, by a variable.
    """
    found: dict[Glob, None] = {}
    for pattern in patterns:
        for template in pattern.alternatives:
            glob = bind(template, values)
            if len(glob.elements) > MAX_TEXT_BYTES:
                raise pattern.place.error(f"`{pattern.text}` is longer than any path; shorten its variable")
            found[glob] = None
    return tuple(found)


def uid_of(name: str) -> int | None:
    """The number of a user of this host; None: there is none of that name."""
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def bind_policy(policy: Policy, variables: Variables, *, uid_of: Callable[[str], int | None] = uid_of) -> BoundPolicy:
    """Fill in variables and number the rules. ``uid_of`` finds users by their names.

    Raises:
        PolicyError: too many rules, distinct sets of programs or conditions; an unknown user.
    """
    if len(policy.rules) >= NO_RULE:
        raise PolicyError(f"{policy.file}:1:1: {len(policy.rules)} rules; at most {NO_RULE - 1} fit")
    values = variables.mapping()
    sets: dict[tuple[Glob, ...], Rule] = {}

    def bit(patterns: tuple[Pattern, ...], rule: Rule) -> int:
        if not patterns:
            return 0
        wanted = tuple(sorted(globs(patterns, values), key=Glob.regex))
        sets.setdefault(wanted, rule)
        return 1 << list(sets).index(wanted)

    asked = _Conditions(variables, uid_of)
    complaints = Complaints()
    for rule in policy.rules:  # first: an ancestor's exe tag and the condition have the same number
        for patterns in (rule.parent, rule.except_parent):
            with complaints.collected():
                asked.parent(bit(patterns, rule), rule)
        for user in (*rule.users, *rule.except_users):
            with complaints.collected():
                asked.uid(user)
    bound = []
    for index, rule in enumerate(sorted(policy.rules, key=lambda r: -r.action)):
        with complaints.collected():
            bound.append(
                BoundRule(
                    index=index,
                    rule=rule,
                    operations=_meant(rule.operations),
                    action=rule.action,
                    includes=globs(rule.paths, values) or _everything(rule.operations),
                    excepts=globs(rule.except_paths, values),
                    exe_any=bit(rule.exe, rule),
                    exe_not=bit(rule.except_exe, rule),
                    ranges=_ranges(rule.networks, rule.ports) or (() if rule.hosts else _anywhere(rule.ports)),
                    except_ranges=_ranges(rule.except_networks, ()),
                    hosts=tuple(
                        HostRange(h.pattern, low, high)
                        for h in rule.hosts
                        for low, high in ([h.ports] if h.ports else rule.ports or [ALL_PORTS])
                    ),
                    need=bit(rule.parent, rule)
                    | asked.arguments(rule.argv, rule)
                    | asked.users(rule.users, rule)
                    | asked.when(rule.risk, rule.times, rule, unknown=rule.action.blocks)
                    | asked.marks(rule.requires, rule),
                    need_not=asked.over(rule)
                    | bit(rule.except_parent, rule)
                    | asked.arguments(rule.except_argv, rule)
                    | asked.users(rule.except_users, rule)
                    | asked.when(rule.except_risk, rule.except_times, rule, unknown=not rule.action.blocks)
                    | asked.marks(rule.except_requires, rule),
                )
            )
    complaints.raise_if_any()
    if len(sets) > MAX_EXE_SETS:
        last = list(sets.values())[MAX_EXE_SETS]
        raise PolicyError(
            f"{last.place}: rule `{last.id}` needs the {MAX_EXE_SETS + 1}th distinct set of programs in `exe` and"
            f" `parent`, {MAX_EXE_SETS} fit; give rules the same list of programs"
        )
    conditions = asked.all()
    _check_marks(policy, conditions)
    defaults = [Action.ALLOW] * OPERATION_SLOTS
    for operation in OPERATIONS:
        # Nothing said anywhere: closed. `policy check` warns.
        silent = policy.defaults.get(Operation.WRITE, Action.DENY) if operation in PART_OF_WRITE else Action.DENY
        defaults[operation] = policy.defaults.get(operation, silent)
    severest = _severest(bound, defaults)
    full = BoundPolicy(
        policy, variables, tuple(bound), tuple(sets), tuple(defaults), severest, None, conditions,
        tuple(asked.argument_sets),
    )  # fmt: skip
    if policy.observe:
        return _in_force(full, [r for r in bound if not r.action.blocks], [Action.ALLOW] * OPERATION_SLOTS)
    if any(rule.observe for rule in policy.rules):
        return _in_force(full, [r for r in bound if not r.rule.observe], defaults)
    return full


def marks_of(policy: Policy) -> tuple[str, ...]:
    """All marks that rules of a policy set."""
    return tuple(sorted({mark for rule in policy.rules for mark in rule.marks}))


def _check_marks(policy: Policy, conditions: Sequence[Condition]) -> None:
    marks = marks_of(policy)
    if len(marks) > MAX_MARKS:
        late = next(rule for rule in policy.rules if marks[-1] in rule.marks)
        raise PolicyError(f"{late.place}: {len(marks)} marks, {MAX_MARKS} fit; let rules share some")
    rates = [c for c in conditions if isinstance(c, Over)]
    if len(rates) > MAX_RATES:
        late = next(rule for rule in policy.rules if rule.id == rates[MAX_RATES].rule)
        raise PolicyError(f"{late.place}: {len(rates)} rules with a `rate`, {MAX_RATES} fit; let a rule cover more")
    asked = [c for c in conditions if isinstance(c, Marked)]
    if len(asked) > MAX_MARKS:
        text = str(asked[-1])
        late = next(
            r for r in policy.rules for q in (*r.requires, *r.except_requires) if str(Marked(q.mark, q.since)) == text
        )
        raise PolicyError(f"{late.place}: {len(asked)} distinct `requires`, {MAX_MARKS} fit; let rules share some")


class _Conditions:
    """Numbers the distinct conditions of a policy, and remembers which rule asked for each first."""

    def __init__(self, variables: Variables, uid_of: Callable[[str], int | None]) -> None:
        self._variables = variables
        self._uid_of = uid_of
        self._asked: dict[Condition, Rule] = {}
        self.argument_sets: list[tuple[Glob, ...]] = []

    def parent(self, exe_bit: int, rule: Rule) -> None:
        if exe_bit:
            self._bit(Parent(exe_bit.bit_length() - 1), rule)

    def arguments(self, argv: Sequence[Pattern] | None, rule: Rule) -> int:
        if argv is None:
            return 0
        wanted = argument_globs(argv, self._variables.mapping())
        if wanted not in self.argument_sets:
            self.argument_sets.append(wanted)
        return self._bit(Arguments(self.argument_sets.index(wanted)), rule)

    def users(self, users: Sequence[User], rule: Rule) -> int:
        return self._bit(Users(tuple(sorted({self.uid(user) for user in users}))), rule) if users else 0

    def when(self, risk: Risk | None, times: Sequence[Time], rule: Rule, *, unknown: bool) -> int:
        """``unknown``: what counts when nobody can tell the time: a rule that blocks then holds, another does not."""
        bits = self._bit(AtRisk(risk), rule) if risk is not None else 0
        if times:
            bits |= self._bit(During(tuple(dict.fromkeys(t.hours for t in times)), unknown), rule)
        return bits

    def over(self, rule: Rule) -> int:
        return self._bit(Over(rule.id, rule.rate.count, rule.rate.interval_s), rule) if rule.rate else 0

    def marks(self, required: Sequence[Requirement], rule: Rule) -> int:
        bits = 0
        for each in required:
            bits |= self._bit(Marked(each.mark, each.since), rule)
        return bits

    def uid(self, user: User) -> int:
        name = os.fsdecode(self._variables.user) if user.text == "{user}" else user.text
        uid = int(name) if name.isdecimal() else self._uid_of(name)
        if uid is None:
            raise PolicyError(f"{user.place}: this host has no user `{name}`; write its number, or make the account")
        return uid

    def _bit(self, condition: Condition, rule: Rule) -> int:
        self._asked.setdefault(condition, rule)
        return 1 << list(self._asked).index(condition)

    def all(self) -> tuple[Condition, ...]:
        """Raises `PolicyError` if they do not fit."""
        if len(self._asked) > MAX_CONDITIONS:
            rules = list(dict.fromkeys(list(self._asked.values())[MAX_CONDITIONS:]))
            names = ", ".join(f"`{rule.id}`" for rule in rules)
            raise PolicyError(
                f"{rules[0].place}: {len(self._asked)} distinct conditions (`argv`, `parent`, `user`, `when`,"
                f" and in `except`),"
                f" {MAX_CONDITIONS} fit; those of {names} do not: give rules the same lists"
            )
        return tuple(self._asked)


def _in_force(full: BoundPolicy, rules: list[BoundRule], defaults: list[Action]) -> BoundPolicy:
    """What is left of a policy without what is only observed."""
    kept = tuple(replace(rule, index=index) for index, rule in enumerate(rules))
    severest = _severest(kept, defaults)
    return replace(full, rules=kept, defaults=tuple(defaults), severest=severest, observed=full)


def _severest(rules: Iterable[BoundRule], defaults: list[Action]) -> tuple[Action, ...]:
    worst = list(defaults)
    for rule in rules:
        for operation in rule.operations:
            worst[operation] = max(worst[operation], rule.action)
    return tuple(worst)


def _meant(operations: tuple[Operation, ...]) -> frozenset[Operation]:
    return frozenset((*operations, *PART_OF_WRITE) if Operation.WRITE in operations else operations)


def _everything(operations: tuple[Operation, ...]) -> tuple[Glob, ...]:
    return (EVERYTHING, EVERY_ABSTRACT) if Operation.UNIX in operations else (EVERYTHING,)


def _ranges(networks: Iterable[Network], ports: tuple[tuple[int, int], ...]) -> tuple[Range, ...]:
    return tuple(
        Range(n.family, n.address, n.length_bits, low, high)
        for n in networks
        for low, high in ([n.ports] if n.ports else ports or [ALL_PORTS])
    )


def _anywhere(ports: tuple[tuple[int, int], ...]) -> tuple[Range, ...]:
    return tuple(Range(0, 0, 0, low, high) for low, high in ports or [ALL_PORTS])


__all__ = [
    "MAX_EXE_SETS",
    "BoundPolicy",
    "BoundRule",
    "Range",
    "bind_policy",
    "covers",
    "family_of",
    "globs",
    "marks_of",
    "uid_of",
]
