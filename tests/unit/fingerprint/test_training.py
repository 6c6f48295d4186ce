# SPDX-License-Identifier: Apache-2.0
"""Training: what it makes, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.errors import AgentmonError
from agentmon.fingerprint import document
from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.store import Store
from agentmon.fingerprint.tokens import Token
from agentmon.fingerprint.training import LEAST_SESSIONS, Recorded, check_enough, to_go
from agentmon.fingerprint.watching import retold
from tests.support.behaviour import MadeSession, made

Of = Callable[..., Recorded]


def same(group: str, count: int) -> list[Token]:
    return [Token(n, group, "", "read", "", "", False, 1, 0) for n in range(count)]


@pytest.mark.parametrize(
    ("sessions", "said"),
    [
        ([], "0 sessions of 8 or more acts are too few to learn from: it takes 10"),
        ([Recorded("a", same("read x", 3))] * 30, "0 sessions of 8 or more acts"),
        ([Recorded("a", same("read x", 20))] * 12, "240 acts in 12 sessions are too few to learn from: it takes 1,000"),
        (
            [Recorded("a", same("read x", 500))] * 12,
            "these sessions are constant: 1 different kinds of act, it takes 5",
        ),
    ],
)
def test_too_little_data_is_refused_with_what_it_takes(sessions: list[Recorded], said: str) -> None:
    with pytest.raises(AgentmonError, match=re.escape(said)):
        check_enough(sessions)


def test_copies_are_refused(recorded: Of) -> None:
    one = recorded(1)
    with pytest.raises(AgentmonError, match=r"only 1 of these 12 sessions differ from each other"):
        check_enough([Recorded(str(n), one.tokens) for n in range(12)])


def test_learning_says_how_much_is_to_go(recorded: Of) -> None:
    sessions, windows = to_go([])
    assert (sessions, windows) == (LEAST_SESSIONS, 20)
    assert to_go([recorded(seed) for seed in range(4)])[0] == LEAST_SESSIONS - 4
    assert to_go([recorded(seed) for seed in range(12)]) == (0, 0)


def test_sessions_like_the_baselines_stay_below_its_threshold(baseline: Baseline, recorded: Of) -> None:
    threshold = baseline.calibration.threshold(0.1)
    over = sum(baseline.score(recorded(1000 + n, 8).tokens) > threshold for n in range(40))
    assert over <= 12  # 4 are promised on average; 13 would come once in thousands of times


def test_an_attack_is_over_the_threshold_within_three_acts(
    baseline: Baseline, tokens: Callable[[MadeSession], list[Token]]
) -> None:
    threshold = baseline.calibration.threshold(0.01)
    noticed = 0
    for seed in range(2000, 2010):
        session = made(seed, tasks=4)
        before = len(tokens(session))
        session.steals()
        session.works(2)
        told = retold(baseline, tokens(session))
        first = told.first_over(threshold)
        theft = next(i for i, t in enumerate(tokens(session)) if t.group == "read home/keys")
        noticed += first is not None and before < first <= theft + 3
        assert any("read home/keys (cat)" in reason for reason in told.reasons)
    assert noticed >= 9  # one may have alerted before, as promised


def test_a_file_says_the_same_as_what_was_trained(baseline: Baseline, recorded: Of) -> None:
    body, sha256 = document.parse(document.write(baseline.body), "x")
    again = Baseline.of(body, sha256)
    assert sha256 == baseline.sha256
    assert again.score(recorded(77).tokens) == baseline.score(recorded(77).tokens)


def changed(baseline: Baseline, change: Callable[[dict[str, object]], None]) -> str:
    """A file whose hash is right for a body that is not."""
    data = json.loads(document.write(baseline.body))
    change(data["body"])
    data["sha256"] = document.digest(data["body"])
    return json.dumps(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _: "", r"x:1:1: this is no baseline: it is not JSON"),
        (lambda _: "[1]", r"x:1:1: this is no baseline of agentmon"),
        (lambda t: t[: len(t) // 2], r"x:1:\d+: this is no baseline: it is not JSON"),
        (lambda t: t.replace('"version": 3', '"version": 9'), "version `9` of the form; this agentmon reads 3"),
        (lambda t: t.replace('"revision": 1', '"revision": 2'), "does not match its hash"),
        (lambda _: "[" * 100_000, "not JSON"),
    ],
)
def test_a_corrupt_file_is_refused(baseline: Baseline, damage: Callable[[str], str], said: str) -> None:
    with pytest.raises(AgentmonError, match=said):
        document.parse(damage(document.write(baseline.body)), "x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b.update(extra=1), "`extra`"),
        (lambda b: b.update(name="../evil"), "`name`"),
        (lambda b: b["sessions"][0]["groups"].append(1), "not as many details as groups"),
        (lambda b: b["sessions"][0]["groups"].__setitem__(0, 999_999), "a token that is not listed"),
        (lambda b: b.update(mean="much"), "`mean`"),
        (lambda b: b["scale"].__setitem__(0, 0), "`scale.0`"),
        (lambda b: b["precision"][0].__setitem__(1, 5), "not symmetric"),
        (lambda b: b.update(anchored=9999), "more sessions are anchored"),
        (lambda b: b.update(sessions=[]), "`sessions`"),
        (lambda b: b["middle"].__setitem__(13, 1e6), "`middle.13`"),
        (lambda b: b["weights"][0].__setitem__(0, 0), "divide by nothing"),
        (lambda b: b["usual"].__setitem__(0, [1.0, 1e-300]), "divide by nothing"),
        (lambda b: b["groups"].__setitem__(1, b["groups"][0]), "a group is listed twice"),
    ],
)
def test_a_file_with_a_right_hash_and_wrong_content_is_refused(
    baseline: Baseline, change: Callable[[dict[str, object]], None], said: str
) -> None:
    with pytest.raises(AgentmonError, match=said):
        Baseline.of(*document.parse(changed(baseline, change), "x"))


def test_the_store_keeps_revisions_and_refuses_to_overwrite(baseline: Baseline, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.names() == []
    with pytest.raises(AgentmonError, match="there is no baseline `made`"):
        store.load("made")
    store.save(baseline)
    assert store.load("made").sha256 == baseline.sha256
    with pytest.raises(AgentmonError, match="there is a baseline `made` already"):
        store.save(baseline)
    store.save(baseline, replace=True)
    assert store.load("made").body.revision == 2
    with pytest.raises(AgentmonError, match="is no name of a baseline"):
        store.load("../made")
