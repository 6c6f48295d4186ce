# SPDX-License-Identifier: Apache-2.0
"""From scores to promises: conformal prediction.

If a new session is exchangeable with the n sessions that a baseline was calibrated on, its score is above all but k -
1 of theirs with probability at most k / (n + 1), whatever scores are (Vovk, Gammerman and Shafer, *Algorithmic
Learning in a Random World*, 2005). So n sessions cannot promise less than one false alert in n + 1 sessions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from math import exp, floor, inf, log
from typing import Final


class Calibration:
    """Scores of sessions that the model did not see."""

    def __init__(self, scores: Iterable[float]) -> None:
        self.scores = sorted(scores)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def least(self) -> float:
        """The lowest rate of false alerts that can be promised."""
        return 1 / (len(self.scores) + 1)

    def p(self, score: float) -> float:
        """How often a session of the baseline would score so high or higher, at most."""
        return (1 + len(self.scores) - bisect_left(self.scores, score)) / (len(self.scores) + 1)

    def rank(self, rate: float) -> int:
        """How many of the n + 1 sessions, the new one among them, may score over the threshold; 0: no such promise."""
        return floor(rate * (len(self.scores) + 1) + 1e-9)

    def threshold(self, rate: float) -> float:
        """A session alerts when it scores *more*. Of too few sessions: the threshold for `least`."""
        if not self.scores:
            return inf
        rank = max(1, self.rank(rate))
        return self.scores[-rank] if rank <= len(self.scores) else -inf


#: Powers of the bets; the capital is shared between them.
_BETS: Final = (0.1, 0.25, 0.4, 0.6, 0.8)


class Martingale:
    """Capital of somebody who bets against "sessions are still like those of the baseline" (power martingales, mixed).

    It stays below c for ever with probability 1 - 1/c as long as that is true (Ville's inequality), and grows when
    low values of p come more often than they should, be each of them harmless: that is how slow drift shows.
    Each p is of a score among all those before it, so it hangs on none of them.
    """

    def __init__(self, scores: Iterable[float]) -> None:
        self._scores = sorted(scores)
        self._logs = [0.0] * len(_BETS)
        self.highest = 0.0  # natural logarithm

    def add(self, score: float) -> float:
        """One more session. Returns the logarithm of the capital now."""
        at = bisect_left(self._scores, score)
        same = 0
        while at + same < len(self._scores) and self._scores[at + same] == score:
            same += 1
        over = len(self._scores) - at - same
        p = (over + 0.5 * (same + 1)) / (len(self._scores) + 1)  # the middle of ties: no randomness in a verdict
        self._scores.insert(at, score)
        self._logs = [old + log(e) + (e - 1) * log(p) for old, e in zip(self._logs, _BETS, strict=True)]
        top = max(self._logs)
        total = sum(exp(value - top) for value in self._logs)
        now = top + log(total / len(_BETS))
        self.highest = max(self.highest, now)
        return now
