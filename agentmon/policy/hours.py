# SPDX-License-Identifier: Apache-2.0
"""Hours of the week, as policies write them, and when they begin and end in the hours to come."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from datetime import time as clock_time
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from agentmon.model.conditions import Hours

DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_FORM: Final = re.compile(
    r"(?:(?P<days>[A-Za-z,-]+) +)?(?P<from>\d\d):(?P<past>\d\d)-(?P<to>\d\d):(?P<after>\d\d) +(?P<zone>\S+)"
)
_DAY_MINUTES: Final = 24 * 60


def parse_hours(text: str) -> Hours:
    """``Mon-Fri 09:00-18:00 Europe/Berlin``, ``Sat,Sun 22:00-06:00 UTC``, ``00:00-06:30 UTC`` (every day).

    What ends before it begins goes on past midnight, and is of the day that it began on.

    Raises:
        ValueError: not such a text; the message says what to write.
    """
    form = _FORM.fullmatch(text)
    if not form:
        what = "names no time zone" if _FORM.fullmatch(f"{text} UTC") else "is not a time"
        raise ValueError(f"`{text}` {what}; write such as `Mon-Fri 09:00-18:00 Europe/Berlin`")
    start, end = _minutes(text, form["from"], form["past"]), _minutes(text, form["to"], form["after"])
    if start in (end, _DAY_MINUTES):
        raise ValueError(f"`{text}` is no time at all; a whole day is `00:00-24:00 UTC`")
    return Hours(_days(text, form["days"]), start, end, _zone(form["zone"]).key)


def holds(hours: Hours, when_s: float) -> bool:
    """Whether a moment (seconds since 1970) is inside, by the clock on the wall there."""
    there = datetime.fromtimestamp(when_s, _zone(hours.zone))
    minute = there.hour * 60 + there.minute
    if hours.start < hours.end:
        return there.weekday() in hours.days and hours.start <= minute < hours.end
    if minute >= hours.start:
        return there.weekday() in hours.days
    return minute < hours.end and (there.weekday() - 1) % 7 in hours.days


def spans(facts: Callable[[float], int], hours: Iterable[Hours], now_s: float, most: int) -> list[tuple[float, int]]:
    """What is true from now on: (until when, the facts until then), at most that many, for some weeks at most."""
    some = tuple(hours)
    found: list[tuple[float, int]] = []
    current = facts(now_s)
    end = now_s
    for day in range(HORIZON_DAYS):
        start = now_s + day * 86_400
        for moment in sorted(set(_moments(some, start))):
            if not start < moment <= start + 86_400:
                continue
            end = moment
            after = facts(moment)
            if after != current:
                found.append((moment, current))
                current = after
                if len(found) == most:
                    return found
    return [*found, (end, current)]


#: How far ahead the kernel is told.
HORIZON_DAYS: Final = 35


def _moments(hours: Iterable[Hours], around_s: float) -> Iterator[float]:
    """All moments of a day (of 24 hours from there) at which something may begin or end."""
    for each in hours:
        zone = _zone(each.zone)
        first = datetime.fromtimestamp(around_s, zone)
        last = datetime.fromtimestamp(around_s + 86_400, zone)
        for i in range((last.date() - first.date()).days + 1):
            date = first.date() + timedelta(days=i)
            for minutes in (each.start % _DAY_MINUTES, each.end % _DAY_MINUTES, 0):
                for fold in (0, 1):  # an hour that comes twice; one that never comes has another moment, found below
                    clock = clock_time(minutes // 60, minutes % 60, fold=fold)
                    yield datetime.combine(date, clock, zone).timestamp()
        if first.utcoffset() != last.utcoffset():
            yield _change(zone, around_s, around_s + 86_400)


def _change(zone: ZoneInfo, low: float, high: float) -> float:
    """The whole second at which the zone's clocks change, between two moments."""
    before = datetime.fromtimestamp(low, zone).utcoffset()
    left, right = int(low), int(high) + 1
    while right - left > 1:
        middle = (left + right) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == before:
            left = middle
        else:
            right = middle
    return float(right)


def _minutes(text: str, hour: str, minute: str) -> int:
    total = int(hour) * 60 + int(minute)
    if int(minute) > 59 or total > _DAY_MINUTES:
        raise ValueError(f"`{text}`: `{hour}:{minute}` is not on the clock; write `00:00` to `24:00`")
    return total


def _days(text: str, words: str | None) -> tuple[int, ...]:
    if words is None:
        return tuple(range(7))
    found: set[int] = set()
    for part in words.split(","):
        first, _, last = part.partition("-")
        ends = [_day(text, word) for word in (first, last or first)]
        found.update((ends[0] + i) % 7 for i in range((ends[1] - ends[0]) % 7 + 1))
    return tuple(sorted(found))


def _day(text: str, word: str) -> int:
    if word.capitalize() not in DAYS:
        raise ValueError(f"`{text}`: `{word}` is not a day; write `Mon`, `Tue`, … `Sun`, or `Mon-Fri`")
    return DAYS.index(word.capitalize())


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(
            f"`{name}` is not a time zone that this host knows; write such as `Europe/Berlin` or `UTC`"
        ) from None


def parse_moment(text: str) -> float:
    """``2026-03-29 02:30 Europe/Berlin``: seconds since 1970. For tests and explanations.

    Raises:
        ValueError: not such a text.
    """
    form = re.fullmatch(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d)(?: +(\S+))?", text)
    if not form:
        raise ValueError(f"`{text}` is not a moment; write such as `2026-03-30 09:00 Europe/Berlin`")
    wall = datetime.fromisoformat(form[1])
    return wall.replace(tzinfo=_zone(form[2]) if form[2] else UTC).timestamp()
