# SPDX-License-Identifier: Apache-2.0
"""Learning on: bounded, anchored, and closed to who moves it by small steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentmon.errors import AgentmonError
from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.document import Agent
from agentmon.fingerprint.drift import (
    MOST,
    NOTICED,
    DriftError,
    accept,
    anchored_score,
    capital,
    changed_agent,
    other_tier,
)
from agentmon.fingerprint.tokens import Token
from agentmon.fingerprint.training import Recorded
from tests.support.behaviour import MadeSession, made

Of = Callable[..., Recorded]
Tokens = Callable[[MadeSession], list[Token]]


def test_a_session_is_learnt_and_the_anchor_stays(baseline: Baseline, recorded: Of) -> None:
    later, refused = accept(baseline, [recorded(600, 8)])
    assert not refused
    assert later.body.revision == 2
    assert len(later.body.sessions) == len(baseline.body.sessions) + 1
    assert later.body.anchor == baseline.sha256
    assert later.anchor.score(recorded(601, 8).tokens) == pytest.approx(
        baseline.score(recorded(601, 8).tokens), abs=0.5
    )
    again, refused = accept(later, [recorded(600, 8)])
    assert refused[0].why == "it is part of the baseline"
    assert len(again.body.sessions) == len(later.body.sessions)


def test_an_attack_is_not_learnt_and_counts_against_the_anchor(baseline: Baseline, tokens: Tokens) -> None:
    session = made(700, tasks=5)
    session.steals()
    later, refused = accept(baseline, [Recorded("bad", tokens(session))])
    assert "too far from the baseline" in refused[0].why
    assert len(later.body.sessions) == len(baseline.body.sessions)
    assert len(later.body.later) == 1


def test_steps_of_plans_are_not_learnt_by_a_baseline_that_never_had_them(baseline: Baseline, recorded: Of) -> None:
    session = recorded(650, 8)
    session.tokens.insert(9, session.tokens[8]._replace(group="step began", detail="build", operation="step"))
    later, refused = accept(baseline, [session])
    assert not refused
    assert "step began" not in later.body.groups
    assert len(later.body.sessions) == len(baseline.body.sessions) + 1


def test_too_many_at_once_are_refused(baseline: Baseline, recorded: Of) -> None:
    with pytest.raises(AgentmonError, match=r"at most 4 sessions at once"):
        accept(baseline, [recorded(800 + n, 8) for n in range(9)])
    assert MOST == 1.0


def test_small_steps_are_noticed(baseline: Baseline, tokens: Tokens) -> None:
    """An attacker has each session do a little more of what the baseline never did."""
    steps = iter(range(60))

    def creep(current: Baseline) -> None:
        for step in steps:
            session = made(900 + step, tasks=4)
            for _ in range(5):
                session.task()
                if session.random.random() < 0.02 * step:
                    session.runs("/usr/bin/awk", ("read", "/var/log/app/a.log"))
            current, _ = accept(current, [Recorded(session.id, tokens(session))])

    with pytest.raises(DriftError, match=r"sessions drift away from the 40 first accepted \(odds"):
        creep(baseline)
    assert 3 < next(steps, 60) < 60


def test_honest_sessions_do_not_drift(baseline: Baseline, recorded: Of) -> None:
    scores = [anchored_score(baseline, recorded(5000 + n, 8)) for n in range(30)]
    assert capital(baseline, scores) < NOTICED


def test_another_version_of_the_agent_is_told(baseline: Baseline) -> None:
    assert changed_agent(baseline, "0" * 64) == ""
    known = Baseline.of(baseline.body.model_copy(update={"agent": Agent(path="/usr/bin/agent", sha256="1" * 64)}))
    assert changed_agent(known, "1" * 64) == ""
    assert "train the baseline again" in changed_agent(known, "0" * 64)


def test_a_baseline_of_the_other_tier_is_told(baseline: Baseline) -> None:
    assert other_tier(baseline, "lsm") == ""  # nobody knows what it is of
    known = Baseline.of(baseline.body.model_copy(update={"tier": "react"}))
    assert other_tier(known, "react") == ""
    assert "was recorded in the react tier, and this is the lsm tier" in other_tier(known, "lsm")
