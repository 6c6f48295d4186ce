# SPDX-License-Identifier: Apache-2.0
"""Tells the kernel what the time says, ahead: it then follows the hours of rules alone, also while no daemon runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Protocol

from agentmon.model.conditions import MAX_SPANS, Condition, During
from agentmon.policy.hours import spans
from agentmon.policy.situation import during

#: How often it is told anew, that it always knows some time ahead.
EVERY_S: Final = 3600.0
#: The wall clock was set if it moved this much against the boot clock. Slewing (NTP) stays below it, and adds up.
SET_S: Final = 0.5


class ClockMaps(Protocol):
    """What is needed of the monitor."""

    def set_clock(self, slot: int, spans: Sequence[tuple[int, int]]) -> None: ...


class Clocks:
    """The hours of all installed policies."""

    def __init__(self) -> None:
        self._policies: dict[int, dict[int, During]] = {}  # slot -> bit -> hours
        self._told_s = 0.0
        self._apart_s = 0.0

    def start(self, maps: ClockMaps, slot: int, conditions: Sequence[Condition]) -> None:
        """A policy is installed, or was found so."""
        some = {i: c for i, c in enumerate(conditions) if isinstance(c, During)}
        if some:
            self._policies[slot] = some
            self._tell(maps, slot)

    def stop(self, slot: int) -> None:
        """A policy is gone."""
        self._policies.pop(slot, None)

    def wind(self, maps: ClockMaps) -> None:
        """Tell the kernel anew, if the clock was set or it is time to."""
        if not self._policies:
            return
        late = time.monotonic() - self._told_s > EVERY_S
        if late or abs(_apart_s() - self._apart_s) > SET_S:
            for slot in self._policies:
                self._tell(maps, slot)

    def _tell(self, maps: ClockMaps, slot: int) -> None:
        conditions = self._policies[slot]

        def facts(when_s: float) -> int:
            return sum(1 << bit for bit, condition in conditions.items() if during(condition, when_s))

        hours = [each for condition in conditions.values() for each in condition.hours]
        apart_s = _apart_s()
        now_s = time.time()
        found = spans(facts, hours, now_s, MAX_SPANS)
        # up, so that no span ends before its second of the wall clock has come
        maps.set_clock(slot, [(int((until - apart_s) * 1e9) + 1, true) for until, true in found])
        self._told_s, self._apart_s = time.monotonic(), apart_s


def _apart_s() -> float:
    """The wall clock less the boot clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
