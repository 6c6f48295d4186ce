# SPDX-License-Identifier: Apache-2.0
"""A policy with its variables filled in: what the evaluator and the compiler both start from.

Rules are numbered most severe first (equal ones as written), so the lowest number that matches is the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentmon.errors import PolicyError
from agentmon.model.operations import OPERATION_SLOTS, OPERATIONS, PART_OF_WRITE, Action, Operation
from agentmon.model.tables import NO_RULE, RuleInfo
from agentmon.policy.glob import EVERYTHING, MAX_TEXT_BYTES, Glob, bind
from agentmon.policy.network import ALL_PORTS, covers, family_of
from agentmon.policy.rules import Network, Pattern, Policy, Rule, Variables

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


@dataclass(frozen=True, slots=True)
class BoundRule:
    """A rule as the tables know it. ``exe_any`` and ``exe_not`` are bits of `BoundPolicy.exe_sets`."""

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


@dataclass(frozen=True, slots=True)
class BoundPolicy:
    """A policy for one session."""

    policy: Policy
    variables: Variables
    rules: tuple[BoundRule, ...]
    exe_sets: tuple[tuple[Glob, ...], ...]
    defaults: tuple[Action, ...]  # OPERATION_SLOTS
    severest: tuple[Action, ...]  # OPERATION_SLOTS

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
                raise PolicyError(f"{pattern.place}: `{pattern.text}` is longer than any path; shorten its variable")
            found[glob] = None
    return tuple(found)


def bind_policy(policy: Policy, variables: Variables) -> BoundPolicy:
    """Fill in variables and number the rules.

    Raises:
        PolicyError: too many rules or distinct sets of programs.
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

    bound = []
    for index, rule in enumerate(sorted(policy.rules, key=lambda r: -r.action)):
        bound.append(
            BoundRule(
                index=index,
                rule=rule,
                operations=_meant(rule.operations),
                action=rule.action,
                includes=globs(rule.paths, values) or (EVERYTHING,),
                excepts=globs(rule.except_paths, values),
                exe_any=bit(rule.exe, rule),
                exe_not=bit(rule.except_exe, rule),
                ranges=_ranges(rule.networks, rule.ports) or _anywhere(rule.ports),
                except_ranges=_ranges(rule.except_networks, ()),
            )
        )
    if len(sets) > MAX_EXE_SETS:
        last = list(sets.values())[MAX_EXE_SETS]
        raise PolicyError(
            f"{last.place}: rule `{last.id}` needs the {MAX_EXE_SETS + 1}th distinct set of programs in `exe`,"
            f" {MAX_EXE_SETS} fit; give rules the same list of programs"
        )
    defaults = [Action.ALLOW] * OPERATION_SLOTS
    severest = [Action.ALLOW] * OPERATION_SLOTS
    for operation in OPERATIONS:
        # Nothing said anywhere: closed. `policy check` warns.
        silent = policy.defaults.get(Operation.WRITE, Action.DENY) if operation in PART_OF_WRITE else Action.DENY
        defaults[operation] = policy.defaults.get(operation, silent)
        severest[operation] = max([defaults[operation], *(r.action for r in bound if operation in r.operations)])
    return BoundPolicy(policy, variables, tuple(bound), tuple(sets), tuple(defaults), tuple(severest))


def _meant(operations: tuple[Operation, ...]) -> frozenset[Operation]:
    return frozenset((*operations, *PART_OF_WRITE) if Operation.WRITE in operations else operations)


def _ranges(networks: Iterable[Network], ports: tuple[tuple[int, int], ...]) -> tuple[Range, ...]:
    return tuple(
        Range(n.family, n.address, n.length_bits, low, high)
        for n in networks
        for low, high in ([n.ports] if n.ports else ports or [ALL_PORTS])
    )


def _anywhere(ports: tuple[tuple[int, int], ...]) -> tuple[Range, ...]:
    return tuple(Range(0, 0, 0, low, high) for low, high in ports or [ALL_PORTS])


__all__ = ["MAX_EXE_SETS", "BoundPolicy", "BoundRule", "Range", "bind_policy", "covers", "family_of", "globs"]
