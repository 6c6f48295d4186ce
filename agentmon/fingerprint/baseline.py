# SPDX-License-Identifier: Apache-2.0
"""What is normal for one agent: loaded from a file, and asked how far a session is from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean

from agentmon.errors import AgentmonError
from agentmon.fingerprint.conformal import Calibration, Martingale
from agentmon.fingerprint.document import Body, SessionData, digest
from agentmon.fingerprint.network import Network
from agentmon.fingerprint.progress import STATISTICS, Core, Progress
from agentmon.fingerprint.sequence import FOLDS, Counts, Model, Vocabulary
from agentmon.fingerprint.tokens import Token
from agentmon.fingerprint.window import Shape

#: The spread of a statistic is at least that, in its own unit: sessions may all be alike.
LEAST_SPREAD = {"moment": 1.0, "stretch": 0.1, "whole": 0.5, "shape": 0.5, "novel": 1.0, "grave": 1.0}
#: Sessions whose mean is the spread's end, at least: of few, the highest tenth is one.
TOP = 3
#: Rates of false alerts per session of the two levels.
ELEVATED, HIGH = 0.05, 0.01


@dataclass(frozen=True, slots=True)
class Standard:
    """Middle and spread of each statistic over sessions of the baseline: makes them comparable.

    The spread reaches to the mean of the highest tenth: a statistic that seldom is very high must not set the threshold
    of the others. ``nine``: what nine of ten sessions stay below.
    """

    middle: dict[str, float]
    spread: dict[str, float]
    nine: dict[str, float]

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> Standard:
        """From the highest values of sessions that the model did not see."""
        middle, spread, nine = {}, {}, {}
        for place, name in enumerate(STATISTICS):
            values = sorted(row[place] for row in rows)
            middle[name] = values[len(values) // 2]
            nine[name] = values[min(len(values) - 1, (9 * len(values)) // 10)]
            spread[name] = max(fmean(values[-max(TOP, -(-len(values) // 10)) :]) - middle[name], LEAST_SPREAD[name])
        return cls(middle, spread, nine)

    def each(self, values: dict[str, float]) -> dict[str, float]:
        """1: as high as the highest tenth of sessions is on average."""
        return {name: (value - self.middle[name]) / self.spread[name] for name, value in values.items()}

    def score(self, values: dict[str, float]) -> float:
        """The highest of them."""
        return max(self.each(values).values(), default=0.0)


@dataclass(slots=True)
class Baseline:
    """A baseline, ready to judge."""

    body: Body
    sha256: str
    core: Core
    shape: Shape
    standard: Standard
    calibration: Calibration
    _anchor: Baseline | None = field(default=None)

    @classmethod
    def of(cls, body: Body, sha256: str = "", *, only: int | None = None) -> Baseline:
        """Counts the tables of a body; ``only`` of the first so many sessions. Raises `AgentmonError`."""
        sessions = body.sessions[:only]
        groups = Vocabulary(body.groups)
        counts = Counts()
        details: dict[str, Counter[str]] = {}
        for session in sessions:
            counts.add(session.groups)
            count_details(details, body, session)
        network = None
        if body.network is not None:
            try:
                network = Network.unpack(body.network.kinds, [(a.shape, a.data) for a in body.network.arrays])
                if body.network.kinds != len(body.groups) + 1:
                    raise ValueError("the network knows other groups than the baseline")
            except ValueError as error:
                raise AgentmonError(f"baseline `{body.name}`: {error}; train it again") from None
        usual = tuple(body.usual) if network is not None else (*body.usual[:2], (0.0, 0.0))
        core = Core(groups, Model(counts, body.weights), details, body.mean, network, usual)
        core.part = (FOLDS - 1) / FOLDS
        for session in sessions:
            core.count(pairs_of(body, session))
        shape = Shape(tuple(body.middle), tuple(body.scale), tuple(map(tuple, body.precision)))
        rows = [session.highest for session in sessions]
        standard = Standard.of(rows)
        scores = [standard.score(dict(zip(STATISTICS, row, strict=True))) for row in rows]
        if not all(map(isfinite, scores)):
            raise AgentmonError(f"baseline `{body.name}`: its calibration is no number; train it again")
        return cls(body, sha256 or digest(body.model_dump(mode="json")), core, shape, standard, Calibration(scores))

    @property
    def name(self) -> str:
        """Its name."""
        return self.body.name

    @property
    def anchor(self) -> Baseline:
        """The same, of the sessions first accepted alone: what drift is measured from."""
        if self.body.anchored == len(self.body.sessions):
            return self
        if self._anchor is None:
            self._anchor = Baseline.of(self.body, self.sha256, only=self.body.anchored)
        return self._anchor

    def keep_anchor(self, anchor: Baseline) -> None:
        """Spares counting the anchor's tables again: they are the same for each revision."""
        if self.body.anchored != len(self.body.sessions):
            self._anchor = anchor

    def follow(self) -> Progress:
        """A new session."""
        return Progress(self.core, self.shape)

    def highest(self, tokens: Iterable[Token]) -> dict[str, float]:
        """The highest value of each statistic over a whole session."""
        progress = self.follow()
        for token in tokens:
            progress.add(token)
        return progress.end()

    def score(self, tokens: Iterable[Token]) -> float:
        """How far a whole session is from the baseline."""
        return self.standard.score(self.highest(tokens))

    def drift(self) -> Martingale:
        """The bets on the sessions accepted since the first ones."""
        martingale = Martingale(self.anchor.calibration.scores)
        for score in self.body.later:
            martingale.add(score)
        return martingale


def count_details(details: dict[str, Counter[str]], body: Body, session: SessionData) -> None:
    """Counts the details of a stored session within their groups."""
    for group, detail in zip(session.groups, session.details, strict=True):
        if detail:
            details.setdefault(body.groups[group - 1], Counter())[body.details[detail - 1]] += 1


def pairs_of(body: Body, session: SessionData) -> Iterable[tuple[str, str]]:
    """The groups of a stored session, each with its detail."""
    for group, detail in zip(session.groups, session.details, strict=True):
        yield body.groups[group - 1], body.details[detail - 1] if detail else ""
