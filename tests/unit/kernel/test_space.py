# SPDX-License-Identifier: Apache-2.0
"""Runs in the shared kernel tables never overlap and are used again."""

from __future__ import annotations

import random

from agentmon.kernel.tables import Space


def test_what_is_given_back_is_used_again() -> None:
    space = Space(0, 100)
    assert [space.take(40), space.take(40), space.take(40)] == [0, 40, None]
    space.give(0)
    assert space.take(41) is None
    assert [space.take(10), space.take(30)] == [0, 10]
    assert space.take(20) == 80


def test_what_an_earlier_process_wrote_is_left_alone() -> None:
    space = Space(0, 100)
    space.mark(10, 50)
    assert [space.take(10), space.take(10), space.take(40)] == [0, 60, None]


def test_runs_never_overlap() -> None:
    rng = random.Random(1)
    space = Space(5, 500)
    mine: dict[int, int] = {}
    for _ in range(2000):
        if mine and rng.random() < 0.5:
            start = rng.choice(list(mine))
            del mine[start]
            space.give(start)
            continue
        length = rng.randint(1, 60)
        taken = space.take(length)
        if taken is None:
            continue
        assert taken >= 5
        assert taken + length <= 500
        assert all(taken + length <= s or s + n <= taken for s, n in mine.items())
        mine[taken] = length
