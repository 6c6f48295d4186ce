# SPDX-License-Identifier: Apache-2.0
"""What changes from one policy to another, as plain data: for JSON, and to be sent from the daemon."""

from __future__ import annotations

from typing import Any

from agentmon.policy import diff
from agentmon.policy.bind import BoundPolicy
from agentmon.policy.diff import RuleChange, Side
from agentmon.policy.witness import MOST_STATES

Change = dict[str, Any]


def changes(old: BoundPolicy, new: BoundPolicy, *, limit: int = MOST_STATES) -> tuple[list[Change], bool]:
    """Mode, rules, defaults, then verdicts, each with its ``kind``; and whether these are all verdicts that differ."""
    found: list[Change] = []
    if old.policy.observe != new.policy.observe:
        modes = [diff.mode_word(bound.policy.observe) for bound in (old, new)]
        found.append({"kind": "mode", "old": modes[0], "new": modes[1]})
    found += [_rule(change) for change in diff.rule_changes(old, new)]
    for operation, before, after in diff.default_changes(old, new):
        found.append({"kind": "default", "operation": operation.word, "old": before.word, "new": after.word})
    said = diff.verdicts(old, new, limit=limit)
    for d in said.differences:
        object_ = {"operation": d.operation.word, "object": d.object, "exe": d.exe or None, "when": d.when or None}
        found.append({"kind": "verdict", **object_, "old": side(d.old), "new": side(d.new)})
    return found, said.complete


def side(given: Side | None) -> dict[str, str | None]:
    """One policy's verdict and rule; None: not known."""
    return {"verdict": given.action.word if given else None, "rule": given.rule if given else ""}


def _rule(change: RuleChange) -> Change:
    rule = change.new or change.old
    assert rule is not None
    kind = "added" if change.old is None else "removed" if change.new is None else "changed"
    return {
        "kind": "rule", "change": kind, "rule": change.id, "pack": rule.pack, "action": rule.action.word,
        "operations": [o.word for o in rule.operations], "mode": "observe" if rule.observe else "enforce",
        "fields": {key: {"old": before, "new": after} for key, before, after in change.fields},
    }  # fmt: skip
