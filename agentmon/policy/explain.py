# SPDX-License-Identifier: Apache-2.0
"""Why a policy says what it says about one object, for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agentmon.model.operations import Action, Operation
from agentmon.policy.bind import BoundPolicy, BoundRule, globs
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.network import ALL_PORTS, covers, family_of
from agentmon.policy.rules import Network, Pattern


@dataclass(frozen=True, slots=True)
class Match:
    """A rule and the words of it that matched. ``hole``: the ``except`` that then let the object through."""

    rule: str
    pack: str
    action: Action
    source: str
    reason: str
    matched: str
    hole: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict; the rule that decided, if one did; whatever else matched, or would have but for an exception."""

    operation: Operation
    action: Action
    decided_by: Match | None
    others: tuple[Match, ...]
    excepted: tuple[Match, ...]
    default: Action


def explain(
    bound: BoundPolicy, operation: Operation, target: bytes | tuple[bytes, int], exe: bytes | None
) -> Explanation:
    """Explain the verdict on a path, or on an (address, port), for a process that runs ``exe``."""
    evaluator = Evaluator(bound)
    tags = evaluator.exe_tags(exe)
    if isinstance(target, bytes):
        matching = list(evaluator.path_matches(operation, target, tags))
    else:
        matching = list(evaluator.net_matches(operation, *target, tags))
    taken = [_match(bound, rule, target, "") for rule in matching]
    excepted = []
    for rule in bound.rules:
        if operation in rule.operations and rule not in matching:
            hole = next(_words(bound, target, rule.rule.except_paths, rule.rule.except_networks), "")
            if not hole and rule.exe_not & tags:
                hole = "exe " + ", ".join(p.text for p in rule.rule.except_exe)
            if hole and (not rule.exe_any or rule.exe_any & tags) and _included(bound, rule, target):
                excepted.append(_match(bound, rule, target, hole))
    default = bound.defaults[operation]
    return Explanation(
        operation,
        matching[0].action if matching else default,
        taken[0] if taken else None,
        tuple(taken[1:]),
        tuple(excepted),
        default,
    )


def _match(bound: BoundPolicy, rule: BoundRule, target: bytes | tuple[bytes, int], hole: str) -> Match:
    written = rule.rule
    words = next(_words(bound, target, written.paths, written.networks, written.ports), "everything")
    if written.exe:
        words += " by " + ", ".join(p.text for p in written.exe)
    place = f"{written.place.file}:{written.place.line}"
    return Match(written.id, written.pack, rule.action, place, written.reason, words, hole)


def _included(bound: BoundPolicy, rule: BoundRule, target: bytes | tuple[bytes, int]) -> bool:
    nothing_named = not rule.rule.paths and not rule.rule.networks and not rule.rule.ports
    return nothing_named or any(_words(bound, target, rule.rule.paths, rule.rule.networks, rule.rule.ports))


def _words(
    bound: BoundPolicy,
    target: bytes | tuple[bytes, int],
    patterns: Iterable[Pattern],
    networks: Iterable[Network],
    ports: tuple[tuple[int, int], ...] = (),
) -> Iterator[str]:
    """What was written, of what matches the target."""
    if isinstance(target, bytes):
        values = bound.variables.mapping()
        for pattern in patterns:
            if any(re.fullmatch(g.regex(), target, re.DOTALL) for g in globs([pattern], values)):
                yield pattern.text
        return
    address, port = int.from_bytes(target[0], "big"), target[1]
    any_network = False
    for network in networks:
        any_network = True
        wanted = [network.ports] if network.ports else ports or [ALL_PORTS]
        same_family = network.family == family_of(address)
        if same_family and covers(network, address) and any(low <= port <= high for low, high in wanted):
            yield network.text
    if not any_network:
        for low, high in ports:
            if low <= port <= high:
                yield f"port {low}" if low == high else f"ports {low}-{high}"
