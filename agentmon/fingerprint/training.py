# SPDX-License-Identifier: Apache-2.0
"""From sessions to a baseline. Each session is scored by a model that never saw it; that calibrates all."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from agentmon import __version__
from agentmon.errors import AgentmonError
from agentmon.fingerprint import fitting
from agentmon.fingerprint.baseline import HIGH, Baseline
from agentmon.fingerprint.document import Agent, ArrayData, Body, Checked, NetworkData, SessionData
from agentmon.fingerprint.network import LEAST_SESSIONS as NETWORK_SESSIONS
from agentmon.fingerprint.network import LEAST_TOKENS as NETWORK_TOKENS
from agentmon.fingerprint.network import Network
from agentmon.fingerprint.network import train as train_network
from agentmon.fingerprint.progress import STATISTICS, WHOLE, Core, Progress, without_runs
from agentmon.fingerprint.sequence import FOLDS, Counts, Model, Vocabulary, fold_of, learn
from agentmon.fingerprint.tokens import Token
from agentmon.fingerprint.window import STEP, WINDOW, Shape

#: What training needs at least; below, scores of held-out sessions say nothing.
LEAST_SESSIONS = 10
LEAST_TOKENS = 1000
LEAST_WINDOWS = 20
#: Different acts: else the recording, not the agent, is what would be learnt.
LEAST_GROUPS = 5
#: A session shorter than that is not one.
LEAST_OF_SESSION = 8
PROMISED = (0.01, 0.05, 0.1, 0.2)

Say = Callable[[str], None]
Tier = Literal["", "lsm", "react"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """One session to learn from."""

    id: str
    tokens: list[Token]

    @property
    def seconds(self) -> float:
        """From its first token to its last."""
        return max(0.0, (self.tokens[-1].time_ns - self.tokens[0].time_ns) / 1e9) if self.tokens else 0.0


def windows_of(session: Recorded) -> int:
    """How many windows a session has."""
    return max(0, (len(session.tokens) - WINDOW) // STEP + 1)


def to_go(sessions: Sequence[Recorded]) -> tuple[int, int]:
    """(sessions, windows) that a new agent still has to be watched for before a baseline can be made."""
    windows = sum(windows_of(s) for s in sessions)
    usable = sum(len(s.tokens) >= LEAST_OF_SESSION for s in sessions)
    return max(0, LEAST_SESSIONS - usable), max(0, LEAST_WINDOWS - windows)


def check_enough(sessions: Sequence[Recorded]) -> None:
    """Raises `AgentmonError` that says how much is needed."""
    usable = [s for s in sessions if len(s.tokens) >= LEAST_OF_SESSION]
    tokens = sum(len(s.tokens) for s in usable)
    if len(usable) < LEAST_SESSIONS:
        raise AgentmonError(
            f"{len(usable)} sessions of {LEAST_OF_SESSION} or more acts are too few to learn from: it takes"
            f" {LEAST_SESSIONS}, and {round(1 / HIGH) - 1} to promise one false alert in {round(1 / HIGH)} sessions;"
            f" record {LEAST_SESSIONS - len(usable)} more"
        )
    if tokens < LEAST_TOKENS:
        raise AgentmonError(
            f"{tokens:,} acts in {len(usable)} sessions are too few to learn from: it takes {LEAST_TOKENS:,};"
            " record more, or longer, sessions"
        )
    windows = to_go(usable)[1]
    if windows:
        raise AgentmonError(
            f"the sessions are too short: it takes {windows} more windows of 64 acts; record longer sessions"
        )
    groups = {t.group for s in usable for t in s.tokens}
    if len(groups) < LEAST_GROUPS:
        raise AgentmonError(
            f"these sessions are constant: {len(groups)} different kinds of act, it takes {LEAST_GROUPS};"
            " record the agent at work"
        )
    distinct = {tuple((t.group, t.detail) for t in s.tokens) for s in usable}
    if len(distinct) < LEAST_SESSIONS:
        raise AgentmonError(
            f"only {len(distinct)} of these {len(usable)} sessions differ from each other: copies teach nothing;"
            f" it takes {LEAST_SESSIONS}"
        )


def train(
    name: str,
    sessions: Sequence[Recorded],
    *,
    agent: Agent | None = None,
    tier: Tier = "",
    network: bool = False,
    check: bool = True,
    say: Say = lambda _: None,
) -> Baseline:
    """A new baseline.

    ``tier``: that all sessions were recorded in, if it was one. ``network``: with a second model of sequences (needs
    numpy to score, too). ``check``: hold a quarter of the sessions out once more, to see whether the promise holds.
    Raises `AgentmonError` where the data is not enough.
    """
    check_enough(sessions)
    fitting.need_sklearn()
    usable = [s for s in sessions if len(s.tokens) >= LEAST_OF_SESSION]
    checked: list[Checked] = []
    if check and len(usable) * 3 // 4 >= LEAST_SESSIONS:
        say("checking the promise on sessions held out")
        checked = _check(name, usable, network)
    fitted = _fit(usable, network, say)
    return Baseline.of(fitted.body(name, agent, checked, tier))


@dataclass(slots=True)
class _Fitted:
    """All parts of a baseline."""

    sessions: list[SessionData]
    groups: Vocabulary
    details: list[str]
    weights: list[list[float]]
    mean: float
    usual: list[tuple[float, float]]
    shape: Shape
    network: Network | None

    def body(self, name: str, agent: Agent | None, checked: list[Checked], tier: Tier = "") -> Body:
        packed = None
        if self.network is not None:
            data = self.network.pack()
            packed = NetworkData(kinds=data["kinds"], arrays=[ArrayData(**a) for a in data["arrays"]])
        return Body(
            name=name, revision=1, created=f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}", agentmon=__version__,
            agent=agent, tier=tier, groups=self.groups.names[1:], details=self.details, sessions=self.sessions,
            anchored=len(self.sessions), anchor=None, later=[], weights=self.weights, mean=self.mean, usual=self.usual,
            middle=list(self.shape.middle), scale=list(self.shape.scale), network=packed, checked=checked,
            precision=[list(row) for row in self.shape.precision],
        )  # fmt: skip


def _fit(sessions: Sequence[Recorded], with_network: bool, say: Say) -> _Fitted:
    groups, details = Vocabulary(), Vocabulary()
    plain = [without_runs(s.tokens) for s in sessions]
    sequences = [[groups.add(t.group) for t in tokens] for tokens in plain]
    say(f"learning sequences of {sum(map(len, sequences)):,} acts in {len(sessions)} sessions")
    weights, counted = learn(sequences, FOLDS)
    fold = [fold_of(i, len(sessions), FOLDS) for i in range(len(sessions))]
    nets: list[Network | None] = [None] * FOLDS
    final = None
    if with_network and len(sessions) >= NETWORK_SESSIONS and sum(map(len, sequences)) >= NETWORK_TOKENS:
        say("training the network, three times: two of them for its calibration")
        middle = -(-len(sequences) // 2)
        halves = [train_network(other, len(groups.names)) for other in (sequences[middle:], sequences[:middle])]
        nets = [halves[2 * one // FOLDS] for one in range(FOLDS)]
        final = train_network(sequences, len(groups.names))
    elif with_network:
        say(f"too little for a network ({NETWORK_SESSIONS} sessions, {NETWORK_TOKENS:,} acts): none is trained")
    cores = _cores(plain, fold, groups, weights, counted, nets)
    say("scoring each session by a model that never saw it")
    first = [_run(cores[fold[i]], None, s.tokens) for i, s in enumerate(sessions)]
    mean = fmean(b for bits, _, _ in first for b in bits)
    usual = [_usual([means[i] for _, means, _ in first]) if i < 2 or final else (0.0, 0.0) for i in range(len(WHOLE))]
    for core in cores:
        core.mean, core.usual = mean, tuple(usual)
    windows = [cuts for _, _, cuts in first]
    say(f"learning the shape of {sum(map(len, windows)):,} windows")
    shapes = [
        fitting.fit_shape([w for i, cuts in enumerate(windows) if fold[i] != one for w in cuts]) for one in range(FOLDS)
    ]
    shape = fitting.fit_shape([w for cuts in windows for w in cuts])
    stored = []
    for i, session in enumerate(sessions):
        progress = Progress(cores[fold[i]], shapes[fold[i]])
        for token in session.tokens:
            progress.add(token)
        highest = progress.end()
        stored.append(
            SessionData(
                id=session.id[:256], groups=sequences[i],
                details=[details.add(t.detail[:256]) if t.detail else 0 for t in plain[i]],
                highest=[round(highest[name], 9) for name in STATISTICS], seconds=round(session.seconds, 3),
            )
        )  # fmt: skip
    return _Fitted(stored, groups, details.names[1:], weights, mean, usual, shape, final)


def _cores(
    plain: Sequence[Sequence[Token]],
    fold: Sequence[int],
    groups: Vocabulary,
    weights: list[list[float]],
    counted: Sequence[Counts],
    nets: Sequence[Network | None],
) -> list[Core]:
    cores = []
    for one, counts in enumerate(counted):
        details: dict[str, Counter[str]] = {}
        for i, tokens in enumerate(plain):
            if fold[i] != one:
                for token in tokens:
                    if token.detail:
                        details.setdefault(token.group, Counter())[token.detail] += 1
        core = Core(groups, Model(counts, weights), details, 0.0, nets[one])
        for i, tokens in enumerate(plain):
            if fold[i] != one:
                core.count((t.group, t.detail) for t in tokens)
        cores.append(core)
    return cores


def _run(
    core: Core, shape: Shape | None, tokens: Sequence[Token]
) -> tuple[list[float], list[float], list[list[float]]]:
    """Bits of each token, plain means, and windows."""
    progress = Progress(core, shape)
    bits = [noted.bits for token in tokens if progress.add(token) and (noted := progress.last_noted)]
    return bits, list(progress.plain_means()), progress.windows


def _usual(values: Sequence[float]) -> tuple[float, float]:
    return round(fmean(values), 9), round(max(stdev(values), 0.05), 9)


def _check(name: str, sessions: Sequence[Recorded], network: bool) -> list[Checked]:
    """The last quarter is held out of everything, then counted."""
    kept = len(sessions) - len(sessions) // 4
    baseline = Baseline.of(_fit(sessions[:kept], network, lambda _: None).body(name, None, []))
    return observed(baseline, [s.tokens for s in sessions[kept:]])


def observed(baseline: Baseline, sessions: Sequence[Sequence[Token]]) -> list[Checked]:
    """Promised against observed rates of alerts on benign sessions that the baseline does not know."""
    scores = [baseline.score(tokens) for tokens in sessions]
    found = []
    for rate in PROMISED:
        if rate < baseline.calibration.least:
            continue  # not promised by so few
        threshold = baseline.calibration.threshold(rate)
        alerts = sum(score > threshold for score in scores)
        low, high = fitting.interval(alerts, len(scores))
        found.append(Checked(promised=rate, sessions=len(scores), alerts=alerts, low=low, high=high))
    return found
