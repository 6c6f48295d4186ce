# SPDX-License-Identifier: Apache-2.0
"""Sequences: what is surprising, and that probabilities are ones."""

from __future__ import annotations

import random

import pytest

from agentmon.fingerprint.sequence import EVEN, LONGEST, UNSEEN_GROUPS, Counts, Model, Vocabulary, distinct, learn

CYCLE = [1, 2, 3, 4, 5]


def model(*sequences: list[int]) -> Model:
    counts = Counts()
    for sequence in sequences:
        counts.add(sequence)
    return Model(counts, EVEN)


@pytest.mark.parametrize("recent", [[], [1], [1, 2], [9, 9], CYCLE * 2])
def test_probabilities_add_up_to_one(recent: list[int]) -> None:
    known = model(CYCLE * 20, [1, 3, 5, 2] * 5)
    seen = sum(2 ** -known.surprise(recent, n) for n in CYCLE)
    unseen = 2 ** -known.surprise(recent, 0)
    assert seen + UNSEEN_GROUPS * unseen == pytest.approx(1)


def test_the_usual_order_is_no_surprise_another_one_is() -> None:
    known = model(CYCLE * 20)
    recent = [*CYCLE, *CYCLE, 1, 2]
    assert known.surprise(recent, 3) < 0.5
    assert known.surprise(recent, 5) > 3
    assert known.surprise(recent, 0) > known.surprise(recent, 5)
    assert known.likely([1, 2]) == [3]


def test_a_remembered_surprise_is_the_same_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmon.fingerprint.sequence.REMEMBERED", 10)
    known = model([random.Random(1).randrange(1, 6) for _ in range(400)])
    draw = random.Random(2)
    asked = [([draw.randrange(1, 6) for _ in range(LONGEST)], draw.randrange(1, 6)) for _ in range(100)]
    assert [known.surprise(r, n) for r, n in asked] == [known.surprise(r, n) for r, n in reversed(asked)][::-1]


def test_weights_are_learnt_for_what_predicts_held_out_sessions() -> None:
    pytest.importorskip("sklearn")
    draw = random.Random(3)
    sequences = [[draw.choice((1, 2, 3)) for _ in range(3)] * 30 for _ in range(12)]
    weights, folds = learn(sequences)
    even = [Model(folds[i % 4], EVEN).all_surprises(s) for i, s in enumerate(sequences)]
    learnt = [Model(folds[i % 4], weights).all_surprises(s) for i, s in enumerate(sequences)]
    assert sum(map(sum, learnt)) < sum(map(sum, even))


def test_what_comes_again_is_no_news() -> None:
    assert distinct(CYCLE * 10) == list(range(10))
    assert distinct([]) == []


def test_groups_never_seen_have_one_number() -> None:
    words = Vocabulary(["a", "b"])
    assert [words.number(w) for w in ("a", "b", "z")] == [1, 2, 0]
    assert words.add("a") == 1
