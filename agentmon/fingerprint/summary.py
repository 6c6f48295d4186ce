# SPDX-License-Identifier: Apache-2.0
"""What is normal, for people: programs, places, hosts, and the rhythm of sessions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.progress import STATISTICS
from agentmon.fingerprint.window import FEATURES, NAMES, value

_FILES = ("read", "write", "create", "delete", "rename", "link", "attr")
_NET = ("connect", "send", "bind", "listen")


@dataclass(slots=True)
class Normal:
    """Counts over all sessions. A place is counted with its operation; ``follows``: pairs of acts."""

    programs: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    follows: Counter[tuple[str, str]] = field(default_factory=Counter)
    acts: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, baseline: Baseline) -> Normal:
        """From the sessions that a baseline keeps."""
        normal, body = cls(), baseline.body
        for session in baseline.body.sessions:
            before = ""
            for group_number, detail_number in zip(session.groups, session.details, strict=True):
                group = body.groups[group_number - 1]
                detail = body.details[detail_number - 1] if detail_number else ""
                word = group.partition(" ")[0].rstrip("!")
                if word in ("exec", "run"):
                    normal.programs[detail] += 1
                elif word in _FILES:
                    normal.places[group] += 1
                elif word in _NET:
                    normal.hosts[f"{group} {detail}"] += 1
                else:
                    normal.others[group] += 1
                if before and before != group:
                    normal.follows[before, group] += 1
                before = group
            normal.acts.append(len(session.groups))
            normal.seconds.append(session.seconds)
        return normal

    def as_json(self, baseline: Baseline, most: int = 50) -> dict[str, Any]:
        """For ``--json``, with the promise."""
        standard, calibration = baseline.standard, baseline.calibration
        return {
            "name": baseline.name,
            "revision": baseline.body.revision,
            "sha256": baseline.sha256,
            "created": baseline.body.created,
            "agent": baseline.body.agent.model_dump() if baseline.body.agent else None,
            "sessions": len(self.acts),
            "acts": sum(self.acts),
            "programs": dict(self.programs.most_common(most)),
            "places": dict(self.places.most_common(most)),
            "hosts": dict(self.hosts.most_common(most)),
            "other": dict(self.others.most_common(most)),
            "follows": [[a, b, n] for (a, b), n in self.follows.most_common(most)],
            "acts_per_session": median(self.acts),
            "acts_per_second": self.pace,
            "window": {n: round(value(n, v), 3) for n, v in zip(NAMES, baseline.shape.middle, strict=True)},
            "statistics": {n: {"middle": standard.middle[n], "spread": standard.spread[n]} for n in STATISTICS},
            "least_rate": calibration.least,
            "checked": [c.model_dump() for c in baseline.body.checked],
        }

    @property
    def pace(self) -> float:
        """Acts per second, in the middle of all sessions; only shown, as it hangs on the machine."""
        return round(median(n / s if s else 0.0 for n, s in zip(self.acts, self.seconds, strict=True)), 3)


def shown(name: str, feature: float) -> str:
    """One feature's value as people read it."""
    now = value(name, feature)
    return f"{now:.1%}" if FEATURES[name] == "share" else f"{now:.1f}"
