# SPDX-License-Identifier: Apache-2.0
"""How a watched session is shown."""

from __future__ import annotations

from typing import Any

import pytest

from agentmon.cli import watched
from agentmon.cli.live import details, lines
from agentmon.cli.live.state import Item, State

ROSE = {
    "time_ns": 5,
    "level": "high",
    "score": 28.55,
    "reasons": ["34 bits at once", "read home/keys (cat): none", "x"],
}
LIMITS = {"elevated": 1.0, "high": 1.41}


def found(score: float | None = 1.04, trend: float = 0.0, rose: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "profile": "mine", "score": score, "trend": trend, "acts": 75, "p": 0.06, "thresholds": LIMITS, "rose": rose,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (None, ""),
        (found(None), "-"),
        (found(), "1.0"),
        (found(28.55, 27.0), "28.6↑"),
        (found(0.2, -3.0), "0.2↓"),
        ({"profile": "mine", "error": "no such file"}, "?"),
        ({"profile": "mine", "to_go": {"sessions": 3, "windows": 0}}, "learning (3 to go)"),
    ],
)
def test_the_score_in_a_few_letters(told: dict[str, Any] | None, text: str) -> None:
    assert watched.score(told) == text


def session(told: dict[str, Any] | None, risk: str = "normal") -> dict[str, Any]:
    return {
        "session": "s-1", "policy": "p", "uid": 0, "workspace": "/w", "command": "claude", "started_ns": 0,
        "decisions": 1, "blocked": 0, "observed": 0, "risk": risk, "process_count": 0, "processes": [],
        "fingerprint": told,
    }  # fmt: skip


def test_who_is_not_watched_or_at_risk_has_a_line_of_its_own() -> None:
    assert watched.lines(session(found())) == []
    assert watched.lines(session({"profile": "mine", "error": "no such file"})) == ["s-1 is not watched: no such file"]
    assert watched.lines(session(found(rose=ROSE), "high")) == [
        "s-1: risk high, by `mine`: score 28.6: 34 bits at once; read home/keys (cat): none"
    ]


def test_top_shows_score_trend_and_reasons() -> None:
    it = Item(session(found(28.55, 27.0, ROSE), "high"))
    state = State(sessions=[it.session])
    assert "risk high score 28.6↑ claude" in "".join(text for text, _ in lines.item(state, it, 120, 10**9))
    said = details.as_text(details.of_item(it, state))
    for line in ("mine", "28.55 (+27.00 in 64 acts), 75 acts", "high above 1.41", "read home/keys (cat): none"):
        assert line in said
