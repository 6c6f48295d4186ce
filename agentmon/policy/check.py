# SPDX-License-Identifier: Apache-2.0
"""Warnings about a valid policy: what is probably not meant."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from agentmon.model.operations import V1_OPERATIONS, Operation
from agentmon.model.tables import CompiledPolicy
from agentmon.policy.bind import BoundPolicy
from agentmon.policy.evaluate import Evaluator


def warnings(bound: BoundPolicy, compiled: CompiledPolicy) -> list[str]:
    """One ``file:line:column: message`` each."""
    return [*_silent_defaults(bound), *_never_decides(bound, compiled), *_exposed_files(bound)]


def _silent_defaults(bound: BoundPolicy) -> Iterator[str]:
    silent = [o.word for o in V1_OPERATIONS if o not in bound.policy.defaults]
    if silent:
        words = ", ".join(f"`{w}`" for w in silent)
        yield f"{bound.policy.file}:1:1: no default for {words}: it is deny; say so with `default: {{{silent[0]}: deny}}`"


def _never_decides(bound: BoundPolicy, compiled: CompiledPolicy) -> Iterator[str]:
    deciding = {entry.rule for entries in compiled.lists for entry in entries}
    deciding |= {entry.rule for prefix in compiled.net for entry in prefix.entries}
    for rule in bound.rules:
        if rule.index not in deciding:
            yield (
                f"{rule.rule.place}: rule `{rule.rule.id}` can never decide: whatever it matches, a rule as severe or more"
                " decides first; drop it, or carve a hole with `except` in the other"
            )


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
