# SPDX-License-Identifier: Apache-2.0
"""Why a policy says what it says about one object, for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from agentmon.model.conditions import Arguments, AtRisk, Condition, During, Marked, Over, Parent, Users
from agentmon.model.operations import Action, Operation
from agentmon.policy.bind import BoundPolicy, BoundRule, globs
from agentmon.policy.evaluate import Evaluator, Target
from agentmon.policy.network import ALL_PORTS, covers, family_of
from agentmon.policy.rules import Host, Network, Pattern, Rule
from agentmon.policy.situation import NOBODY, Situation

#: Of the DNS.
NAMES_PORT: Final = 53


@dataclass(frozen=True, slots=True)
class Match:
    """A rule and the words of it that matched. ``hole``: what then kept it from applying."""

    rule: str
    pack: str
    action: Action
    source: str
    reason: str
    matched: str
    hole: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict; the rule that decided; whatever else matched, or would have but for who acts and when."""

    operation: Operation
    action: Action
    decided_by: Match | None
    others: tuple[Match, ...]
    excepted: tuple[Match, ...]
    default: Action
    would: Explanation | None = None  # if what is only observed were enforced, where that differs


def explain(
    bound: BoundPolicy, operation: Operation, target: Target, exe: bytes | None, situation: Situation = NOBODY
) -> Explanation:
    """Explain the verdict on an object of any kind, for a process that runs ``exe``."""
    evaluator = Evaluator(bound)
    tags = evaluator.exe_tags(exe)
    facts = evaluator.facts(situation)
    matching = list(evaluator.matches(operation, target, tags, facts))
    possible = list(evaluator.matches(operation, target, tags, None))
    taken = [_match(bound, rule, target, "") for rule in matching]
    excepted = []
    for rule in bound.rules:
        if rule in matching:
            continue
        if rule in possible:
            excepted.append(_match(bound, rule, target, unmet(bound, rule, facts)))
        elif operation in rule.operations and _included(bound, rule, target):
            hole = next(_words(bound, target, rule.rule.except_paths, rule.rule.except_networks), "")
            if not hole and rule.exe_not & tags:
                hole = "exe " + ", ".join(p.text for p in rule.rule.except_exe)
            if rule.exe_any and not rule.exe_any & tags:
                hole = "needs exe " + ", ".join(p.text for p in rule.rule.exe) if not hole else ""
            elif hole:
                hole = f"excepted by {hole}"
            if hole:
                excepted.append(_match(bound, rule, target, hole))
    default = bound.defaults[operation]
    action = matching[0].action if matching else default
    would = explain(bound.observed, operation, target, exe, situation) if bound.observed else None
    return Explanation(
        operation,
        action,
        taken[0] if taken else None,
        tuple(taken[1:]),
        tuple(excepted),
        default,
        would if would and would.action != action else None,
    )


def of_resolver(bound: BoundPolicy, operation: Operation, target: Target) -> tuple[Action, str] | None:
    """What becomes of port 53, and why, where no rule is asked: names are asked for there. None: rules are asked."""
    if not isinstance(target, tuple) or target[1] != NAMES_PORT:
        return None
    if operation in (Operation.CONNECT, Operation.SEND) and any(rule.hosts for rule in bound.rules):
        return Action.ALLOW, "whatever the server, the session's own resolver gets it, as the policy names `hosts`"
    if operation is Operation.BIND:
        return Action.DENY, "names are asked for at port 53; no process of a session may answer there"
    return None


def unmet(bound: BoundPolicy, rule: BoundRule, facts: int) -> str:
    """Why a rule that matches the object does not apply: what it needs and is not so, or excepts and is so."""
    missing, holes = [], []
    for i, condition in enumerate(bound.conditions):
        if rule.need & ~facts & 1 << i:
            missing.append(_asked(condition, rule.rule, carved=False))
        if rule.need_not & facts & 1 << i:
            holes.append(_asked(condition, rule.rule, carved=True))
    needs = [f"needs {', '.join(missing)}"] if missing else []
    return "; ".join([*needs, *([f"excepted by {', '.join(holes)}"] if holes else [])])


def _asked(condition: Condition, rule: Rule, *, carved: bool) -> str:
    """A condition as the rule has it, in words."""
    match condition:
        case Parent():
            return "parent " + ", ".join(p.text for p in (rule.except_parent if carved else rule.parent))
        case Arguments():
            return f"argv {_arguments((rule.except_argv if carved else rule.argv) or ())}"
        case Users():
            return "user " + ", ".join(u.text for u in (rule.except_users if carved else rule.users))
        case AtRisk():
            return f"risk {condition.level.word}"
        case During():
            return "time " + ", ".join(t.text for t in (rule.except_times if carved else rule.times))
        case Marked():
            return f"requires {condition}"
        case Over():
            return f"its rate, {rule.rate.text if rule.rate else condition.count}, being used up"


def _arguments(argv: Sequence[Pattern]) -> str:
    return json.dumps([p.text for p in argv], ensure_ascii=False)


def _match(bound: BoundPolicy, rule: BoundRule, target: Target, hole: str) -> Match:
    written = rule.rule
    words = next(_words(bound, target, written.paths, written.networks, written.hosts, written.ports), "everything")
    if written.exe:
        words += " by " + ", ".join(p.text for p in written.exe)
    if written.argv is not None:
        words += f" with {_arguments(written.argv)}"
    if written.parent:
        words += " under " + ", ".join(p.text for p in written.parent)
    if written.users:
        words += " as " + ", ".join(u.text for u in written.users)
    place = f"{written.place.file}:{written.place.line}"
    return Match(written.id, written.pack, rule.action, place, written.reason, words, hole)


def _included(bound: BoundPolicy, rule: BoundRule, target: Target) -> bool:
    written = rule.rule
    nothing_named = not (written.paths or written.networks or written.hosts or written.ports)
    return nothing_named or any(_words(bound, target, written.paths, written.networks, written.hosts, written.ports))


def _words(
    bound: BoundPolicy,
    target: Target,
    patterns: Iterable[Pattern],
    networks: Iterable[Network],
    hosts: Iterable[Host] = (),
    ports: tuple[tuple[int, int], ...] = (),
) -> Iterator[str]:
    """What was written, of what matches the target."""
    if target is None:
        return
    if isinstance(target, bytes):
        values = bound.variables.mapping()
        for pattern in patterns:
            if any(re.fullmatch(g.regex(), target, re.DOTALL) for g in globs([pattern], values)):
                yield pattern.text
        return
    where, port = target
    named = False
    items: tuple[Host | Network, ...] = (*hosts, *networks)
    for item in items:
        named = True
        wanted = [item.ports] if item.ports else ports or [ALL_PORTS]
        if any(low <= port <= high for low, high in wanted) and _is_in(where, item):
            yield item.text
    if not named:
        for low, high in ports:
            if low <= port <= high:
                yield f"port {low}" if low == high else f"ports {low}-{high}"


def _is_in(where: bytes | str, item: Host | Network) -> bool:
    if isinstance(item, Host):
        return isinstance(where, str) and item.pattern.holds(where)
    if isinstance(where, str):  # some address: only what covers all of IPv4 is sure to hold it
        return item.family == 4 and item.length_bits <= 96
    address = int.from_bytes(where, "big")
    return item.family == family_of(address) and covers(item, address)
