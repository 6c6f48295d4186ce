# SPDX-License-Identifier: Apache-2.0
"""Stretches of a session as numbers: what it does, how varied, how wide the tree of its processes is.

Shares, not rates by the clock: the same agent is ten times slower on another machine. Records carry no numbers of
bytes, so there is no feature of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log2, sqrt
from typing import Final, NamedTuple

from agentmon.fingerprint.tokens import Token

#: Tokens of a window, and how often one is judged.
WINDOW: Final = 64
STEP: Final = 16

_SHARES: Final = {
    "programs started": ("exec", "run"),
    "files read": ("read",),
    "files written": ("write", "create"),
    "files deleted, renamed, linked or changed": ("delete", "rename", "link", "attr"),
    "network": ("connect", "send", "bind", "listen"),
    "local sockets": ("unix",),
    "guarded operations": (
        "ptrace", "signal", "mount", "namespace", "chroot", "bpf", "io_uring", "setid", "module", "anon_exec",
    ),
    "processes forked": ("fork",),
}  # fmt: skip
_OPERATION_SHARE: Final = {o: name for name, operations in _SHARES.items() for o in operations}
#: Each with how people read its value: a share, or a number.
FEATURES: Final[dict[str, str]] = {
    **dict.fromkeys(_SHARES, "share"),
    "programs that failed": "share",
    "blocked": "share",
    "outside of workspace and system": "share",
    "kinds of act never seen in the baseline": "share",
    "programs or hosts never seen in the baseline": "share",
    "variety (bits)": "number",
    "different programs": "number",
    "different places": "number",
    "different hosts": "number",
    "widest fan-out": "number",
    "depth of processes": "number",
}
NAMES: Final = tuple(FEATURES)
_INSIDE: Final = ("workspace", "system", "programs", "tmp", "proc", "dev")


class Seen(NamedTuple):
    """A token, whether its group and its detail are new to the baseline, and the depth of its process."""

    token: Token
    new_group: bool
    new_detail: bool
    depth: int


class Depths:
    """How deep each process is below the first ones of the session."""

    def __init__(self) -> None:
        self._depth: dict[int, int] = {}

    def of(self, token: Token) -> int:
        """The depth of the token's process; a fork is counted, an exit forgotten."""
        if token.operation == "fork":
            depth = self._depth[token.pid] = self._depth.get(token.parent, 0) + 1
            return depth
        return self._depth.pop(token.pid, 0) if token.operation == "exit" else self._depth.get(token.pid, 0)


def features(window: Iterable[Seen]) -> list[float]:
    """The values of `FEATURES`, each as the model takes it: square roots of shares, logarithms of numbers."""
    shares: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    programs, places, hosts = set(), set(), set()
    forks: Counter[int] = Counter()
    count = depth = 0
    for seen in window:
        token = seen.token
        count += 1
        share = _OPERATION_SHARE.get(token.operation)
        if share:
            shares[share] += 1
        groups[token.group] += 1
        shares["programs that failed"] += token.group in ("exit error", "exit signal")
        shares["blocked"] += token.stopped
        shares["kinds of act never seen in the baseline"] += seen.new_group
        shares["programs or hosts never seen in the baseline"] += seen.new_detail
        if token.operation in ("exec", "run"):
            programs.add(token.detail)
        elif share == "network":
            hosts.add(token.detail)
        elif token.place:
            places.add(token.place)
            shares["outside of workspace and system"] += not token.place.startswith(_INSIDE)
        if token.operation == "fork":
            forks[token.parent] += 1
        depth = max(depth, seen.depth)
    count = count or 1
    entropy = -sum(n / count * log2(n / count) for n in groups.values())
    numbers = (entropy, len(programs), len(places), len(hosts), max(forks.values(), default=0), depth)
    return [sqrt(shares[name] / count) for name in NAMES if FEATURES[name] == "share"] + [log2(1 + n) for n in numbers]


def value(name: str, feature: float) -> float:
    """What people read: the share or number that a feature was made of."""
    return feature * feature if FEATURES[name] == "share" else 2**feature - 1


@dataclass(frozen=True, slots=True)
class Shape:
    """What windows of the baseline are like. The precision is that of the standardised features."""

    middle: tuple[float, ...]
    scale: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]

    def parts(self, values: Sequence[float]) -> list[float]:
        """What each feature adds to the squared distance. Some are below 0, where features explain each other."""
        z = [(v - m) / s for v, m, s in zip(values, self.middle, self.scale, strict=True)]
        return [
            zi * sum(p * zj for p, zj in zip(row, z, strict=True)) for zi, row in zip(z, self.precision, strict=True)
        ]

    def distance(self, values: Sequence[float]) -> float:
        """Mahalanobis' distance from the usual."""
        return sqrt(max(0.0, sum(self.parts(values))))


class Windows:
    """Cuts a session: from `WINDOW` tokens on, one window every `STEP`."""

    def __init__(self) -> None:
        self._recent: deque[Seen] = deque(maxlen=WINDOW)
        self._since = 0
        self.count = 0

    def add(self, seen: Seen) -> list[float] | None:
        """The features of the window that this token ends, if it ends one."""
        self._recent.append(seen)
        self._since += 1
        if len(self._recent) < WINDOW or self._since < STEP:
            return None
        self._since = 0
        self.count += 1
        return features(self._recent)
