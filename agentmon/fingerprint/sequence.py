# SPDX-License-Identifier: Apache-2.0
"""How surprising each token is after those before it: a mixture of context models, scored in plain Python.

Each order of context (0 to 8 groups) is a Witten-Bell estimate with a common base. Their weights hang on how often the
context was seen and on whether it ever had more than one successor; they maximise the likelihood of sessions that were
held out (EM), so no example of an attack decides anything. The base of all is the group's own frequency.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from math import log2
from typing import Final

#: Parts of the sessions; each is judged by a model of the others.
FOLDS: Final = 4
#: Lengths of context. Longer ones gain nothing on any data tried.
ORDERS: Final = (0, 1, 2, 3, 4, 6, 8)
LONGEST: Final = ORDERS[-1]
BUCKETS: Final = 16
#: Groups that could exist besides those seen; the price of one never seen.
UNSEEN_GROUPS: Final = 64
#: Tokens that make what comes again in a session no news.
DISTINCT: Final = 6
#: Surprises remembered at most; a session that goes on for weeks must not fill the memory.
REMEMBERED: Final = 200_000
#: The same of whole contexts with what came then: most acts of an agent are in one that it was in before.
GRAMS: Final = 50_000


class Vocabulary:
    """Groups by number. 0 is what was never seen."""

    def __init__(self, groups: Iterable[str] = ()) -> None:
        self.names: list[str] = ["?"]
        self._numbers: dict[str, int] = {}
        for group in groups:
            self.add(group)

    def add(self, group: str) -> int:
        """The number of a group, new if need be."""
        number = self._numbers.get(group)
        if number is None:
            number = self._numbers[group] = len(self.names)
            self.names.append(group)
        return number

    def number(self, group: str) -> int:
        """The number of a group, 0 if it was never seen."""
        return self._numbers.get(group, 0)


class _Context:
    """What came after a context: how often, of how many kinds. A context with one successor has no table of them."""

    __slots__ = ("after", "count", "kinds", "level", "older", "only")

    def __init__(self) -> None:
        self.count = 0
        self.kinds = 0
        self.level = 0
        self.only = -1
        self.after: dict[int, int] | None = None
        self.older: dict[int, _Context] | None = None  # the same context, one group longer

    def add(self, number: int) -> None:
        self.count += 1
        if self.after is not None:
            self.after[number] = self.after.get(number, 0) + 1
            self.kinds = len(self.after)
        elif self.kinds == 0 or self.only == number:
            self.only, self.kinds = number, 1
        else:
            self.after = {self.only: self.count - 1, number: 1}
            self.kinds = 2
        self.level = bucket(self.count, self.kinds)

    def times(self, number: int) -> int:
        if self.after is not None:
            return self.after.get(number, 0)
        return self.count if number == self.only else 0

    def successors(self) -> dict[int, int]:
        return self.after if self.after is not None else {self.only: self.count} if self.count else {}


class Counts:
    """Successors of each context, counted."""

    def __init__(self) -> None:
        self.root = _Context()

    def add(self, sequence: Sequence[int]) -> None:
        """Counts one session."""
        root = self.root
        for i, number in enumerate(sequence):
            context = root
            context.add(number)
            for back in range(i - 1, max(-1, i - 1 - LONGEST), -1):
                if context.older is None:
                    context.older = {}
                longer = context.older.get(sequence[back])
                if longer is None:
                    longer = context.older[sequence[back]] = _Context()
                context = longer
                context.add(number)


def bucket(count: int, successors: int) -> int:
    """How far a context can be trusted: by its count, apart for those that had one successor only. 0: never seen."""
    level = min(1 + (count.bit_length() - 1) // 2, 7)
    return level + 8 if successors == 1 else level


class Model:
    """Counts with weights: how surprising a token is."""

    def __init__(self, counts: Counts, weights: Sequence[Sequence[float]]) -> None:
        self._root = counts.root
        self._weights = [list(map(float, row)) for row in weights]
        unseen = [row[0] for row in self._weights]
        #: what the orders from here on weigh if their contexts were never seen
        self._rest = [sum(unseen[place:]) for place in range(len(unseen) + 1)]
        kinds = self._root.kinds or 1
        self._total = self._root.count + kinds
        self._spread = kinds / (kinds + UNSEEN_GROUPS)
        self._known: dict[_Context, dict[int, float]] = {}  # surprises, by longest context and successor
        self._room = REMEMBERED
        self._grams: dict[tuple[int, ...], float] = {}

    def base(self, number: int) -> float:
        """The probability of a group whatever comes before."""
        return (self._root.times(number) + self._spread) / self._total

    def _path(self, recent: Sequence[int]) -> list[_Context]:
        """The contexts that are known, from none to the longest."""
        context = self._root
        path = [context]
        for back in range(1, min(len(recent), LONGEST) + 1):
            longer = context.older.get(recent[-back]) if context.older is not None else None
            if longer is None:
                break
            path.append(longer)
            context = longer
        return path

    def parts(self, recent: Sequence[int], number: int) -> Iterable[tuple[float, int]]:
        """(probability, bucket) by each order, for learning weights."""
        base = self.base(number)
        path = self._path(recent)
        yield base, 0
        for order in ORDERS[1:]:
            if order < len(path):
                context = path[order]
                half = 0.5 * context.kinds
                yield (context.times(number) + half * base) / (context.count + half), context.level
            else:
                yield base, 0

    def bits(self, gram: tuple[int, ...]) -> float:
        """`surprise` of the last group after those before it, at most `LONGEST`. The quickest way."""
        found = self._grams.get(gram)
        if found is None:
            if len(self._grams) >= GRAMS:
                self._grams.clear()
            found = self._grams[gram] = self.surprise(gram[:-1], gram[-1])
        return found

    def surprise(self, recent: Sequence[int], number: int) -> float:
        """Bits. ``recent``: the groups before, of which at most the last `LONGEST` count."""
        context = self._root
        last = len(recent) - 1
        for back in range(last, max(-1, last - LONGEST), -1):
            older = context.older
            if older is None:
                break
            longer = older.get(recent[back])
            if longer is None:
                break
            context = longer
        known = self._known.get(context)
        if known is not None:
            found = known.get(number)
            if found is not None:
                return found
        return self._compute(context, recent, number)

    def _compute(self, last: _Context, recent: Sequence[int], number: int) -> float:
        base = self.base(number)
        path = self._path(recent)
        weights = self._weights
        total = weights[0][0]
        chance = total * base
        for place in range(1, len(ORDERS)):
            order = ORDERS[place]
            if order >= len(path):
                total += self._rest[place]
                chance += self._rest[place] * base
                break
            context = path[order]
            half = 0.5 * context.kinds
            weight = weights[place][context.level]
            total += weight
            chance += weight * (context.times(number) + half * base) / (context.count + half)
        bits = -log2(chance / total)
        if self._room == 0:
            self._known.clear()
            self._room = REMEMBERED
        self._known.setdefault(last, {})[number] = bits
        self._room -= 1
        return bits

    def likely(self, recent: Sequence[int], most: int = 3) -> list[int]:
        """The groups that came most often after the longest known context."""
        after = self._path(recent)[-1].successors()
        return sorted(after, key=lambda n: (-after[n], n))[:most]

    def knows(self, number: int) -> bool:
        """Whether a group came at all."""
        return self._root.times(number) > 0

    def share(self, number: int) -> float:
        """How often a group came, of all tokens of the baseline."""
        return self._root.times(number) / (self._root.count or 1)

    def all_surprises(self, sequence: Sequence[int]) -> list[float]:
        """Bits of each token of a session."""
        surprise = self.surprise
        return [surprise(sequence[max(0, i - LONGEST) : i], number) for i, number in enumerate(sequence)]


#: Weights before anything was learnt.
EVEN: Final = tuple((1.0,) * BUCKETS for _ in ORDERS)


def fold_of(place: int, count: int, folds: int) -> int:
    """The fold of a session. Neighbours are in one: who does a task again must not be judged by its first attempt."""
    return place * folds // count


def learn(
    sequences: Sequence[Sequence[int]], folds: int = FOLDS, rounds: int = 12
) -> tuple[list[list[float]], list[Counts]]:
    """Weights, and for each fold (`fold_of`) the counts of all sessions but its own.

    The weights are common to all folds: a table of 7 by 16 numbers cannot remember a session.
    """
    from agentmon.fingerprint.fitting import mixture_weights

    counted = []
    for fold in range(folds):
        counts = Counts()
        for place, sequence in enumerate(sequences):
            if fold_of(place, len(sequences), folds) != fold:
                counts.add(sequence)
        counted.append(counts)
    models = [Model(counts, EVEN) for counts in counted]
    probabilities, buckets = array("d"), array("B")
    for place, sequence in enumerate(sequences):
        model = models[fold_of(place, len(sequences), folds)]
        for i, number in enumerate(sequence):
            for probability, level in model.parts(sequence[max(0, i - LONGEST) : i], number):
                probabilities.append(probability)
                buckets.append(level)
    return mixture_weights(probabilities, buckets, len(ORDERS), BUCKETS, rounds), counted


def distinct(sequence: Sequence[int]) -> list[int]:
    """The places in a session where a group comes after a context that it never came after before in the session."""
    seen: set[tuple[int, ...]] = set()
    found = []
    for i in range(len(sequence)):
        gram = tuple(sequence[max(0, i - DISTINCT + 1) : i + 1])
        if gram not in seen:
            seen.add(gram)
            found.append(i)
    return found
