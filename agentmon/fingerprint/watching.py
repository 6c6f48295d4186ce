# SPDX-License-Identifier: Apache-2.0
"""A running session judged by a baseline: records in, risk levels and alerts out. No clock, no socket, no verdict."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agentmon.fingerprint import explain
from agentmon.fingerprint.baseline import ELEVATED, HIGH, Baseline
from agentmon.fingerprint.progress import Noted, Progress
from agentmon.fingerprint.tokens import Token, Tokens
from agentmon.model.records import Record

LEVELS: Final = ("normal", "elevated", "high")
#: Acts without anything that would raise the level, after which it falls by one.
DECAY: Final = 256
#: Acts that an alert may name, and from how many of the latest they are chosen.
NAMED: Final = 3
LATEST: Final = 64
#: Before anything was seen.
NO_SCORE: Final = -10.0
_DAY_NS: Final = 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class Alert:
    """The level rose. ``promised``: the rate of sessions like the baseline's that would come so far."""

    time_ns: int
    level: str
    score: float
    p: float
    promised: float
    reasons: tuple[str, ...]


class Judgement(NamedTuple):
    """A session after one record. ``score``: 1 is what the highest tenth of the baseline's sessions reach on average.

    ``trend`` is how much the score changed over the last 64 acts; ``alert`` is set where the level rose.
    """

    score: float
    p: float
    level: str
    trend: float
    acts: int
    alert: Alert | None = None


@dataclass(slots=True)
class Budget:
    """At most so many alerts a day, over all sessions; what is over is counted, and the level rises all the same."""

    a_day: int = 20
    withheld: int = 0
    _times_ns: deque[int] = field(default_factory=deque)

    def take(self, now_ns: int) -> bool:
        """Whether one more may be told."""
        times = self._times_ns
        while times and times[0] <= now_ns - _DAY_NS:
            times.popleft()
        if len(times) >= self.a_day:
            self.withheld += 1
            return False
        times.append(now_ns)
        return True


class Watcher:
    """One session under a baseline. Feed it each record; it never raises on what a record says."""

    def __init__(
        self,
        baseline: Baseline,
        *,
        workspace: str = "",
        home: str = "",
        high: float = HIGH,
        elevated: float = ELEVATED,
        budget: Budget | None = None,
    ) -> None:
        self._baseline = baseline
        self._tokens = Tokens(workspace, home)
        self._progress = baseline.follow()
        self._budget = budget or Budget(10**9)
        calibration = baseline.calibration
        # with too few sessions for a level's promise, the level stands for the best that there is
        self._thresholds = (calibration.threshold(elevated), calibration.threshold(high))
        self._promised = tuple(max(rate, calibration.least) for rate in (elevated, high))
        self.level = 0
        self._settled = 0
        self._calm = 0
        self._standard = baseline.standard
        self._of_moment, self._of_stretch = (
            (self._standard.middle[name], self._standard.spread[name]) for name in ("moment", "stretch")
        )
        self._slow, self._slow_score = -1, NO_SCORE
        self._highest, self.score, self.trend = NO_SCORE, NO_SCORE, 0.0
        self._alert: Alert | None = None
        self._history: deque[float] = deque(maxlen=LATEST)
        self._latest: deque[tuple[Token, float, float, int, tuple[int, ...]]] = deque(maxlen=LATEST)

    @property
    def thresholds(self) -> tuple[float, float]:
        """Scores above which the level is elevated, and high."""
        return self._thresholds

    def settle(self) -> None:
        """Somebody looked at it: the level is normal until the score was below, and is above once more."""
        self._settled = max(self._settled, self.level)
        self.level = self._calm = 0

    @property
    def progress(self) -> Progress:
        """The statistics so far."""
        return self._progress

    def observe(self, record: Record) -> Judgement | None:
        """Judge one record; None where it is no act of the agent."""
        return self.judgement if self.take(record) else None

    def follow(self, token: Token) -> Judgement:
        """The same of a token."""
        self._follow(token)
        return self.judgement

    def take(self, record: Record) -> bool:
        """One record, at the least cost: what came of it is in `judgement`. False where it is no act of the agent."""
        token = self._tokens.read(record)
        if token is None:
            return False
        self._follow(token)
        return True

    @property
    def judgement(self) -> Judgement:
        """Of the session after the last act."""
        p = self._baseline.calibration.p(self._highest) if self._highest > NO_SCORE else 1.0
        return Judgement(self.score, p, LEVELS[self.level], self.trend, self._progress.count, self._alert)

    def _follow(self, token: Token) -> None:
        progress, history = self._progress, self._history
        if progress.add(token) and (noted := progress.noted) is not None:
            self._latest.append(noted)
        now = progress.now
        (middle, spread), (middle_2, spread_2) = self._of_moment, self._of_stretch
        if progress.slow != self._slow:
            self._slow, self._slow_score = progress.slow, self._of_slow()
        # the score of this moment: as the session's, but not the highest
        score = max(self._slow_score, (now["moment"] - middle) / spread, (now["stretch"] - middle_2) / spread_2)
        self.score = score
        self._highest = max(self._highest, score)
        self._alert = None
        if self.level or score > self._thresholds[0]:
            self._alert = self._change(token.time_ns, score)
        elif self._settled:
            self._settled = 0
        self.trend = score - history[0] if history else 0.0
        history.append(score)

    def _of_slow(self) -> float:
        middle, spread, now = self._standard.middle, self._standard.spread, self._progress.now
        names = (name for name in ("whole", "shape", "novel", "grave") if name in self._progress.highest)
        return max(((now[name] - middle[name]) / spread[name] for name in names), default=NO_SCORE)

    def _change(self, now_ns: int, score: float) -> Alert | None:
        reached = sum(score > threshold for threshold in self._thresholds)
        if self._settled:
            self._settled = min(self._settled, reached)
            reached = reached if reached > self._settled else 0
        if reached > self.level:
            self.level, self._calm = reached, 0
            if not self._budget.take(now_ns):
                return None
            return Alert(
                now_ns, LEVELS[reached], score, self._baseline.calibration.p(score), self._promised[reached - 1],
                tuple(self.reasons()),
            )  # fmt: skip
        if reached == self.level:
            self._calm = 0
        else:
            self._calm += 1
            if self._calm >= DECAY:
                self.level, self._calm = self.level - 1, 0
        return None

    def reasons(self) -> list[str]:
        """What made the score, the strongest first: the statistics that are high, and their acts or features."""
        baseline, progress = self._baseline, self._progress
        each = baseline.standard.each({n: v for n, v in progress.now.items() if n in progress.highest})
        found: list[str] = []
        acts: list[str] = []
        groups: set[str] = set()
        latest = sorted((Noted(*fields) for fields in self._latest), key=lambda noted: -noted.bits)
        for noted in latest:
            # what is half as surprising as the first is no reason beside it
            if len(acts) < NAMED and str(noted.token) not in groups and noted.bits > latest[0].bits / 2:
                groups.add(str(noted.token))
                acts.append(explain.act(baseline.core, noted))
        for name, value in sorted(each.items(), key=lambda pair: -pair[1]):
            if value < 1 and found:
                break
            found.append(explain.statistic(name, progress.now[name], baseline))
            if name == "shape":
                found += explain.window(baseline, progress.last_window)
            else:
                found += acts
                acts = []
        return found


def odds(p: float) -> str:
    """A p-value as people say it."""
    return "as usual" if p > 0.5 else f"at most 1 in {int(1 / p + 1e-9)} sessions like the baseline's"


@dataclass(frozen=True, slots=True)
class Told:
    """A whole session, after the fact. ``scores``: after each act that was judged."""

    score: float
    acts: int
    highest: dict[str, float]
    scores: list[float]
    reasons: list[str]

    def first_over(self, threshold: float) -> int | None:
        """The place of the first token over a threshold, from 0; None if none is (or the end alone)."""
        return next((i for i, score in enumerate(self.scores) if score > threshold), None)


def retold(baseline: Baseline, tokens: Iterable[Token]) -> Told:
    """Judges a session from its start to its end; the reasons are those of its worst moment."""
    watcher = Watcher(baseline)
    scores: list[float] = []
    worst, reasons = NO_SCORE, list[str]()
    for token in tokens:
        score = watcher.follow(token).score
        scores.append(score)
        if score > worst + 0.5:
            worst, reasons = score, watcher.reasons()
    highest = watcher.progress.end()
    return Told(baseline.standard.score(highest), watcher.progress.count, highest, scores, reasons)
