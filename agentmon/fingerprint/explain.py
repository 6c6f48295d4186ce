# SPDX-License-Identifier: Apache-2.0
"""Scores in words: which acts and which features made them, compared with the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.progress import Core, Noted
from agentmon.fingerprint.window import FEATURES, NAMES, value

_ORDER = "in an order that the baseline does not know"


def act(core: Core, noted: Noted) -> str:
    """One token: what it was, and why it was surprising."""
    token, model = noted.token, core.model
    text = str(token)
    if not model.knows(noted.number):
        return f"{text}: the baseline has no `{token.group}` at all"
    known = core.details.get(token.group)
    if noted.detail_bits > noted.bits / 2 and known is not None:
        names = ", ".join(name for name, _ in known.most_common(3))
        often = known.get(token.detail, 0) / known.total()
        how = f"{often:.1%} of" if often else "never in"
        return f"{text}: {how} the baseline's `{token.group}`, which is of {names}"
    share = model.share(noted.number)
    likely = [core.groups.names[n] for n in model.likely(noted.before, 2) if n != noted.number]
    if share < 0.005:
        return f"{text}: rare in the baseline, {share:.2%} of all acts"
    after = core.groups.names[noted.before[-1]] if noted.before and noted.before[-1] else ""
    if after and likely:
        return f"{text} after `{after}`: what usually follows is `{'` or `'.join(likely)}`"
    return f"{text} {_ORDER}"


def window(baseline: Baseline, values: Sequence[float], most: int = 3) -> list[str]:
    """What is unusual about a window: the features that add most to its distance."""
    if not values:
        return []
    parts = baseline.shape.parts(values)
    order = sorted(range(len(parts)), key=lambda i: -parts[i])[:most]
    found = []
    for i in order:
        if parts[i] <= 1:
            continue
        name, usual = NAMES[i], baseline.shape.middle[i]
        now, then = value(name, values[i]), value(name, usual)
        if FEATURES[name] == "share":
            found.append(f"{name}: {now:.0%} of the last 64 acts, usually {then:.0%}")
        else:
            found.append(f"{name}: {now:.1f} in the last 64 acts, usually {then:.1f}")
    return found


def statistic(name: str, now: float, baseline: Baseline) -> str:
    """One of the statistics, with what sessions of the baseline reach."""
    middle, nine = baseline.standard.middle[name], baseline.standard.nine[name]
    unit = {
        "moment": "bits of surprise at once", "stretch": "bits an act over 64 acts",
        "whole": "standard deviations of the session's means", "shape": "from the usual shape of 64 acts",
        "novel": "kinds of act, of the last 256 or so, that the baseline never had",
        "grave": "bits for how rare an act with consequences is among sessions",
    }[name]  # fmt: skip
    return f"{now:.1f} {unit}; sessions of the baseline stay around {middle:.1f}, nine of ten below {nine:.1f}"
