# SPDX-License-Identifier: Apache-2.0
"""What a policy allows of an operation, for whoever was just refused one: in a few lines, as the rules have it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from agentmon.model.operations import Action, Operation
from agentmon.policy.bind import BoundPolicy, BoundRule
from agentmon.policy.explain import unmet
from agentmon.policy.network import ALL_PORTS
from agentmon.policy.rules import Pattern, Rule

#: Rules that are told of, and patterns of one.
MOST_RULES: Final = 3
MOST_PATTERNS: Final = 4


def instead(bound: BoundPolicy, operation: Operation, rule_id: str = "") -> list[str]:
    """What is allowed instead of what the rule ("": the default of the operation) blocked."""
    decided = next((rule for rule in bound.rules if rule.rule.id == rule_id), None) if rule_id else None
    lines = list(_holes(bound, decided)) if decided is not None else []
    if not bound.defaults[operation].blocks:
        if decided is None or not _everything(decided.rule):
            lines.append(f"{operation.word}: whatever no rule denies")
        return lines
    allowing = [
        rule
        for rule in bound.rules
        if operation in rule.operations and rule.action is Action.ALLOW and not (rule.rule.quiet or rule.rule.implied)
    ]
    # else as written: a policy's own come before its packs'
    allowing.sort(key=lambda rule: (not rule.for_anyone, _of_devices(rule.rule)))
    lines += [_line(bound, operation, rule) for rule in allowing[:MOST_RULES]]
    if (more := len(allowing) - MOST_RULES) > 0:
        lines.append(f"and what {more} more rules allow")
    if not allowing:
        lines.append(f"{operation.word}: nothing")
    return lines


def _holes(bound: BoundPolicy, rule: BoundRule) -> Iterator[str]:
    written = rule.rule
    words = [*_paths(bound, written.except_paths), *(network.text for network in written.except_networks)]
    if words:
        yield f"what rule {written.id} excepts: {_list(words)}"
    if written.except_exe:
        yield f"what rule {written.id} excepts: done by {_list(_paths(bound, written.except_exe))}"
    if holes := unmet(bound, rule, rule.need | rule.need_not):
        yield f"what rule {written.id} excepts: {holes.removeprefix('excepted by ')}"


def _line(bound: BoundPolicy, operation: Operation, rule: BoundRule) -> str:
    written = rule.rule
    words = [
        *_paths(bound, written.paths),
        *(f"{host.text}{'' if host.ports else _ports(written)}" for host in written.hosts),
        *(f"{network.text}{'' if network.ports else _ports(written)}" for network in written.networks),
    ]
    if not words and written.ports:
        words = [f"any address{_ports(written)}"]
    line = f"{operation.word} {_list(words) or 'anything'}"
    if holes := [*_paths(bound, written.except_paths), *(network.text for network in written.except_networks)]:
        line += f" but {_list(holes)}"
    if written.exe and operation is not Operation.EXEC:
        line += f", by {_list(_paths(bound, written.exe))}"
    if needs := unmet(bound, rule, 0):
        line += f", {needs}"
    return f"{line}: {written.reason}" if written.reason else line


def _paths(bound: BoundPolicy, patterns: Iterable[Pattern]) -> list[str]:
    """With the session's own directories in place of variables."""
    values = {name: value.decode("utf-8", "backslashreplace") for name, value in bound.variables.mapping().items()}
    found: dict[str, None] = {}
    for pattern in patterns:
        text = pattern.text
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", value)
        if text == "~" or text.startswith("~/"):
            text = values["home"] + text[1:]
        found[text] = None
    return list(found)


def _of_devices(rule: Rule) -> bool:
    """What every program needs, and nobody looks for."""
    return bool(rule.paths) and all(pattern.text.startswith(("/dev/", "/proc/")) for pattern in rule.paths)


def _ports(rule: Rule) -> str:
    ports = [f"{low}" if low == high else f"{low}-{high}" for low, high in rule.ports if (low, high) != ALL_PORTS]
    return f" at port {', '.join(ports)}" if ports else ""


def _everything(rule: Rule) -> bool:
    return not (rule.paths or rule.networks or rule.hosts or rule.ports or rule.exe)


def _list(words: Sequence[str]) -> str:
    more = len(words) - MOST_PATTERNS
    return ", ".join([*words[:MOST_PATTERNS], *([f"and {more} more"] if more > 0 else [])])
