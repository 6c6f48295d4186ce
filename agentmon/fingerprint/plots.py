# SPDX-License-Identifier: Apache-2.0
"""Plots of a baseline, with matplotlib if it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentmon.errors import AgentmonError, NotSupportedError
from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.summary import Normal


def plots(baseline: Baseline, normal: Normal, directory: Path) -> list[Path]:
    """Writes what is normal, and the scores that calibrate, as PNG and SVG. Raises `AgentmonError`."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise NotSupportedError("matplotlib is not installed: `pip install 'agentmon[plots]'`") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    figure.suptitle(f"{baseline.name}, revision {baseline.body.revision}: {len(normal.acts)} sessions")
    for place, (title, counts) in zip(
        axes.flat, (("programs", normal.programs), ("places", normal.places), ("hosts", normal.hosts)), strict=False
    ):
        _bars(place, title, counts.most_common(12))
    scores = baseline.calibration.scores
    last = axes[1][1]
    last.plot(scores, [(i + 1) / (len(scores) + 1) for i in range(len(scores))], drawstyle="steps-post")
    last.axvline(baseline.calibration.threshold(0.01), linestyle=":", color="red")
    last.set(title="scores held out, threshold", xlabel="score", ylabel="part of the sessions")
    found = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for kind in ("png", "svg"):
            found.append(directory / f"{baseline.name}.{kind}")
            figure.savefig(found[-1])
    except OSError as error:
        raise AgentmonError(f"cannot write to `{directory}`: {(error.strerror or str(error)).lower()}") from error
    finally:
        plt.close(figure)
    return found


def _bars(axes: Any, title: str, counts: Sequence[tuple[str, int]]) -> None:
    axes.set(title=title)
    axes.barh([name.replace("$", r"\$") for name, _ in reversed(counts)], [count for _, count in reversed(counts)])
