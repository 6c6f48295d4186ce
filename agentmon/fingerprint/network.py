# SPDX-License-Identifier: Apache-2.0
"""A second opinion on sequences, for baselines that are large enough: a small neural network of the next group.

It sees the last groups one by one and the mix of those before them, so it takes for alike what merely comes in another
order. scikit-learn trains it; scoring is numpy alone, a stretch at a time, never the hot path.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentmon.fingerprint.fitting import need_sklearn, numpy

#: Groups seen one by one; how fast the mixes forget; width of the hidden layer.
LAST: Final = 8
DECAYS: Final = (0.9, 0.98)
HIDDEN: Final = 64
EPOCHS: Final = 6
#: Below that it learns nothing that counting does not.
LEAST_TOKENS: Final = 20_000
LEAST_SESSIONS: Final = 100
_CHUNK: Final = 8192
_FLOOR: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Network:
    """Weights as numpy arrays of 32 bits: hidden, its bias, output, its bias."""

    kinds: int
    arrays: tuple[Any, Any, Any, Any]

    def surprises(self, sequence: Sequence[int]) -> list[float]:
        """Bits of each token."""
        np = numpy()
        w, b, v, c = self.arrays
        found: list[float] = []
        for rows, mixes, targets in _inputs(sequence, self.kinds):
            hidden = np.repeat(b[None, :], len(targets), 0)
            for position in range(LAST):
                known = rows[:, position] >= 0
                hidden[known] += w[rows[known, position]]
            hidden += mixes @ w[LAST * self.kinds :]
            np.maximum(hidden, 0, out=hidden)
            out = hidden @ v + c
            out -= out.max(1, keepdims=True)
            chance = np.exp(out[np.arange(len(targets)), targets]) / np.exp(out).sum(1)
            found.extend((-np.log2(np.maximum(chance, _FLOOR))).tolist())
        return found

    def pack(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kinds": self.kinds,
            "arrays": [
                {"shape": list(a.shape), "data": base64.b64encode(a.astype("<f4").tobytes()).decode("ascii")}
                for a in self.arrays
            ],
        }

    @classmethod
    def unpack(cls, kinds: int, arrays: Sequence[tuple[Sequence[int], str]]) -> Network:
        """The reverse. Raises `ValueError` if shapes and data do not belong together."""
        np = numpy()
        wide = LAST * kinds + len(DECAYS) * kinds
        shapes = [(wide, HIDDEN), (HIDDEN,), (HIDDEN, kinds), (kinds,)]
        if [tuple(shape) for shape, _ in arrays] != shapes:
            raise ValueError("the network's arrays have other shapes than its groups ask for")
        found = []
        for shape, data in arrays:
            array = np.frombuffer(base64.b64decode(data, validate=True), dtype="<f4")
            if not np.isfinite(array).all():
                raise ValueError("the network has weights that are no numbers")
            found.append(array.reshape(tuple(shape)))
        return cls(kinds, (found[0], found[1], found[2], found[3]))


def _inputs(sequence: Sequence[int], kinds: int) -> Any:
    """(rows of the last groups, mixes, targets) in chunks. A row of -1: before the beginning."""
    np = numpy()
    x = np.asarray(sequence, dtype=np.int64)
    mixes = [np.zeros(kinds, dtype=np.float32) for _ in DECAYS]
    for start in range(0, len(x), _CHUNK):
        targets = x[start : start + _CHUNK]
        n = len(targets)
        rows = np.full((n, LAST), -1, dtype=np.int64)
        for back in range(1, LAST + 1):
            first = max(0, back - start)
            if first < n:
                rows[first:, back - 1] = (back - 1) * kinds + x[start + first - back : start + n - back]
        bags = np.zeros((n, len(DECAYS) * kinds), dtype=np.float32)
        for i in range(n):
            for place, decay in enumerate(DECAYS):
                mix = mixes[place]
                bags[i, place * kinds : (place + 1) * kinds] = mix
                mix *= decay
                mix[targets[i]] += 1 - decay
        bags[bags < 1e-4] = 0
        yield rows, np.sqrt(bags), targets


def train(sequences: Sequence[Sequence[int]], kinds: int, epochs: int = EPOCHS) -> Network:
    """Trains on whole sessions. Raises `NotSupportedError` without scikit-learn."""
    need_sklearn()
    np = numpy()
    import warnings

    from scipy import sparse
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    parts, targets = [], []
    for sequence in sequences:
        for rows, mixes, y in _inputs(sequence, kinds):
            line, position = np.nonzero(rows >= 0)
            ones = sparse.csr_matrix(
                (np.ones(len(line), dtype=np.float32), (line, rows[line, position])), shape=(len(y), LAST * kinds)
            )
            parts.append(sparse.hstack([ones, sparse.csr_matrix(mixes)], format="csr"))
            targets.append(y)
    x, y = sparse.vstack(parts, format="csr"), np.concatenate(targets)
    # all groups are classes, so that columns stay what they are
    model = MLPClassifier(
        (HIDDEN,), batch_size=min(512, len(y)), max_iter=1, learning_rate_init=2e-3, alpha=1e-5, random_state=0,
        warm_start=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(epochs):
            model.fit(x, y)
    v = np.zeros((HIDDEN, kinds), dtype=np.float32)
    c = np.full(kinds, np.log(_FLOOR), dtype=np.float32)  # a group that was never met
    v[:, model.classes_] = model.coefs_[1]
    c[model.classes_] = model.intercepts_[1]
    if len(model.classes_) == 2:  # one logistic unit there
        v[:, model.classes_[0]] = 0
        c[model.classes_[0]] = 0
    w = np.asarray(model.coefs_[0], dtype=np.float32)
    return Network(kinds, (w, np.asarray(model.intercepts_[0], dtype=np.float32), v, c))
