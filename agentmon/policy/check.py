# SPDX-License-Identifier: Apache-2.0
"""Warnings about a valid policy: what is probably not meant."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from agentmon.model.operations import OPERATIONS, PART_OF_WRITE, Operation
from agentmon.model.tables import CompiledPolicy
from agentmon.policy.automaton import TooManyStatesError, build
from agentmon.policy.bind import BoundPolicy, BoundRule
from agentmon.policy.evaluate import Evaluator

#: Looking for rules that never decide stops at this size: it is advice, and must be quick.
MOST_STATES = 5_000


def warnings(bound: BoundPolicy, compiled: CompiledPolicy) -> list[str]:
    """One ``file:line:column: message`` each."""
    return [*_silent_defaults(bound), *_never_decides(bound, compiled), *_exposed_files(bound)]


def _silent_defaults(bound: BoundPolicy) -> Iterator[str]:
    silent = [o.word for o in OPERATIONS if o not in bound.policy.defaults and o not in PART_OF_WRITE]
    if silent:
        words = ", ".join(f"`{w}`" for w in silent)
        yield f"{bound.policy.file}:1:1: no default for {words}, so deny; say so with `default: {{{silent[0]}: deny}}`"


def _never_decides(bound: BoundPolicy, compiled: CompiledPolicy) -> Iterator[str]:
    deciding = {entry.rule for prefix in compiled.net for entry in prefix.entries}
    for rule in bound.rules:
        paths = any(o.is_path and not _covered(bound, rule, o) for o in rule.operations)
        if not paths and rule.index not in deciding:
            yield (
                f"{rule.rule.place}: rule `{rule.rule.id}` can never decide: whatever it matches, a rule as severe"
                " or more decides first; drop it, or carve a hole with `except` in the other"
            )


def _covered(bound: BoundPolicy, rule: BoundRule, operation: Operation) -> bool:
    """Whether earlier rules without conditions match every path that this one does (language inclusion)."""
    earlier = [
        glob
        for other in bound.rules[: rule.index]
        if operation in other.operations and not (other.excepts or other.exe_any or other.exe_not)
        for glob in other.includes
    ]
    if not earlier:
        return False
    if set(rule.includes) <= set(earlier):
        return True
    both = dict.fromkeys(rule.includes, 0) | {glob: 1 for glob in earlier if glob not in rule.includes}
    shared = [glob for glob in rule.includes if glob in earlier]
    for glob in shared:
        del both[glob]
    try:
        automaton = build(both, {}, limit=MOST_STATES)
    except TooManyStatesError:
        return False  # too hard to tell: no warning
    return not any(accepted == 1 for accepted in automaton.accepts)


def _exposed_files(bound: BoundPolicy) -> Iterator[str]:
    """A policy that its own agent can rewrite is a request, not a fence."""
    evaluator = Evaluator(bound)
    for file in bound.policy.files:
        try:
            status = os.stat(file)
        except OSError:
            continue  # the text came from elsewhere, such as a socket
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield f"{file}:1:1: others than its owner can write this file; run `chmod go-w {file}`"
        true_path = os.fsencode(os.path.realpath(file))
        if not evaluator.path(Operation.WRITE, true_path).action.blocks:
            yield f"{file}:1:1: the policy lets its own agent write this file; keep it outside of the workspace"
