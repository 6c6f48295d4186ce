# SPDX-License-Identifier: Apache-2.0
"""Learning from sessions as they end: towards a first baseline, then on, until it drifts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.document import Agent
from agentmon.fingerprint.learning import Outcome, learn, left, words
from agentmon.fingerprint.store import Store
from agentmon.fingerprint.training import LEAST_WINDOWS, Recorded
from tests.support.behaviour import made

Of = Callable[..., Recorded]
OLD, NEW = (Agent(path="/opt/agent", sha256=digit * 64) for digit in "12")


def lesson(store: Store, session: Recorded, agent: Agent | None = None, enough: int = 12) -> Outcome:
    return learn(store, "young", session, agent, enough, lambda _: None, "react")


def test_a_new_agent_has_a_stated_way_to_go(tmp_path: Path, recorded: Of) -> None:
    pytest.importorskip("sklearn", reason="training needs scikit-learn")
    store = Store(tmp_path / "profiles")
    assert left(store, "young", 12) == (12, LEAST_WINDOWS)
    for seed in range(11):
        found = lesson(store, recorded(seed, 8))
        assert found.how == "collected"
        assert found.sessions == 11 - seed
        assert left(store, "young", 12) == (found.sessions, found.windows)
        assert found.text == f"{words(found.sessions, found.windows)} to go"
        assert store.names() == []
    last = lesson(store, recorded(11, 8))
    assert last.how == "trained"
    assert "baseline `young` of 12 sessions: at best one false alert in 13" in last.text
    assert len(store.load("young").body.sessions) == 12
    assert store.load("young").body.tier == "react"
    elsewhere = learn(store, "young", recorded(12, 8), None, 12, lambda _: None, "lsm")
    assert elsewhere.how == "not-learnt"
    assert "was recorded in the react tier, and this is the lsm tier" in elsewhere.text
    assert not (tmp_path / "profiles/young/learning").exists()


def test_sessions_of_an_older_program_are_put_away(tmp_path: Path, recorded: Of) -> None:
    store = Store(tmp_path)
    for seed in range(5):
        lesson(store, recorded(seed, 8), OLD)
    found = lesson(store, recorded(5, 8), NEW)
    assert "its program changed: 5 sessions of the one before were put away" in found.text
    assert found.sessions == 11


def test_what_is_no_session_and_what_was_cut_off_do_not_count(tmp_path: Path, recorded: Of) -> None:
    store = Store(tmp_path)
    short = Recorded("s-1", recorded(1, 8).tokens[:5])
    assert lesson(store, short).how == "not-learnt"
    lesson(store, recorded(2, 8))
    (tmp_path / "young/learning/00000000000000000001-s-9.json").write_text('{"agent": nu')
    assert lesson(store, recorded(3, 8)).sessions == 10


def test_a_baseline_learns_on_but_not_from_another_program_or_a_theft(
    tmp_path: Path, baseline: Baseline, recorded: Of, tokens: Callable[..., list[object]]
) -> None:
    store = Store(tmp_path)
    body = baseline.body.model_copy(update={"name": "young", "agent": OLD})
    store.save(Baseline.of(body))
    assert lesson(store, recorded(600, 8), OLD).how == "learnt"
    assert store.load("young").body.revision == 2
    changed = lesson(store, recorded(601, 8), NEW)
    assert changed.how == "not-learnt"
    assert "train the baseline again" in changed.text
    thief = made(700, tasks=5)
    thief.steals()
    refused = lesson(store, Recorded("bad", tokens(thief)), OLD)
    assert (refused.how, "too far from the baseline" in refused.text) == ("not-learnt", True)


def test_drift_is_told_and_stays(tmp_path: Path, baseline: Baseline, tokens: Callable[..., list[object]]) -> None:
    store = Store(tmp_path)
    store.save(Baseline.of(baseline.body.model_copy(update={"name": "young"})))
    found = Outcome("", "")
    for step in range(60):
        session = made(900 + step, tasks=4)
        for _ in range(5):
            session.task()
            if session.random.random() < 0.02 * step:
                session.runs("/usr/bin/awk", ("read", "/var/log/app/a.log"))
        found = lesson(store, Recorded(session.id, tokens(session)))
        if found.how == "drift":
            break
    assert found.told
    assert "sessions drift away from the 40 first accepted" in found.text
    honest = lesson(store, Recorded("s-x", tokens(made(5000, tasks=8))))
    assert honest.how == "drift"  # one honest session does not make up for it
