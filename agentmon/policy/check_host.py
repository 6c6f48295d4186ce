# SPDX-License-Identifier: Apache-2.0
"""Warnings about a valid policy that depend on this host: patterns through links, programs that are scripts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from agentmon.model.operations import Action, Operation
from agentmon.policy.bind import BoundPolicy, BoundRule, globs
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.glob import Glob
from agentmon.policy.rules import Pattern, Rule


def host_warnings(bound: BoundPolicy) -> Iterator[str]:
    """Of the policy's own rules; its packs are for every host."""
    values = bound.variables.mapping()
    for each in bound.rules:
        rule = each.rule
        if rule.pack != bound.policy.name:
            continue
        carved = (*rule.except_paths, *rule.except_exe, *rule.except_parent)
        for pattern in (*rule.paths, *rule.exe, *rule.parent, *carved):
            flat = globs([pattern], values)
            found = [_true(glob) for glob in flat]
            if all(found):
                written, true = found[0] or ("", "")
                yield (
                    f"{pattern.place}: rule `{rule.id}`: `{written}` is `{true}` on this host, and rules go by true"
                    f" paths, so `{pattern.text}` matches none; begin it with `{true}`"
                )
        yield from _scripts(bound, rule)
        yield from _changeable(bound, each)


def _true(glob: Glob) -> tuple[str, str] | None:
    """(directory, its true path) where all that a glob matches is said to be below a link."""
    beginning = os.fsdecode(glob.beginning)
    directory = (beginning if os.path.isdir(beginning) else os.path.dirname(beginning)).rstrip("/")
    if not directory.startswith("/"):
        return None
    true = os.path.realpath(directory)
    return (directory, true) if true != directory else None


def _scripts(bound: BoundPolicy, rule: Rule) -> Iterator[str]:
    values = bound.variables.mapping()
    patterns: tuple[Pattern, ...] = (*rule.exe, *rule.parent, *rule.except_parent, *rule.except_exe)
    for pattern in patterns:
        for glob in globs([pattern], values):
            exact = glob.exact
            program = os.fsdecode(exact) if exact else shutil.which(pattern.text.rsplit("/", 1)[-1])
            if program and (interpreter := _interpreter(program)):
                yield (
                    f"{pattern.place}: rule `{rule.id}`: `{program}` is a script: the process that runs it is of"
                    f" `{interpreter}`, and `{pattern.text}` does not match that; see Conditions in docs/policy.md"
                )
                break


def _changeable(bound: BoundPolicy, rule: BoundRule) -> Iterator[str]:
    """An interpreter reads its script after somebody said yes to the start of it."""
    if rule.action is not Action.HOLD or Operation.EXEC not in rule.operations:
        return
    for path in (glob.exact for glob in rule.includes):
        if path is None or not _interpreter(os.fsdecode(path)):
            continue
        first = next(Evaluator(bound).path_matches(Operation.WRITE, path, 0), None)
        if (first.action if first else bound.defaults[Operation.WRITE]) < Action.HOLD:
            yield (
                f"{rule.rule.place}: rule `{rule.rule.id}` holds the start of `{os.fsdecode(path)}`, a script that the"
                " agent may write: it can change it once you have approved it; deny `write` of it"
            )


def _interpreter(program: str) -> str:
    try:
        with open(program, "rb") as file:
            first = file.read(256)
    except OSError:
        return ""
    words = first[2:].split(b"\n", 1)[0].split() if first.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""
