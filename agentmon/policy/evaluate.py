# SPDX-License-Identifier: Apache-2.0
"""What a policy means: the reference semantics, independent of the automaton and of the tables.

The most severe matching rule wins, whatever the order; the default counts only if none matches; of equally severe
rules the one written first is named. ``except`` carves a hole in its own rule only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agentmon.model.operations import Action, Operation, Reason
from agentmon.model.tables import NO_RULE
from agentmon.policy.bind import BoundPolicy, BoundRule, bind_policy
from agentmon.policy.glob import Glob
from agentmon.policy.network import family_of
from agentmon.policy.rules import Policy, Variables


@dataclass(frozen=True, slots=True)
class Verdict:
    """The action, and the rule (an index in the compiled policy, or NO_RULE) that gave it."""

    action: Action
    rule: int = NO_RULE
    reason: Reason = Reason.DEFAULT


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

    def exe_tags(self, exe: bytes | None) -> int:
        """The bits that a process running this program carries (``None``: unknown, none)."""
        if exe is None:
            return 0
        return sum(1 << i for i, regex in enumerate(self._exe) if regex.fullmatch(exe))

    def path(self, operation: Operation, path: bytes, exe: bytes | None = None) -> Verdict:
        """Judge an operation on a true absolute path by a process that runs ``exe``."""
        return self.path_by_tags(operation, path, self.exe_tags(exe))

    def net(self, operation: Operation, packed: bytes, port: int, exe: bytes | None = None) -> Verdict:
        """Judge an operation on an address (16 bytes, IPv4 mapped) and port."""
        return self.net_by_tags(operation, packed, port, self.exe_tags(exe))

    def path_by_tags(self, operation: Operation, path: bytes, exe_tags: int) -> Verdict:
        """The same, for a process whose tags are known from a kernel record."""
        return self._verdict(operation, self.path_matches(operation, path, exe_tags))

    def net_by_tags(self, operation: Operation, packed: bytes, port: int, exe_tags: int) -> Verdict:
        """The same, for a process whose tags are known from a kernel record."""
        return self._verdict(operation, self.net_matches(operation, packed, port, exe_tags))

    def path_matches(self, operation: Operation, path: bytes, exe_tags: int) -> Iterator[BoundRule]:
        """Each rule that matches, most severe first."""
        for rule in self._candidates(operation, exe_tags):
            if self._includes[rule.index].fullmatch(path) and not self._excepts[rule.index].fullmatch(path):
                yield rule

    def net_matches(self, operation: Operation, packed: bytes, port: int, exe_tags: int) -> Iterator[BoundRule]:
        """Each rule that matches, most severe first."""
        address = int.from_bytes(packed, "big")
        family = family_of(address)
        for rule in self._candidates(operation, exe_tags):
            if any(r.holds(family, address, port) for r in rule.ranges) and not any(
                r.holds(family, address, port) for r in rule.except_ranges
            ):
                yield rule

    def _candidates(self, operation: Operation, exe_tags: int) -> Iterator[BoundRule]:
        for rule in self.bound.rules:
            if operation not in rule.operations or (rule.exe_any and not rule.exe_any & exe_tags):
                continue
            if not rule.exe_not & exe_tags:
                yield rule

    def _verdict(self, operation: Operation, matches: Iterable[BoundRule]) -> Verdict:
        for rule in matches:
            return Verdict(rule.action, rule.index, Reason.RULE)
        return Verdict(self.bound.defaults[operation])


def _matcher(globs: tuple[Glob, ...]) -> re.Pattern[bytes]:
    if not globs:
        return re.compile(rb"(?!)")
    return re.compile(b"|".join(b"(?:" + g.regex() + b")" for g in globs), re.DOTALL)
