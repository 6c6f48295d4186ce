# SPDX-License-Identifier: Apache-2.0
"""A running session: levels, alerts, their decay and their budget."""

from __future__ import annotations

from collections.abc import Callable

from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.tokens import Tokens
from agentmon.fingerprint.training import Recorded, train
from agentmon.fingerprint.watching import DECAY, Alert, Budget, Judgement, Watcher, retold
from agentmon.model.records import Record
from tests.support.behaviour import MadeSession, made


def judged(watcher: Watcher, session: MadeSession) -> list[Judgement]:
    return [found for record in session.records if (found := watcher.observe(record)) is not None]


def alerts(found: list[Judgement]) -> list[Alert]:
    return [j.alert for j in found if j.alert is not None]


def test_ordinary_work_is_normal(baseline: Baseline) -> None:
    quiet = sum(
        not alerts(judged(Watcher(baseline, high=0.1, elevated=0.1), made(3000 + n, tasks=8))) for n in range(20)
    )
    assert quiet >= 12  # 18 are promised on average


def test_a_theft_raises_the_level_with_reasons(baseline: Baseline) -> None:
    session = made(3100, tasks=4)
    session.steals()
    found = judged(Watcher(baseline), session)
    assert found[-1].level == "high"
    (alert,) = [a for a in alerts(found) if a.level == "high"]
    assert alert.p <= alert.promised
    assert any("`read home/keys`" in reason for reason in alert.reasons)
    assert "bits of surprise at once" in alert.reasons[0]


def test_the_level_falls_by_one_after_calm(baseline: Baseline) -> None:
    session = made(3200, tasks=3)
    session.steals()
    watcher = Watcher(baseline)
    assert judged(watcher, session)[-1].level == "high"
    calm = MadeSession(3200, session.workspace, session.home).works(60)
    levels = [j.level for j in judged(watcher, calm)]
    assert len(levels) > 3 * DECAY
    first = levels.index("elevated")
    assert set(levels[:first]) == {"high"}
    assert first >= DECAY - 8


def test_more_alerts_than_the_budget_are_counted_and_the_level_rises_all_the_same(baseline: Baseline) -> None:
    budget = Budget(a_day=1)
    told, levels = 0, []
    for n in range(3):
        session = made(3300 + n, tasks=3)
        session.steals()
        session.records[:] = [r._replace(time_ns=10**9 + i) for i, r in enumerate(session.records)]
        found = judged(Watcher(baseline, budget=budget), session)
        told += len(alerts(found))
        levels.append(found[-1].level)
    assert told == 1
    assert budget.withheld >= 2
    assert levels == ["high"] * 3
    assert budget.take(3 * 86_400 * 10**9)


def with_steps(session: MadeSession, *steps: str) -> MadeSession:
    """A step begins and is done before every hundredth record."""
    records = []
    for number, record in enumerate(session.records):
        records.append(record)
        if number % 100 == 99:
            base = Record(record.time_ns, "step", record.session, record.pid, comm=record.comm)
            step = steps[number // 100 % len(steps)]
            records += [base._replace(operation=word, object=step) for word in ("began", "done")]
    session.records[:] = records
    return session


def test_a_baseline_without_plans_is_silent_about_steps(baseline: Baseline) -> None:
    plain = judged(Watcher(baseline), made(3500, tasks=8))
    planned = judged(Watcher(baseline), with_steps(made(3500, tasks=8), "look", "change"))
    assert len(planned) > len(plain)
    assert planned[-1].acts == plain[-1].acts
    assert planned[-1].score == plain[-1].score


def test_a_baseline_with_plans_notices_a_step_that_is_refused() -> None:
    def planned(seed: int) -> MadeSession:
        return with_steps(made(seed, tasks=8), "look", "change")

    def tokens(session: MadeSession) -> Recorded:
        reader = Tokens()
        return Recorded(session.id, [t for r in session.records if (t := reader.read(r))])

    baseline = train("planned", [tokens(planned(seed)) for seed in range(30)], check=False)
    usual, refused = planned(3600), planned(3600)
    at = len(refused.records) // 2
    refused.records[at:at] = [
        Record(refused.records[at].time_ns, "step", operation="refused", object="deploy", verdict="deny") for _ in "ab"
    ]
    plain, against = (retold(baseline, tokens(session).tokens) for session in (usual, refused))
    assert max(against.scores) > max(plain.scores) + 1
    assert any("step! refused (deploy)" in reason for reason in against.reasons)


def test_records_that_are_no_acts_say_nothing(baseline: Baseline) -> None:
    assert Watcher(baseline).observe(made(1).records[0]) is None


def test_a_stretch_of_odd_shape_is_told_by_its_features(baseline: Baseline) -> None:
    session = made(3400, tasks=2)
    for n in range(80):
        session.did("delete", f"{session.workspace}/src/main{n % 9}.py", pid=7 + n % 2, comm="agent")
        session.did("connect", f"203.0.113.{n}:443", pid=7 + n % 2)
    watcher = Watcher(baseline)
    found = judged(watcher, session)
    assert found[-1].level == "high"
    reasons = watcher.reasons()
    assert any("in the last 64 acts, usually" in r for r in reasons), reasons


def test_recorded_sessions_have_a_duration(recorded: Callable[..., Recorded]) -> None:
    assert recorded(1).seconds > 0
    assert Recorded("x", []).seconds == 0


def test_two_kinds_of_act_that_were_never_seen_count_together_however_far_apart(baseline: Baseline) -> None:
    session = made(3500, tasks=2)
    watcher = Watcher(baseline)
    judged(watcher, session)
    assert watcher.progress.now["novel"] == 0
    for place in ("/etc/cron.d/x", "/etc/shadow"):
        later = MadeSession(3500, session.workspace, session.home)
        later.did("read", place)
        judged(watcher, later.works(1))
    assert 1.5 < watcher.progress.now["novel"] <= 2
    assert "kinds of act, of the last 256 or so, that the baseline never had" in " ".join(watcher.reasons())
    judged(watcher, MadeSession(3500, session.workspace, session.home).works(60))
    assert watcher.progress.now["novel"] < 0.2
