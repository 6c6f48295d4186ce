# SPDX-License-Identifier: Apache-2.0
"""What a policy means: the reference semantics, independent of the automaton and of the tables.

The most severe matching rule wins, whatever the order; the default counts only if none matches; of equally severe
rules the one written first is named. ``except`` carves a hole in its own rule only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agentmon.model.conditions import facts_hold, parents_of, with_starter
from agentmon.model.operations import Action, Operation, Reason
from agentmon.model.tables import NO_RULE
from agentmon.policy.bind import BoundPolicy, BoundRule, bind_policy
from agentmon.policy.glob import Glob
from agentmon.policy.network import family_of
from agentmon.policy.rules import Policy, Variables
from agentmon.policy.situation import Situation, facts_in

#: An object: none, or a true path, or an address (16 bytes, IPv4 mapped) and port, or a canonical name and port.
Target = bytes | tuple[bytes, int] | tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The action, and the rule (an index in the compiled policy, or NO_RULE) that gave it."""

    action: Action
    rule: int = NO_RULE
    reason: Reason = Reason.DEFAULT


def leaving(old: Verdict, new: Verdict) -> Verdict:
    """Whether a name may go away by being renamed: the verdicts on ``delete`` of the old name and of the new one.

    Moving something away is deleting it, except to where the same rule, or the default, says the same: so programs
    that save a file by renaming another over it can work where nothing may be deleted.
    """
    return Verdict(Action.ALLOW) if old.rule == new.rule else old


class Evaluator:
    """Judges operations by looking at each rule in turn. Slow and plain: the yardstick of everything faster."""

    def __init__(self, policy: Policy | BoundPolicy, variables: Variables | None = None) -> None:
        if isinstance(policy, Policy):
            if variables is None:
                raise TypeError("a policy needs its variables")
            policy = bind_policy(policy, variables)
        self.bound = policy
        self._includes = [_matcher(r.includes) for r in policy.rules]
        self._excepts = [_matcher(r.excepts) for r in policy.rules]
        self._exe = [_matcher(s) for s in policy.exe_sets]
        self._parents = parents_of(policy.conditions)

    def exe_tags(self, exe: bytes | None) -> int:
        """The bits that a process running this program carries (``None``: unknown, none)."""
        if exe is None:
            return 0
        return sum(1 << i for i, regex in enumerate(self._exe) if regex.fullmatch(exe))

    def facts(self, situation: Situation) -> int:
        """The conditions that hold there, a bit each."""
        return facts_in(self.bound.conditions, situation, self.exe_tags, self.bound.argument_sets)

    def path(self, operation: Operation, path: bytes, exe: bytes | None = None, facts: int = 0) -> Verdict:
        """Judge an operation on a true absolute path by a process that runs ``exe``."""
        return self.path_by_tags(operation, path, self.exe_tags(exe), facts)

    def net(self, operation: Operation, packed: bytes, port: int, exe: bytes | None = None, facts: int = 0) -> Verdict:
        """Judge an operation on an address (16 bytes, IPv4 mapped) and port."""
        return self.net_by_tags(operation, packed, port, self.exe_tags(exe), facts)

    def judge(self, operation: Operation, target: Target, exe: bytes | None = None, facts: int = 0) -> Verdict:
        """Judge an operation on an object of any kind."""
        return self._verdict(operation, self.matches(operation, target, self.exe_tags(exe), facts))

    def matches(
        self, operation: Operation, target: Target, exe_tags: int, facts: int | None = 0
    ) -> Iterator[BoundRule]:
        """Each rule that matches an object of any kind, most severe first. ``facts`` None: some facts may do."""
        if target is None:
            return self.bare_matches(operation, exe_tags, facts)
        if isinstance(target, bytes):
            return self.path_matches(operation, target, exe_tags, facts)
        where, port = target
        if isinstance(where, bytes):
            return self.net_matches(operation, where, port, exe_tags, facts=facts)
        return self.name_matches(operation, where, port, exe_tags, facts)

    def bare(self, operation: Operation, exe: bytes | None = None, facts: int = 0) -> Verdict:
        """Judge an operation that has no object."""
        return self.judge(operation, None, exe, facts)

    def path_by_tags(self, operation: Operation, path: bytes, exe_tags: int, facts: int = 0) -> Verdict:
        """The same, for a process whose tags are known from a kernel record."""
        return self._verdict(operation, self.path_matches(operation, path, exe_tags, facts))

    def net_by_tags(self, operation: Operation, packed: bytes, port: int, exe_tags: int, facts: int = 0) -> Verdict:
        """The same, for a process whose tags are known from a kernel record."""
        return self._verdict(operation, self.net_matches(operation, packed, port, exe_tags, facts=facts))

    def always_blocks(self, operation: Operation, path: bytes) -> bool:
        """Whether a program that no rule names is blocked, whatever the facts are."""
        for rule in self.path_matches(operation, path, 0, None):
            if not rule.action.blocks:
                return False
            if not (rule.need or rule.need_not):
                return True
        return self.bound.defaults[operation].blocks

    def path_matches(
        self, operation: Operation, path: bytes, exe_tags: int, facts: int | None = 0
    ) -> Iterator[BoundRule]:
        """Each rule that matches, most severe first."""
        for rule in self._candidates(operation, exe_tags, facts):
            if self._includes[rule.index].fullmatch(path) and not self._excepts[rule.index].fullmatch(path):
                yield rule

    def net_matches(
        self, operation: Operation, packed: bytes, port: int, exe_tags: int, host: str = "", facts: int | None = 0
    ) -> Iterator[BoundRule]:
        """Each rule that matches, most severe first. ``host``: the name that led to the address, if one did."""
        address = int.from_bytes(packed, "big")
        family = family_of(address)
        for rule in self._candidates(operation, exe_tags, facts):
            if any(h.holds(host, port) for h in rule.hosts if host) or (
                any(r.holds(family, address, port) for r in rule.ranges)
                and not any(r.holds(family, address, port) for r in rule.except_ranges)
            ):
                yield rule

    def name_matches(
        self, operation: Operation, name: str, port: int, exe_tags: int, facts: int | None = 0
    ) -> Iterator[BoundRule]:
        """Each rule that matches a canonical name, most severe first; of rules on addresses, those on all of IPv4."""
        for rule in self._candidates(operation, exe_tags, facts):
            anywhere = any(r.holds_ipv4(port) for r in rule.ranges)
            if any(h.holds(name, port) for h in rule.hosts) or (
                anywhere and not any(r.holds_ipv4(port) for r in rule.except_ranges)
            ):
                yield rule

    def bare_matches(self, operation: Operation, exe_tags: int, facts: int | None = 0) -> Iterator[BoundRule]:
        """Each rule that matches, most severe first."""
        return self._candidates(operation, exe_tags, facts)

    def _candidates(self, operation: Operation, exe_tags: int, facts: int | None) -> Iterator[BoundRule]:
        known = None if facts is None else with_starter(operation, facts, exe_tags, self._parents)
        for rule in self.bound.rules:
            if operation not in rule.operations or (rule.exe_any and not rule.exe_any & exe_tags):
                continue
            if rule.exe_not & exe_tags:
                continue
            if known is None or facts_hold(known, rule.need, rule.need_not, rule.action):
                yield rule

    def _verdict(self, operation: Operation, matches: Iterable[BoundRule]) -> Verdict:
        for rule in matches:
            return Verdict(rule.action, rule.index, Reason.RULE)
        return Verdict(self.bound.defaults[operation])


def _matcher(globs: tuple[Glob, ...]) -> re.Pattern[bytes]:
    if not globs:
        return re.compile(rb"(?!)")
    return re.compile(b"|".join(b"(?:" + g.regex() + b")" for g in globs), re.DOTALL)
