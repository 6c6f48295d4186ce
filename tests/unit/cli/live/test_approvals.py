# SPDX-License-Identifier: Apache-2.0
"""Pending approvals: a key answers what was looked at, and nothing else."""

from __future__ import annotations

from typing import Any

from agentmon.cli.live import details
from agentmon.cli.live.approvals import ARM_S, Approvals


def asked(*names: str) -> list[dict[str, Any]]:
    return [{"id": name, "object": f"/{name}", "command": ["git", "push"], "unknown_field": 1} for name in names]


def test_an_unknown_verb_is_no_pane() -> None:
    approvals = Approvals()
    approvals.update([], 0)
    assert approvals.known
    approvals.update(False, 0)
    assert not approvals.known
    assert approvals.selected is None


def test_the_cursor_keeps_to_its_approval() -> None:
    approvals = Approvals()
    assert approvals.update(asked("a", "b", "c"), 0) == 3
    approvals.select(1, 0)
    assert approvals.update(asked("b", "c", "d"), 1) == 1
    assert approvals.selected is not None
    assert approvals.selected.id == "b"
    assert approvals.selected.command == ("git", "push")
    taken = approvals.answer(1)  # it has been there for a second
    assert taken is not None
    assert taken.id == "b"


def test_one_that_only_just_came_under_the_cursor_is_not_answered() -> None:
    approvals = Approvals()
    approvals.update(asked("a", "b"), 0)
    assert approvals.answer(ARM_S / 2) is None
    assert approvals.answer(ARM_S * 2) is not None
    # a key that repeats: `b` came in its place
    for repeat in range(10):
        assert approvals.answer(ARM_S * 2 + repeat * 0.03) is None
    approvals.update(asked("b"), 2)
    assert approvals.answer(10) is not None
    # somebody else answered while we looked
    approvals.update(asked("c", "d"), 20)
    approvals.update(asked("d"), 21)
    assert approvals.answer(21.1) is None


def test_an_answered_one_is_gone_until_the_answer_is_refused() -> None:
    approvals = Approvals()
    approvals.update(asked("a", "b"), 0)
    approvals.answer(1)
    assert approvals.update(asked("a", "b"), 2) == 0
    assert [item.id for item in approvals.items] == ["b"]
    approvals.answered("a")
    approvals.update(asked("a", "b"), 3)
    assert [item.id for item in approvals.items] == ["a", "b"]


def test_fields_that_are_missing_or_null_are_no_crash() -> None:
    approvals = Approvals()
    approvals.update([{"id": "a", "command": None, "pid": None}, {}], 0)
    assert [item.id for item in approvals.items] == ["a", ""]


def test_what_the_session_did_before_is_read() -> None:
    deed = {"time_ns": 1, "pid": 7, "comm": "sh", "operation": "read", "object": "/w/key", "verdict": "deny"}
    approvals = Approvals()
    approvals.update([{"id": "a", "recent": [deed, {**deed, "operation": "exec", "verdict": "allow"}]}], 0)
    assert approvals.selected is not None
    assert approvals.selected.recent == ("deny read /w/key by sh[7]", "exec /w/key by sh[7]")
    text = details.as_text(details.of_approval(approvals.selected))
    assert "Before, the latest first:\n  deny read /w/key by sh[7]" in text
