# SPDX-License-Identifier: Apache-2.0
"""What training computes with numpy and scikit-learn, imported only here and when it is asked for."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentmon.errors import NotSupportedError

if TYPE_CHECKING:
    from agentmon.fingerprint.window import Shape

#: Of the standardised features, however constant they were in training: one token of a window is no alarm.
LEAST_SCALE = 0.06


def numpy() -> Any:
    """The module. Raises `NotSupportedError`."""
    try:
        import numpy as np
    except ImportError:
        raise NotSupportedError(
            "numpy is not installed: `pip install 'agentmon[fingerprint]'` brings what training needs"
        ) from None
    return np


def need_sklearn() -> None:
    """Raises `NotSupportedError` where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise NotSupportedError(
            "scikit-learn is not installed: `pip install 'agentmon[fingerprint]'` brings it; scoring needs none"
        ) from None


def mixture_weights(
    probabilities: array[float], buckets: array[int], orders: int, levels: int, rounds: int
) -> list[list[float]]:
    """Weights by order and bucket that maximise the likelihood of held-out tokens (expectation maximisation)."""
    np = numpy()
    p = np.frombuffer(probabilities, dtype=np.float64).reshape(-1, orders)
    b = np.frombuffer(buckets, dtype=np.uint8).reshape(-1, orders)
    weights = np.ones((orders, levels))
    for _ in range(rounds):
        mine = np.stack([weights[j][b[:, j]] for j in range(orders)], 1)
        share = mine * p
        share /= share.sum(1, keepdims=True)
        expected = mine / mine.sum(1, keepdims=True)
        for j in range(orders):
            got = np.bincount(b[:, j], share[:, j], levels)
            due = np.bincount(b[:, j], expected[:, j], levels)
            weights[j] *= np.where(due > 0, (got + 1e-3) / (due + 1e-3), 1)
    weights[0][0] = max(weights[0][0], 1e-6)  # the base: without it, what was never seen would have no price
    return [[round(float(w), 9) for w in row] for row in weights]


def fit_shape(windows: Sequence[Sequence[float]]) -> Shape:
    """The usual values of windows, and how they vary together (Ledoit and Wolf's shrunk covariance)."""
    need_sklearn()
    np = numpy()
    from sklearn.covariance import LedoitWolf

    from agentmon.fingerprint.window import Shape

    x = np.asarray(windows, dtype=np.float64)
    middle = np.median(x, axis=0)
    scale = np.maximum(x.std(axis=0), LEAST_SCALE)
    z = (x - middle) / scale
    # what never varied has no covariance to learn: it is as free as the scale above says
    covariance = LedoitWolf(assume_centered=True).fit(z).covariance_ if len(z) > 1 else np.eye(x.shape[1])
    covariance = covariance + np.diag(np.where(np.diag(covariance) < 0.25, 0.25, 0.0))
    precision = np.linalg.inv(covariance)
    precision = (precision + precision.T) / 2
    return Shape(_floats(middle), _floats(scale), tuple(_floats(row) for row in precision))


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(round(float(v), 9) for v in values)


def interval(alerts: int, sessions: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a rate of which `alerts` in `sessions` were seen."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, alerts, sessions - alerts + 1)) if alerts else 0.0
    high = float(beta.ppf(1 - tail, alerts + 1, sessions - alerts)) if alerts < sessions else 1.0
    return low, high
