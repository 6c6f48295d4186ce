# SPDX-License-Identifier: Apache-2.0
"""Sessions under a baseline: when the risk rises and falls, what is told of it, and what it may take."""

from __future__ import annotations

import pytest

from agentmon.engine import Command, Report, Risks, Session, SetRisk, View, Warn, risks
from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.tokens import Tokens
from agentmon.fingerprint.training import Recorded, train
from agentmon.fingerprint.watching import DECAY
from agentmon.model.conditions import Risk
from tests.support.behaviour import MadeSession, made

pytest.importorskip("sklearn", reason="training needs scikit-learn")


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    learnt = []
    for seed in range(30):
        reader = Tokens()
        learnt.append(Recorded(f"s-{seed}", [t for r in made(seed, tasks=8).records if (t := reader.read(r))]))
    return train("made", learnt, check=False)


def new(*, a_day: int = 20) -> Risks:
    return Risks(a_day, 0.05, 0.01)


def watch(found: Risks, baseline: Baseline, made_: MadeSession, uid: int = 1000) -> Session:
    session = Session(made_.id, 1, "p", uid, 5, View((), None), workspace=made_.workspace)
    found.watch(session, baseline, made_.home)
    return session


def all_of(found: Risks, most: int = 10**6) -> list[Command]:
    commands = []
    while found.waiting:
        commands += found.turn(most)
    return commands


def thief(seed: int, tasks: int = 4) -> MadeSession:
    session = made(seed, tasks=tasks)
    session.steals()
    return session


def test_a_theft_raises_the_risk_once_and_calm_lets_it_fall(baseline: Baseline) -> None:
    found, made_ = new(), thief(900)
    session = watch(found, baseline, made_)
    found.add(made_.records)
    commands = all_of(found, 7)
    levels = [c.level for c in commands if isinstance(c, SetRisk)]
    assert levels[-1] is Risk.HIGH
    assert session.risk == "high"
    told = [c.record for c in commands if isinstance(c, Warn)]
    assert [c.record for c in commands if isinstance(c, Report)] == told
    assert len(told) == len(levels)
    assert told[-1].detail.startswith(f"high, was {'elevated' if len(told) > 1 else 'normal'}, by `made`: score ")
    assert "`read home/keys`" in " ".join(r.reason for r in told)
    assert told[-1].comm
    calm = MadeSession(900, made_.workspace, made_.home).works(60)
    found.add(calm.records)
    falls = [c.record.detail for c in all_of(found) if isinstance(c, Report)]
    assert falls[:2] == [
        f"elevated, was high, by `made`: {DECAY} usual acts",
        f"normal, was elevated, by `made`: {DECAY} usual acts",
    ]
    assert session.risk == "normal"


def test_the_operators_level_stays_the_least(baseline: Baseline) -> None:
    found, made_ = new(), thief(901)
    session = watch(found, baseline, made_)
    session.risk = found.floor(session, Risk.HIGH).word
    found.add(made_.records)
    commands = all_of(found)
    assert [c for c in commands if isinstance(c, SetRisk)] == []
    assert session.risk == "high"
    assert any(
        isinstance(c, Warn) and c.record.detail.startswith("high, was ") for c in commands
    )  # it is told all the same
    found.add(MadeSession(901, made_.workspace, made_.home).works(60).records)
    falls = [c for c in all_of(found) if isinstance(c, Report)]
    assert "; the operator keeps it high" in falls[-1].record.detail
    assert session.risk == "high"


def test_what_the_operator_settled_rises_again_only_by_something_new(baseline: Baseline) -> None:
    found, made_ = new(), thief(902)
    session = watch(found, baseline, made_)
    found.add(made_.records)
    all_of(found)
    session.risk = found.floor(session, Risk.NORMAL).word
    first = MadeSession(902, made_.workspace, made_.home)
    first.runs("/usr/bin/cat", ("read", f"{made_.workspace}/README.md"))
    found.add(first.records)
    assert all_of(found) == []
    calm = MadeSession(902, made_.workspace, made_.home).works(30)
    calm.steals()
    found.add(calm.records)
    assert any(isinstance(c, SetRisk) and c.level is Risk.HIGH for c in all_of(found))


def test_over_the_budget_of_its_owner_the_risk_rises_without_news(baseline: Baseline) -> None:
    found = new(a_day=0)
    made_ = thief(903)
    session = watch(found, baseline, made_)
    found.add(made_.records)
    commands = all_of(found)
    assert session.risk == "high"
    assert not any(isinstance(c, Warn) for c in commands)
    reports = [c.record for c in commands if isinstance(c, Report)]
    assert {r.flags for r in reports} == {"quiet"}
    assert found.withheld == len(reports)


def test_the_queue_is_bounded_and_what_is_lost_is_counted(baseline: Baseline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(risks, "QUEUED", 10)
    found, made_ = new(), made(904, tasks=4)
    watch(found, baseline, made_)
    acts = [r for r in made_.records if r.kind != "session"]
    found.add(acts)
    assert found.unjudged == len(acts) - 10
    assert len([1 for _ in iter(lambda: found.waiting and found.turn(4) is not None, False)]) == 3


def test_a_session_is_forgotten_when_all_of_it_is_judged(baseline: Baseline) -> None:
    found, made_ = new(), thief(905)
    session = watch(found, baseline, made_)
    found.add(made_.records)
    found.ended(session.id)
    assert found.of(session.id) is not None
    assert any(isinstance(c, Warn) for c in all_of(found))
    assert found.of(session.id) is None
    found.add(made_.records)
    assert not found.waiting


def test_what_was_before_a_restart_is_known_and_the_level_is_as_it_was(baseline: Baseline) -> None:
    made_ = thief(906)
    without, with_ = new(), new()
    watch(without, baseline, made_)
    without.add(made_.records)
    all_of(without)
    session = Session(made_.id, 1, "p", 1000, 5, View((), None), workspace=made_.workspace)
    known = with_.watch(session, baseline, made_.home, before=made_.records, level=Risk.HIGH)
    other = without.of(made_.id)
    assert other is not None
    assert known.as_json() == other.as_json()
