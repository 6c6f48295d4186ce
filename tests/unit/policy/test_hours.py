# SPDX-License-Identifier: Apache-2.0
"""Hours of the week, by the clock on the wall."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from agentmon.policy.hours import HORIZON_DAYS, holds, parse_hours, parse_moment, spans

WEEK = "Mon-Fri 09:00-18:00 Europe/Berlin"


@pytest.mark.parametrize(
    ("hours", "moment", "inside"),
    [
        (WEEK, "2026-03-27 08:59 Europe/Berlin", False),  # a Friday
        (WEEK, "2026-03-27 09:00 Europe/Berlin", True),
        (WEEK, "2026-03-27 08:00 UTC", True),  # winter: one hour apart
        (WEEK, "2026-03-30 07:00 UTC", True),  # summer: two
        (WEEK, "2026-03-30 06:59 UTC", False),
        (WEEK, "2026-03-27 18:00 Europe/Berlin", False),
        (WEEK, "2026-03-28 12:00 Europe/Berlin", False),
        ("22:00-06:00 UTC", "2026-03-28 23:00", True),
        ("22:00-06:00 UTC", "2026-03-28 05:59", True),
        ("22:00-06:00 UTC", "2026-03-28 06:00", False),
        ("Sat 22:00-06:00 UTC", "2026-03-29 05:00", True),  # begun on Saturday
        ("Sat 22:00-06:00 UTC", "2026-03-28 05:00", False),
        ("Fri-Mon 00:00-24:00 UTC", "2026-03-29 05:00", True),
        ("Fri-Mon 00:00-24:00 UTC", "2026-03-31 05:00", False),
        ("sat,Sun 00:00-24:00 UTC", "2026-03-29 23:59", True),
    ],
)
def test_a_moment_is_inside_or_not(hours: str, moment: str, inside: bool) -> None:
    assert holds(parse_hours(hours), parse_moment(moment)) is inside


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9-18", "`9-18` is not a time; write such as"),
        ("09:00-18:00", "`09:00-18:00` names no time zone; write such as"),
        ("09:00-25:00 UTC", "`09:00-25:00 UTC`: `25:00` is not on the clock"),
        ("09:60-12:00 UTC", "`09:60-12:00 UTC`: `09:60` is not on the clock"),
        ("Mo 09:00-12:00 UTC", "`Mo 09:00-12:00 UTC`: `Mo` is not a day"),
        ("09:00-09:00 UTC", "`09:00-09:00 UTC` is no time at all; a whole day is `00:00-24:00 UTC`"),
        ("09:00-12:00 Europe/Berlim", "`Europe/Berlim` is not a time zone that this host knows"),
        ("09:00-12:00 ../passwd", "`../passwd` is not a time zone"),
    ],
)
def test_what_is_no_time_is_refused_with_a_remedy(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="`") as caught:
        parse_hours(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("seed", range(30))
def test_the_spans_say_what_each_moment_says(seed: int) -> None:
    """Over the nights in which clocks change, in several zones at once."""
    rng = random.Random(seed)
    texts = [
        WEEK, "01:30-02:30 Europe/Berlin", "02:15-03:15 America/New_York", "Sun 02:30-02:45 Europe/Berlin",
        "23:00-02:30 Australia/Lord_Howe", "00:00-24:00 Pacific/Kiritimati", "Sat 00:00-24:00 Pacific/Pago_Pago",
    ]  # fmt: skip
    some = [parse_hours(t) for t in rng.sample(texts, rng.randint(1, 3))]

    def facts(when_s: float) -> int:
        return sum(1 << i for i, each in enumerate(some) if holds(each, when_s))

    start = parse_moment(rng.choice(["2026-03-27 12:34", "2026-10-24 01:00", "2026-11-01 00:00", "2026-04-04 03:00"]))
    found = spans(facts, some, start, 16)
    assert len(found) <= 16
    at = start
    for until, true in found:
        assert until > at
        for _ in range(20):
            assert facts(rng.uniform(at, until - 0.001)) == true
        assert facts(at) == true
        assert facts(until - 0.001) == true
        at = until
    assert all(one[1] != other[1] for one, other in pairwise(found))


def test_what_never_changes_is_known_for_weeks() -> None:
    always = parse_hours("00:00-24:00 UTC")
    start = parse_moment("2026-01-01 00:00")
    ((until, true),) = spans(lambda when: int(holds(always, when)), [always], start, 16)
    assert true == 1
    assert until >= start + (HORIZON_DAYS - 1) * 86_400
