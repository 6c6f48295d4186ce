# SPDX-License-Identifier: Apache-2.0
"""Learning on, bounded: a baseline follows its agent, and a slow poisoning of it is noticed.

Each later session is scored by the *anchor*, the model of the sessions first accepted, and a martingale bets against
"these scores are like the anchor's own". Whoever moves a baseline by small steps makes scores that are
a little too high each time; none of them is an alert, together they win the bet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from agentmon.errors import AgentmonError
from agentmon.fingerprint.baseline import HIGH, Baseline
from agentmon.fingerprint.document import SessionData
from agentmon.fingerprint.progress import STATISTICS, without_runs
from agentmon.fingerprint.sequence import Vocabulary
from agentmon.fingerprint.tokens import PLANNED
from agentmon.fingerprint.training import LEAST_OF_SESSION, Recorded

TOO_FAR = "it is too far from the baseline; look at it: `agentmon profile score`"
#: Capital at which drift is said: it happens to at most one honest agent in a hundred, ever.
NOTICED = 100.0
#: Most sessions of one update, in parts of those that there are; most in all, in parts of the anchor's.
STEP = 0.1
MOST = 1.0


class DriftError(AgentmonError):
    """The sessions accepted since the first ones are not like those any more.

    ``noted``: the next revision, which learnt nothing but remembers the bets: they stay won.
    """

    noted: Baseline | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A session that was not learnt from, and why."""

    id: str
    why: str


def capital(baseline: Baseline, more: Sequence[float] = ()) -> float:
    """The highest capital of the bets against the anchor, with these scores after the accepted ones."""
    martingale = baseline.drift()
    for score in more:
        martingale.add(score)
    return exp(min(700.0, martingale.highest))


def anchored_score(baseline: Baseline, session: Recorded) -> float:
    """How far a session is from the sessions first accepted."""
    return round(baseline.anchor.score(session.tokens), 9)


def accept(baseline: Baseline, sessions: Sequence[Recorded]) -> tuple[Baseline, list[Refused]]:
    """The next revision of a baseline, and what was not learnt.

    Raises:
        DriftError: together with what was learnt before, these sessions lead away from the first ones.
        AgentmonError: there were too many of them.
    """
    body = baseline.body
    known = {session.id for session in body.sessions}
    refused, scores, good = [], [], []
    threshold = baseline.calibration.threshold(HIGH)
    for session in sessions:
        if session.id in known:
            refused.append(Refused(session.id, "it is part of the baseline"))
        elif len(session.tokens) < LEAST_OF_SESSION:
            refused.append(Refused(session.id, f"it has fewer than {LEAST_OF_SESSION} acts"))
        else:
            # what is refused is bet on as well: an attacker may not choose which failures count
            scores.append(anchored_score(baseline, session))
            if baseline.score(session.tokens) > threshold:
                refused.append(Refused(session.id, TOO_FAR))
            else:
                good.append((session, scores[-1]))
    bet = capital(baseline, scores)
    if bet >= NOTICED:
        error = DriftError(
            f"baseline `{body.name}`: sessions drift away from the {body.anchored} first accepted (odds"
            f" {bet:,.0f} to 1, over {len(body.later) + len(scores)} sessions): nothing was"
            " learnt; if the agent was changed on purpose, train a new baseline"
        )
        error.noted = _extended(baseline, [], scores) if scores else None
        raise error
    most = max(1, int(STEP * len(body.sessions)))
    if len(good) > most:
        raise AgentmonError(f"baseline `{body.name}`: at most {most} sessions at once, not {len(good)}")
    if len(body.sessions) + len(good) > body.anchored * (1 + MOST):
        raise AgentmonError(
            f"baseline `{body.name}`: as many sessions as the {body.anchored} first accepted were added;"
            " train a new one"
        )
    return _extended(baseline, [session for session, _ in good], scores), refused


def _extended(baseline: Baseline, sessions: Sequence[Recorded], scores: Sequence[float]) -> Baseline:
    body = baseline.body
    groups, details = Vocabulary(body.groups), Vocabulary(body.details)
    added = []
    for session in sessions:
        # steps of plans are learnt from the first session on or not at all
        plain = without_runs(t for t in session.tokens if t.operation != PLANNED or baseline.core.plans)
        highest = baseline.highest(session.tokens)  # by a model that never saw it
        added.append(
            SessionData(
                id=session.id[:256], groups=[groups.add(t.group) for t in plain],
                details=[details.add(t.detail[:256]) if t.detail else 0 for t in plain],
                highest=[round(highest[name], 9) for name in STATISTICS], seconds=round(session.seconds, 3),
            )
        )  # fmt: skip
    if body.network is not None and len(groups.names) - 1 > len(body.groups):
        raise AgentmonError(
            f"baseline `{body.name}`: there are kinds of act that its network does not know; train it again"
        )
    extended = Baseline.of(
        body.model_copy(
            update={
                "revision": body.revision + 1, "groups": groups.names[1:], "details": details.names[1:],
                "sessions": [*body.sessions, *added], "anchor": body.anchor or baseline.sha256,
                "later": [*body.later, *scores],
            }
        )
    )  # fmt: skip
    extended.keep_anchor(baseline.anchor)
    return extended


def other_tier(baseline: Baseline, tier: str) -> str:
    """What to say if the baseline was recorded where the kernel tells of other operations; else empty."""
    recorded = baseline.body.tier
    if not recorded or recorded == tier:
        return ""
    return (
        f"baseline `{baseline.name}` was recorded in the {recorded} tier, and this is the {tier} tier: what only one of"
        " them records is unusual; learn a new one here"
    )


def changed_agent(baseline: Baseline, sha256: str) -> str:
    """What to say if the agent's program is another than the baseline's; else empty."""
    agent = baseline.body.agent
    if agent is None or agent.sha256 == sha256:
        return ""
    return (
        f"the agent's program is another than that of `{baseline.name}` (`{agent.path}`, {agent.sha256[:12]}…):"
        " its behaviour may differ; train the baseline again"
    )
