# SPDX-License-Identifier: Apache-2.0
"""Sessions under a baseline: their records wait in a queue and are judged a slice at a time, off the path of answers.

No clock and no verdict: what comes out is a level of risk, and rules say what that means.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from agentmon.engine.commands import Command, Report, SetRisk, Warn
from agentmon.engine.sessions import Session
from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.watching import DECAY, LATEST, LEVELS, Alert, Budget, Judgement, Watcher, odds
from agentmon.model.conditions import Risk
from agentmon.model.records import Record

#: Records that may wait to be judged, of all sessions; what comes then is not judged, and counted.
QUEUED: Final = 20_000
_KINDS: Final = ("decision", "process", "step")
_LEVELS: Final = {risk.word: risk for risk in Risk}


@dataclass(slots=True)
class Watched:
    """A session under a baseline."""

    session: Session
    baseline: Baseline
    watcher: Watcher
    alert: Alert | None = None
    """Why the level rose last."""

    def as_json(self) -> dict[str, Any]:
        """For who may know how far the session is: never who is fenced, which could steer by it."""
        last = self.watcher.judgement if self.watcher.progress.count else None
        alert = self.alert
        return {
            "profile": self.baseline.name, "revision": self.baseline.body.revision,
            "score": round(last.score, 3) if last else None, "trend": round(last.trend, 3) if last else None,
            "p": last.p if last else None, "acts": last.acts if last else 0, "level": LEVELS[self.watcher.level],
            "thresholds": {"elevated": self.watcher.thresholds[0], "high": self.watcher.thresholds[1]},
            "rose": {
                "time_ns": alert.time_ns, "level": alert.level, "score": round(alert.score, 3),
                "reasons": list(alert.reasons),
            } if alert else None,
        }  # fmt: skip


class Risks:
    """All that are watched. ``a_day``: alerts that the owner of sessions is told in a day, over all of them."""

    def __init__(self, a_day: int, elevated: float, high: float) -> None:
        self._a_day = a_day
        self._rates = elevated, high
        self._watched: dict[str, Watched] = {}
        self._queue: deque[Record | Watched] = deque()  # a session itself: it has ended
        self._budgets: dict[int, Budget] = {}  # by owner: nobody uses up the alerts on somebody else's agents
        self.unjudged = 0

    def of(self, session_id: str) -> Watched | None:
        """The session of this id, if it is watched."""
        return self._watched.get(session_id)

    def watch(
        self,
        session: Session,
        baseline: Baseline,
        home: str,
        *,
        before: Iterable[Record] = (),
        level: Risk = Risk.NORMAL,
    ) -> Watched:
        """Watch a session from now on. ``before``: what it did under an earlier daemon, which ended at `level`."""
        elevated, high = self._rates
        watcher = Watcher(baseline, workspace=session.workspace, home=home, elevated=elevated, high=high)
        watched = self._watched[session.id] = Watched(session, baseline, watcher)
        for record in before:
            if record.kind in _KINDS and (found := watcher.observe(record)) is not None:
                watched.alert = found.alert or watched.alert
        watcher.level = int(level)
        return watched

    def ended(self, session_id: str) -> None:
        """A session is over: forget it when all that it did is judged."""
        if watched := self._watched.get(session_id):
            self._queue.append(watched)

    def floor(self, session: Session, level: Risk) -> Risk:
        """The operator said so: it never is less. What the watcher found until now is settled. Returns what it is."""
        session.floor = level.word
        if watched := self._watched.get(session.id):
            watched.watcher.settle()
        return level

    def add(self, records: Iterable[Record]) -> None:
        """What happened, in order."""
        watched = self._watched
        if not watched:
            return
        queue = self._queue
        for record in records:
            if record.session in watched and record.kind in _KINDS:
                if len(queue) < QUEUED:
                    queue.append(record)
                else:
                    self.unjudged += 1

    @property
    def waiting(self) -> bool:
        """Whether there is more to judge."""
        return bool(self._queue)

    def turn(self, most: int) -> list[Command]:
        """Judge so many records, and say what comes of it."""
        commands: list[Command] = []
        queue, all_ = self._queue, self._watched
        for _ in range(min(most, len(queue))):
            record = queue.popleft()
            if isinstance(record, Watched):
                if all_.get(record.session.id) is record:
                    del all_[record.session.id]
                continue
            watched = all_.get(record.session)
            if watched is None:
                continue
            watcher = watched.watcher
            before = watcher.level
            if watcher.take(record) and watcher.level != before:
                commands += self._changed(watched, before, record, watcher.judgement)
        return commands

    def _changed(self, watched: Watched, before: int, act: Record, found: Judgement) -> list[Command]:
        session, name = watched.session, watched.baseline.name
        risk = max(Risk(watched.watcher.level), _LEVELS[session.floor])
        commands: list[Command] = []
        if risk.word != session.risk:
            session.risk = risk.word
            commands.append(SetRisk(session, risk))
        stays = "" if risk == watched.watcher.level else f"; the operator keeps it {risk.word}"
        moved = f"{found.level}, was {LEVELS[before]}{stays}"
        base = Record(act.time_ns, "session", session.id, uid=session.uid, operation="risk")
        alert = found.alert
        if alert is None:
            return [*commands, Report(base._replace(detail=f"{moved}, by `{name}`: {DECAY} usual acts"))]
        watched.alert = alert
        budget = self._budgets.setdefault(session.uid, Budget(self._a_day))
        told = budget.take(act.time_ns)
        record = base._replace(
            pid=act.pid, start_ns=act.start_ns, comm=act.comm, flags="" if told else "quiet",
            detail=(
                f"{moved}, by `{name}`: score {alert.score:.1f} ({found.trend:+.1f} in {LATEST} acts), {odds(alert.p)}"
            ),
            reason="; ".join(alert.reasons),
        )  # fmt: skip
        session.rose = record
        commands.append(Report(record))
        if told:
            commands.append(Warn(session, record))
        return commands

    @property
    def withheld(self) -> int:
        """Alerts that were over the budget."""
        return sum(budget.withheld for budget in self._budgets.values())
