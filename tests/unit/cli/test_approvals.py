# SPDX-License-Identifier: Apache-2.0
"""What `agentmon approvals` shows: an agent chose most of it."""

from __future__ import annotations

import pytest

from agentmon.cli.approvals import _held
from agentmon.model.text import cut_words, plainly

HELD = {
    "id": "a-1", "session": "s-7f3a", "pid": 7, "comm": "x", "operation": "exec", "does": "exec",
    "object": "/w/deploy", "rule": "ask",
    "reason": "", "changed": False, "deadline_ns": 0, "scope_help": "exec", "command": ["deploy"], "parents": [],
    "recent": [], "program": "/w/deploy", "directory": "/w", "others": [], "processes": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "word",
    ["x" + 60 * " " + "a-2  s-7f3a  exec /usr/bin/true", "x\n\na-2  s-7f3a", "\u202etac", "\u3164\u2800", 5000 * "x"],
    ids=["spaces", "lines", "direction", "blanks", "long"],
)
def test_nothing_that_an_agent_names_looks_like_a_line_of_ours_or_hides_another(word: str) -> None:
    changes = ({"command": ["deploy", word]}, {"object": f"/w/{word[:200]}"}, {"directory": f"/w/{word[:200]}"})
    for change in changes:
        text = _held(HELD | change)
        lines = text.splitlines()
        assert (len(lines), len(_held(HELD).splitlines())) == (5, 5)
        assert all(line.isascii() for line in lines[:4]) or "…" in text
        assert "   " not in text
        assert len(text) < 1500


def test_who_waits_beside_the_first_is_shown() -> None:
    others = [{"pid": 8, "command": ["deploy", "--all", "a b"]}]
    text = _held(HELD | {"others": others, "processes": 4})
    assert "  and by 8: deploy --all 'a b'\n  and by 2 more\n" in text


def test_of_a_program_that_was_not_started_the_arguments_are_shown_as_of_now() -> None:
    others = [{"pid": 8, "command": ["sh"], "arguments": []}]
    lines = _held(HELD | {"arguments": ["push", "x\n\u202etac"], "others": others, "processes": 2}).splitlines()
    assert "  with the arguments: push 'x\\n\\u202etac' (as of now: you approve the program, with any)" in lines
    assert "  and by 8: sh; with the arguments: none (as of now: you approve the program, with any)" in lines


def test_what_is_cut_says_so() -> None:
    assert cut_words(["deploy", "--all"], 20) == ["deploy", "--all"]
    assert cut_words(["deploy", "x" * 99, "--all"], 15) == ["deploy", "xxx", "…[96 characters more]…", "--all"]
    assert cut_words(["x" * 10 + "y" * 10], 6) == ["xxxx", "…[14 characters more]…", "yy"]


def test_short_texts_are_shown_as_they_are() -> None:
    assert plainly("/home/me/my file") == "/home/me/my file"
    assert plainly("a   b") == "a \\x20\\x20b"
