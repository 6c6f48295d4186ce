# SPDX-License-Identifier: Apache-2.0
"""Plots of the fingerprint's figures, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import HERE, say

DIRECTORY = HERE / "results"


def _figure(title: str, x: str, y: str) -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        say("no plots: matplotlib is not installed")
        return None, None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "agentmon"  # the same figures, the same file
    figure, axes = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, where: Path, name: str) -> None:
    where.mkdir(parents=True, exist_ok=True)
    figure.savefig(where / f"{name}.svg", metadata={"Date": None})


def roc(
    curves: dict[str, tuple[Sequence[float], Sequence[float]]],
    where: Path,
    name: str,
    title: str = "system-call sequences",
) -> None:
    """True against false positives, one line a method."""
    figure, axes = _figure(title, "false-positive rate", "true-positive rate")
    if figure is None:
        return
    for label, (false, true) in curves.items():
        axes.plot(false, true, label=label, linewidth=2 if label == "agentmon" else 1)
    axes.legend(loc="lower right")
    _save(figure, where, name)


def calibration(rows: Sequence[dict[str, Any]], where: Path, name: str) -> None:
    """Promised against observed, with intervals."""
    figure, axes = _figure("false alerts per session", "promised at most", "observed, 95 % interval")
    if figure is None:
        return
    promised = [row["promised"] for row in rows]
    observed = [row["observed"] for row in rows]
    errors = [
        [o - row["low"] for o, row in zip(observed, rows, strict=True)],
        [row["high"] - o for o, row in zip(observed, rows, strict=True)],
    ]
    axes.errorbar(promised, observed, yerr=errors, fmt="o", capsize=3)
    top = 1.1 * max([*promised, *(row["high"] for row in rows)])
    axes.plot([0, top], [0, top], linestyle=":", color="gray")
    _save(figure, where, name)
