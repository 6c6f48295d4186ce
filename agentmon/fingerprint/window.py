# SPDX-License-Identifier: Apache-2.0
"""Stretches of a session as numbers: what it does, how varied, how wide the tree of its processes is.

Shares, not rates by the clock: the same agent is ten times slower on another machine. Records carry no numbers of
bytes, so there is no feature of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log2, sqrt
from operator import mul
from typing import Final, NamedTuple

from agentmon.fingerprint.tokens import Token

#: Tokens of a window, and how often one is judged.
WINDOW: Final = 64
STEP: Final = 16
#: Processes of a session that are remembered: a record of an end may be lost.
PROCESSES: Final = 65_536

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
_OPERATIONS: Final = tuple(_SHARES)
_OPERATION_SHARE: Final = {o: place for place, operations in enumerate(_SHARES.values()) for o in operations}
_STARTED, _NETWORK = _OPERATIONS.index("programs started"), _OPERATIONS.index("network")
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


#: Where it is hot, a plain tuple: one of these is made for each record.
_Seen = tuple[Token, bool, bool, int]


class Depths:
    """How deep each process is below the first ones of the session."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}

    def of(self, token: Token) -> int:
        """The depth of the token's process; a fork is counted, an exit forgotten."""
        depths, operation = self.known, token.operation
        if operation == "fork":
            if len(depths) >= PROCESSES:
                depths.clear()
            depth = depths[token.pid] = depths.get(token.parent, 0) + 1
            return depth
        return depths.pop(token.pid, 0) if operation == "exit" else depths.get(token.pid, 0)


def features(window: Iterable[_Seen]) -> list[float]:
    """The values of `FEATURES`, each as the model takes it: square roots of shares, logarithms of numbers."""
    counts = [0] * len(_OPERATIONS)
    groups: dict[str, int] = {}
    programs, places, hosts = set(), set(), set()
    forks: dict[int, int] = {}
    count = deepest = blocked = outside = new_groups = new_details = 0
    for token, new_group, new_detail, depth in window:
        _, group, detail, operation, place, _, stopped, _, parent = token
        count += 1
        share = _OPERATION_SHARE.get(operation, -1)
        if share >= 0:
            counts[share] += 1
        groups[group] = groups.get(group, 0) + 1
        blocked += stopped
        new_groups += new_group
        new_details += new_detail
        if share == _STARTED:
            programs.add(detail)
        elif share == _NETWORK:
            hosts.add(detail)
        elif place:
            places.add(place)
            outside += not place.startswith(_INSIDE)
        if operation == "fork":
            forks[parent] = forks.get(parent, 0) + 1
        deepest = max(deepest, depth)
    count = count or 1
    failed = groups.get("exit error", 0) + groups.get("exit signal", 0)
    entropy = -sum([n / count * log2(n / count) for n in groups.values()])
    shares = (*counts, failed, blocked, outside, new_groups, new_details)
    numbers = (entropy, len(programs), len(places), len(hosts), max(forks.values(), default=0), deepest)
    return [sqrt(share / count) for share in shares] + [log2(1 + n) for n in numbers]


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
        return [zi * sum(map(mul, row, z)) for zi, row in zip(z, self.precision, strict=True)]

    def distance(self, values: Sequence[float]) -> float:
        """Mahalanobis' distance from the usual."""
        return sqrt(max(0.0, sum(self.parts(values))))


class Windows:
    """Cuts a session: from `WINDOW` tokens on, one window every `STEP`."""

    def __init__(self) -> None:
        self.recent: deque[_Seen] = deque(maxlen=WINDOW)
        self.left = WINDOW
        """Tokens until the next."""
        self.count = 0

    def add(self, seen: _Seen) -> list[float] | None:
        """The features of the window that this token ends, if it ends one."""
        self.recent.append(seen)
        self.left -= 1
        return None if self.left else self.cut()

    def cut(self) -> list[float]:
        """The features of the last tokens."""
        self.left = STEP
        self.count += 1
        return features(self.recent)
