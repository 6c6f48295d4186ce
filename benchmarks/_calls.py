# SPDX-License-Identifier: Apache-2.0
"""The sequence model alone, on traces of system calls that others recorded (ADFA-LD): a check of the method.

Fitted on `train` only; `validation` (normal) and `attack` are scored once. Weights come from the likelihood of normal
sessions held out; the three means have equal shares. docs/design/0009-fingerprint.md says what was looked at before.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentmon.fingerprint import network
from agentmon.fingerprint.sequence import LONGEST, Counts, Model, Vocabulary, distinct, fold_of, learn
from benchmarks._common import Goal, Report, percentile, say
from benchmarks._plots import roc

RATES = (0.01, 0.05, 0.15)
STIDE = 6
HALVES = 2
FOLDS = 4
#: Traces whose calls are timed.
ASKED = 100


def sequences(report: Report, args: argparse.Namespace) -> None:
    """AUC and true positives at fixed rates of false ones, next to three known methods in the same run."""
    train, normal, attack, families = load(args.data)
    ours = _ours(report, train, normal + attack)
    scores = {"agentmon": ours["all"], "agentmon, counting alone": ours["counting"]}
    scores |= _others(train, normal + attack)
    found = {name: _figures(values[: len(normal)], values[len(normal) :]) for name, values in scores.items()}
    report.results["system calls (ADFA-LD, development split)"] = {
        "sessions": {"train": len(train), "normal": len(normal), "attack": len(attack)},
        **found,
        "agentmon, by family": {
            family: _figures(
                scores["agentmon"][: len(normal)],
                [s for s, f in zip(scores["agentmon"][len(normal) :], families, strict=True) if f == family],
            )
            for family in sorted(set(families))
        },
    }
    figures = found["agentmon"]
    report.goals.append(Goal("system calls, AUC", figures["AUC"], "", 0.9, at_most=False))
    for figure, value in figures.items():
        best = max(found[name][figure] for name in found if not name.startswith("agentmon"))
        report.goals.append(
            Goal(f"system calls, {figure}: above STIDE, 1-NN, IsolationForest", value, "", best, at_most=False)
        )
    curves = {n: _curve(s[: len(normal)], s[len(normal) :]) for n, s in scores.items() if n != "1-NN, term counts"}
    roc(curves, args.plots, "fingerprint-roc")


def load(data: Path) -> tuple[list[list[str]], list[list[str]], list[list[str]], list[str]]:
    """(train, validation, attack, families of attack). Raises `FileNotFoundError`."""
    path = data / "adfa_ld_dev.jsonl.gz"
    if not path.exists():
        raise FileNotFoundError(f"no `{path}`: it is no part of the project; give its directory with --data")
    parts: dict[str, list[list[str]]] = {"train": [], "validation": [], "attack": []}
    families = []
    with gzip.open(path, "rt") as file:
        for line in file:
            row = json.loads(line)
            parts[row["split"]].append([str(call) for call in row["trace"]])
            if row["split"] == "attack":
                families.append(row["family"])
    return parts["train"], parts["validation"], parts["attack"], families


def cost(data: Path, events: int) -> dict[str, Any]:
    """Training on so many calls, memory of their tables, and time of one call of sessions that were not learnt."""
    train, normal, _, _ = load(data)
    groups, known = Vocabulary(), list[list[int]]()
    while train and sum(map(len, known)) < events:
        known.append([groups.add(call) for call in train.pop()])
    wall, cpu = time.perf_counter(), time.process_time()
    weights, _ = learn(known, FOLDS)
    tracemalloc.start()
    counts = Counts()
    for trace in known:
        counts.add(trace)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    model, times = Model(counts, weights), list[int]()
    for trace in normal[:ASKED]:
        numbers = [groups.number(call) for call in trace]
        for i, number in enumerate(numbers):
            recent = tuple(numbers[max(0, i - LONGEST) : i])
            start = time.perf_counter_ns()
            model.surprise(recent, number)
            times.append(time.perf_counter_ns() - start)
    return {
        "events": sum(map(len, known)), "training, s": round(wall, 1), "training, processor s": round(cpu, 1),
        "memory of the tables, MB": round(memory / 2**20, 1), "one event, µs": percentiles(times),
    }  # fmt: skip


def percentiles(times_ns: Sequence[int]) -> dict[str, float]:
    """Of times, in microseconds."""
    return {f"p{p}": percentile(times_ns, p) / 1000 for p in (50, 90, 99)} | {"events": len(times_ns)}


def _ours(report: Report, train: list[list[str]], tested: list[list[str]]) -> dict[str, Any]:
    started = time.process_time()
    groups = Vocabulary()
    known = [[groups.add(call) for call in trace] for trace in train]
    asked = [[groups.number(call) for call in trace] for trace in tested]
    weights, folds = learn(known, FOLDS)
    counts = Counts()
    for trace in known:
        counts.add(trace)
    model = Model(counts, weights)
    held_out = [Model(fold, weights) for fold in folds]
    usual = [_means(held_out[fold_of(i, len(known), FOLDS)].all_surprises(t), t) for i, t in enumerate(known)]
    counting = time.process_time() - started
    say("the network")
    kinds = len(groups.names)
    halves = [network.train(known[1 - half :: HALVES], kinds) for half in range(HALVES)]
    usual = [
        (*means, _mean(halves[i % HALVES].surprises(t))) for i, (means, t) in enumerate(zip(usual, known, strict=True))
    ]
    whole = network.train(known, kinds)
    report.results["system calls, training, processor s"] = {
        "calls": sum(map(len, known)), "counting": round(counting, 1),
        "network, three times": round(time.process_time() - started - counting, 1),
    }  # fmt: skip
    found = [(*_means(model.all_surprises(t), t), _mean(whole.surprises(t))) for t in asked]
    return {
        "all": _standard(usual, found, 3),
        "counting": _standard(usual, found, 2),
    }


def _means(bits: Sequence[float], trace: Sequence[int]) -> tuple[float, float]:
    return _mean(bits), _mean([bits[i] for i in distinct(trace)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _standard(usual: Sequence[Sequence[float]], found: Sequence[Sequence[float]], terms: int) -> list[float]:
    """Standard deviations from the mean of held-out normal sessions, added."""
    import numpy as np

    u, f = np.asarray(usual)[:, :terms], np.asarray(found)[:, :terms]
    result: list[float] = ((f - u.mean(0)) / u.std(0)).sum(1).tolist()
    return result


def _others(train: list[list[str]], tested: list[list[str]]) -> dict[str, list[float]]:
    """The methods to beat. 1-NN in both of its usual forms; IsolationForest in the form that does better of two."""
    import numpy as np
    from sklearn.ensemble import IsolationForest
    from sklearn.feature_extraction.text import TfidfVectorizer

    windows = {tuple(t[i : i + STIDE]) for t in train for i in range(len(t) - STIDE + 1)}
    found: dict[str, list[float]] = {}
    found["STIDE"] = [
        _mean([tuple(t[i : i + STIDE]) not in windows for i in range(len(t) - STIDE + 1)]) for t in tested
    ]
    for name, sublinear in (("1-NN", True), ("1-NN, term counts", False)):
        words = TfidfVectorizer(analyzer=lambda trace: trace, sublinear_tf=sublinear)
        known, asked = words.fit_transform(train), words.transform(tested)
        found[name] = (1 - (asked @ known.T).max(axis=1).toarray().ravel()).tolist()
        forest = IsolationForest(n_estimators=300, random_state=0).fit(known)
        label = "IsolationForest" if sublinear else "IsolationForest, term counts"
        found[label] = np.negative(forest.score_samples(asked)).tolist()
    return found


def _curve(normal: Sequence[float], attack: Sequence[float]) -> tuple[list[float], list[float]]:
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve([0] * len(normal) + [1] * len(attack), [*normal, *attack])
    return false.tolist(), true.tolist()


def _figures(normal: Sequence[float], attack: Sequence[float]) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    found = {"AUC": round(float(roc_auc_score([0] * len(normal) + [1] * len(attack), [*normal, *attack])), 4)}
    ordered = sorted(normal, reverse=True)
    for rate in RATES:
        threshold = ordered[int(rate * len(ordered))]
        found[f"TPR at {rate:.0%} FPR"] = round(sum(score > threshold for score in attack) / len(attack), 4)
    return found
