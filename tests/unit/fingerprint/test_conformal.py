# SPDX-License-Identifier: Apache-2.0
"""Promises: thresholds, values of p, and bets against them."""

from __future__ import annotations

import random
from math import exp, inf

import pytest

from agentmon.fingerprint.conformal import Calibration, Martingale


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_a_threshold_keeps_its_promise(rate: float) -> None:
    draw = random.Random(5)
    alerts = trials = 0
    for _ in range(300):
        threshold = Calibration(draw.gauss(0, 1) for _ in range(199)).threshold(rate)
        trials += 50
        alerts += sum(draw.gauss(0, 1) > threshold for _ in range(50))
    assert alerts / trials == pytest.approx(rate, abs=0.25 * rate)


def test_few_sessions_promise_little_and_say_so() -> None:
    few = Calibration([3.0, 1.0, 2.0])
    assert few.least == 0.25
    assert few.rank(0.01) == 0
    assert few.threshold(0.01) == few.threshold(0.25) == 3.0
    assert Calibration([]).threshold(0.5) == inf


def test_p_is_never_0_and_falls_with_the_score() -> None:
    calibration = Calibration([1.0, 2.0, 3.0])
    assert [calibration.p(s) for s in (0, 1, 2.5, 3, 99)] == [1, 1, 0.5, 0.5, 0.25]


def test_honest_sessions_win_no_bets() -> None:
    won = 0
    for seed in range(100):
        draw = random.Random(seed)
        martingale = Martingale(draw.gauss(0, 1) for _ in range(60))
        for _ in range(200):
            martingale.add(draw.gauss(0, 1))
        won += exp(martingale.highest) >= 20
    assert won <= 12  # at most 5 of 100 are promised; 13 would come once in 1,700 times


def test_a_slow_shift_wins_though_each_session_is_harmless() -> None:
    draw = random.Random(1)
    martingale = Martingale(draw.gauss(0, 1) for _ in range(60))
    for step in range(200):
        martingale.add(min(2.0, draw.gauss(0.01 * step, 1)))
    assert exp(martingale.highest) >= 100


def test_ties_are_no_evidence() -> None:
    martingale = Martingale([1.0] * 50)
    for _ in range(100):
        martingale.add(1.0)
    assert martingale.highest < 1
