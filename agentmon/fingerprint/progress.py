# SPDX-License-Identifier: Apache-2.0
"""One session, followed token by token: what each part of the model says of it so far.

Six statistics, each of another kind of deviation: a *moment* (one or two acts that do not belong here), a *stretch*
(64 tokens in a strange order), the *whole* session (its last hundreds of tokens), the *shape* of a stretch (its
shares, variety, fan-out), how many *novel* kinds of act there were of late, wherever they stood, and how rare among
sessions the rarest *grave* act was of late: one with consequences. What counts is the highest value that each has
had: a promise per session must hold however often one looks.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf, log2
from typing import Final, NamedTuple

from agentmon.fingerprint.grave import grave
from agentmon.fingerprint.network import Network
from agentmon.fingerprint.sequence import DISTINCT, LONGEST, Model, Vocabulary
from agentmon.fingerprint.tokens import PLANNED, Token, of_plans
from agentmon.fingerprint.window import PROCESSES, Depths, Shape, Windows

STATISTICS: Final = ("moment", "stretch", "whole", "shape", "novel", "grave")
#: Tokens of a stretch; as many of the baseline's mean stand before a session begins.
STRETCH: Final = 64
#: What is left of the surprise of one token at the next.
FADING: Final = 0.5
#: Tokens that the means reach back, with fading weight: a session that goes on for days is judged as a short one is.
HORIZON: Final = 256
#: Statistics of a whole session, in the order of `Means`.
WHOLE: Final = ("mean", "distinct", "network")
_CHUNK: Final = 64
_OF_PROCESSES: Final = ("fork", "exit")
_ASKED: Final = 10_000
_KEEP: Final = 1 - 1 / HORIZON


class Means(NamedTuple):
    """Mean surprise of a session's tokens, bits: of all, of those that are no repetition, by the network (or 0)."""

    mean: float
    distinct: float
    network: float


@dataclass(slots=True)
class Core:
    """What was learnt of tokens: groups in sequence, details within their group."""

    groups: Vocabulary
    model: Model
    details: dict[str, Counter[str]]
    mean: float  # surprise of a token of the baseline, bits
    network: Network | None = None
    #: middle and spread of each of `Means` over sessions of the baseline
    usual: tuple[tuple[float, float], ...] = ((0.0, 1.0),) * len(WHOLE)
    sessions: int = 0
    part: float = 1.0
    """Of the sessions, what counts: all of them say no more of a rare act than those of the folds said in training."""
    #: how many sessions had a group (with detail ""), and a group with a detail
    had: Counter[tuple[str, str]] = field(default_factory=Counter)
    asked: dict[tuple[str, str], tuple[int, float, bool, bool, float]] = field(default_factory=dict)
    plans: bool = field(init=False)
    """Whether sessions of the baseline had plans. To one without, steps say nothing: its promise is not about them."""

    def __post_init__(self) -> None:
        self.plans = any(map(of_plans, self.groups.names))

    def ask(self, group: str, detail: str) -> tuple[int, float, bool, bool, float]:
        """Of a token: its group's number, its detail's surprise, whether that is new, whether the group is, its rarity.

        Of a group never seen the detail is no surprise. What was `asked` is remembered.
        """
        if len(self.asked) >= _ASKED:
            self.asked.clear()
        number = self.groups.number(group)
        found = self.asked[group, detail] = (
            number, *self._detail_bits(group, detail), not self.model.knows(number), self._rarity(group, detail),
        )  # fmt: skip
        return found

    def count(self, session: Iterable[tuple[str, str]]) -> None:
        """One session's groups with their details: what it had."""
        pairs = set(session)
        self.sessions += 1
        self.had.update(pairs)
        self.had.update({(group, "") for group, detail in pairs if detail})

    def _rarity(self, group: str, detail: str) -> float:
        """Of an act of consequence: bits, by the share of sessions that had the like, halfway with the same program."""
        if not grave(group):
            return 0.0
        of, like, same = (self.part * n + 1 for n in (self.sessions, self.had[group, ""], self.had[group, detail]))
        return round(log2(of) - 0.5 * (log2(like) + log2(same)), 6)  # as it is kept: equal ones are to be equal

    def _detail_bits(self, group: str, detail: str) -> tuple[float, bool]:
        known = self.details.get(group)
        if not detail or known is None:
            return 0.0, False
        total, kinds = known.total(), len(known)
        count = known.get(detail, 0)
        return -log2((count or kinds) / (total + kinds)), not count

    def whole(self, means: Means) -> float:
        """How far the means of a session are from the usual: the sum of standard deviations."""
        parts = zip(means, self.usual, strict=True)
        return sum((value - middle) / spread for value, (middle, spread) in parts if spread)


class Noted(NamedTuple):
    """A token and how surprising it was (bits), of which so much for its detail; the groups before it by number."""

    token: Token
    bits: float
    detail_bits: float
    number: int
    before: tuple[int, ...]


@dataclass(slots=True)
class Progress:
    """Follows one session. ``shape`` None: while the shape is still to be learnt."""

    core: Core
    shape: Shape | None = None
    count: int = 0
    now: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STATISTICS, 0.0))
    highest: dict[str, float] = field(default_factory=dict)
    windows: list[list[float]] = field(default_factory=list)  # kept only without a shape
    last_window: list[float] = field(default_factory=list)
    noted: tuple[Token, float, float, int, tuple[int, ...]] | None = None
    """The fields of a `Noted`: one of these is made for each act."""
    slow: int = 0
    """How often what does not change with each act has changed: all but the moment and the stretch."""
    _recent: tuple[int, ...] = ()
    _bits: deque[float] = field(default_factory=lambda: deque(maxlen=STRETCH))
    _mean: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sum, weight
    _stretch: float = 0.0
    _distinct: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _grams: set[tuple[int, ...]] = field(default_factory=set)
    _met: set[str] = field(default_factory=set)  # groups that the baseline never had
    _unread: list[int] = field(default_factory=list)  # by the network
    _network: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _cuts: Windows = field(default_factory=Windows)
    _depths: Depths = field(default_factory=Depths)
    _last: dict[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stretch = STRETCH * self.core.mean
        self._bits.extend([self.core.mean] * STRETCH)

    def add(self, token: Token) -> bool:
        """One more token. False if its process only goes on with what it did: that says nothing of order."""
        core = self.core  # all of this is per record: it is written out, not called
        what, pid = token[1:3], token[7]
        if token[3] == PLANNED and not core.plans:
            return False
        number, detail, new_detail, new_group, rarity = core.asked.get(what) or core.ask(*what)
        operation, last = token[3], self._last
        if operation in _OF_PROCESSES:
            depth = self._depths.of(token)
            news = _is_news(token, last)
        else:
            depth = self._depths.known.get(pid, 0)
            news = last.get(pid) != what
            last[pid] = what
        cuts = self._cuts
        cuts.recent.append((token, new_group, new_detail, depth))
        cuts.left -= 1
        if not cuts.left:
            self._window(cuts.cut())
        if new_group and what[0] not in self._met:
            self._met.add(what[0])
            self.now["novel"] += 1
            self._raise("novel")
            self.slow += 1
        # the rarest, not their sum: where one is new to a task, others are as well
        if rarity and rarity > self.now["grave"]:
            self.now["grave"] = rarity
            self._raise("grave")
            self.slow += 1
        if not news:
            return False
        recent = self._recent
        gram = (*recent, number)
        bits = core.model.bits(gram) + detail
        self.noted = token, bits, detail, number, recent
        self._recent = gram[-LONGEST:]
        self.count = count = self.count + 1
        mean = self._mean
        mean[0], mean[1] = mean[0] * _KEEP + bits, mean[1] * _KEEP + 1
        before = self._bits
        self._stretch += bits - before[0]
        before.append(bits)
        if count % HORIZON == 0:
            self._grams.clear()  # what came long ago is news again
            self._met.clear()
        gram = gram[-DISTINCT:]
        if gram not in self._grams:
            self._grams.add(gram)
            _fade(self._distinct, bits)
        if core.network is not None:
            self._unread.append(number)
        now, highest = self.now, self.highest
        moment = now["moment"] = FADING * now["moment"] + bits
        stretch = now["stretch"] = self._stretch / STRETCH
        if count % (_CHUNK // 4) == 0:
            now["whole"] = core.whole(self.means())
            self._raise("whole")
            now["novel"] *= _KEEP ** (_CHUNK // 4)
            now["grave"] *= _KEEP ** (_CHUNK // 4)
            self.slow += 1
        if moment > highest.get("moment", -inf):
            highest["moment"] = moment
        if stretch > highest.get("stretch", -inf):
            highest["stretch"] = stretch
        return True

    @property
    def last_noted(self) -> Noted | None:
        """The last act that said something of order."""
        return Noted(*self.noted) if self.noted is not None else None

    def end(self) -> dict[str, float]:
        """The highest values, with the whole session judged at its end."""
        self.now["whole"] = self.core.whole(self.means(ended=True))
        self._raise("whole")
        return {name: self.highest.get(name, 0.0) for name in STATISTICS}

    def means(self, *, ended: bool = False) -> Means:
        """Of the session so far; a short one is mostly taken for usual."""
        usual = self.core.usual
        network = self.core.network
        if network is not None and len(self._unread) >= LONGEST + (1 if ended else _CHUNK):
            self._read(network)
        sums = (self._mean, self._distinct, self._network)
        return Means(*((s + STRETCH * u[0]) / (n + STRETCH) for (s, n), u in zip(sums, usual, strict=True)))

    def plain_means(self) -> Means:
        """Of the session so far, with nothing before it."""
        if self.core.network is not None and self._unread:
            self._read(self.core.network)
        sums = (self._mean, self._distinct, self._network)
        return Means(*(s / n if n else 0.0 for s, n in sums))

    def _read(self, network: Network) -> None:
        fresh = network.surprises(self._unread)[LONGEST if self._network[1] else 0 :]
        for bits in fresh:
            _fade(self._network, bits)
        self._unread = self._unread[-LONGEST:]

    def _window(self, values: list[float]) -> None:
        self.last_window = values
        if self.shape is None:
            self.windows.append(values)
        else:
            self.now["shape"] = self.shape.distance(values)
            self._raise("shape")
            self.slow += 1

    def _raise(self, name: str) -> None:
        self.highest[name] = max(self.highest.get(name, self.now[name]), self.now[name])


def _fade(sums: list[float], bits: float) -> None:
    """Adds to a mean that forgets: sum and weight."""
    sums[0] = sums[0] * _KEEP + bits
    sums[1] = sums[1] * _KEEP + 1


def _is_news(token: Token, last: dict[int, tuple[str, str]]) -> bool:
    """Whether a token is more than its process going on with what it did last."""
    what, pid = token[1:3], token.pid
    if token.operation == "exit":
        last.pop(pid, None)
        return True
    if last.get(pid) == what:
        return False
    if len(last) >= PROCESSES and token.operation == "fork":
        last.clear()
    last[pid] = what
    return True


def without_runs(tokens: Iterable[Token]) -> list[Token]:
    """The tokens that count in a sequence."""
    last: dict[int, tuple[str, str]] = {}
    return [token for token in tokens if _is_news(token, last)]
