# SPDX-License-Identifier: Apache-2.0
"""Counterfactual: what a policy would have said to each action of a recorded session."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agentmon.model.operations import Action, Reason
from agentmon.model.tables import NO_RULE
from agentmon.policy.bind import BoundPolicy, BoundRule
from agentmon.policy.evaluate import Evaluator, Verdict
from agentmon.policy.recorded import RecordedAction, RecordedSession


class Change(enum.StrEnum):
    """How a verdict differs from the recorded one."""

    BLOCKED = "newly blocked"
    ALLOWED = "no longer blocked"
    OTHER = "otherwise different"
    UNKNOWN = "unknown"
    SAME = "unchanged"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One recorded action under another policy. ``verdict`` None: it cannot be known, `why` says what lacks."""

    action: RecordedAction
    records: int
    change: Change
    verdict: Action | None
    rule: str = ""
    source: str = ""
    why: str = ""


class Replay:
    """Judges recorded actions by one policy."""

    def __init__(self, bound: BoundPolicy) -> None:
        self.bound = bound
        self._evaluator = Evaluator(bound)
        self._infos = bound.infos()

    def judge(self, action: RecordedAction) -> Verdict | None:
        """The verdict; None if it hangs on a program that is not known, or was not reached by name."""
        if not action.by_name:
            return None
        if action.exe is not None and not self.bound.conditions:
            tags = self._evaluator.exe_tags(action.exe)
            for rule in self._matches(action, tags):
                return Verdict(rule.action, rule.index, Reason.RULE)
            return Verdict(self.bound.defaults[action.operation])
        return self._whatever_runs(action)

    def outcomes(self, actions: Iterable[tuple[RecordedAction, int]]) -> list[Outcome]:
        """Each action with what would become of it, what is newly blocked first."""
        found = [self._outcome(action, records) for action, records in actions]
        order = list(Change)
        return sorted(found, key=lambda o: order.index(o.change))

    def session(self, session: RecordedSession) -> list[Outcome]:
        """All of a session."""
        return self.outcomes(session.actions.items())

    def _outcome(self, action: RecordedAction, records: int) -> Outcome:
        verdict = self.judge(action)
        if verdict is None:
            why = "it was not judged by its name"
            if action.by_name:
                known = action.exe is not None
                why = "the log does not tell the conditions" if known else "the program that it ran is not known"
            return Outcome(action, records, Change.UNKNOWN, None, why=why)
        was, would = action.verdict, verdict.action
        change = Change.SAME if was == would else Change.OTHER
        if was.blocks != would.blocks:
            change = Change.BLOCKED if would.blocks else Change.ALLOWED
        if verdict.rule == NO_RULE:
            return Outcome(action, records, change, would, why="no rule matches")
        info = self._infos[verdict.rule]
        return Outcome(action, records, change, would, info.id, info.source, info.reason)

    def _matches(self, action: RecordedAction, tags: int) -> Iterator[BoundRule]:
        operation, target = action.operation, action.target
        if target is None:
            return self._evaluator.bare_matches(operation, tags, None)
        if isinstance(target, bytes):
            return self._evaluator.path_matches(operation, target, tags, None)
        return self._evaluator.net_matches(operation, *target, tags, action.host, None)

    def _whatever_runs(self, action: RecordedAction) -> Verdict | None:
        """The verdict, if it is the same whatever program runs (where that is not known) and whoever acts."""
        # A rule hangs on one set of programs at most on either side: with no tag, or with one, each has its chance.
        worlds = [0, *(1 << bit for bit in range(len(self.bound.exe_sets)))]
        if action.exe is not None:
            worlds = [self._evaluator.exe_tags(action.exe)]
        chances = {r.index: r for tags in worlds for r in self._matches(action, tags)}
        said = []
        for _, rule in sorted(chances.items()):
            said.append(Verdict(rule.action, rule.index, Reason.RULE))
            if not (rule.need or rule.need_not) and (action.exe is not None or rule.for_anyone):
                break
        else:
            said.append(Verdict(self.bound.defaults[action.operation]))
        return said[-1] if len({verdict.action for verdict in said}) == 1 else None


def summary(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many distinct actions of each kind of change, zeros included."""
    counts = Counter(outcome.change for outcome in outcomes)
    return {change.value: counts[change] for change in Change}
