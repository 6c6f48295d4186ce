# SPDX-License-Identifier: Apache-2.0
"""The network: it learns an order, is the same after a file, and refuses what does not fit."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from agentmon.errors import AgentmonError
from agentmon.fingerprint import document, training
from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.network import Network, train
from agentmon.fingerprint.training import Recorded

pytest.importorskip("sklearn", reason="training needs scikit-learn")


@pytest.fixture(scope="module")
def network() -> Network:
    """Of a cycle of four groups; the fifth was never met."""
    return train([[1, 2, 3, 4] * 60 for _ in range(8)], 6, epochs=20)


def test_the_usual_order_is_no_surprise(network: Network) -> None:
    usual = network.surprises([1, 2, 3, 4] * 20)
    other = [1, 2, 3, 4] * 20
    random.Random(1).shuffle(other)
    assert sum(usual) / len(usual) < 0.5
    assert sum(network.surprises(other)) / len(other) > 2
    assert network.surprises([1, 2, 3, 5])[-1] > 8
    assert network.surprises([]) == []


def test_a_stretch_at_a_time_says_the_same(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [1, 2, 3, 4, 2, 1] * 10
    whole = network.surprises(asked)
    monkeypatch.setattr("agentmon.fingerprint.network._CHUNK", 7)
    assert network.surprises(asked) == pytest.approx(whole, abs=1e-4)


def test_a_network_survives_a_file_and_wrong_shapes_are_refused(network: Network) -> None:
    packed = network.pack()
    arrays = [(a["shape"], a["data"]) for a in packed["arrays"]]
    assert Network.unpack(packed["kinds"], arrays).surprises([1, 2, 3]) == network.surprises([1, 2, 3])
    with pytest.raises(ValueError, match="other shapes"):
        Network.unpack(7, arrays)
    with pytest.raises(ValueError, match=r"reshape|size|base64|padding"):
        Network.unpack(packed["kinds"], [*arrays[:3], (arrays[3][0], "AAAA")])


def test_a_baseline_with_a_network(recorded: Callable[..., Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "NETWORK_SESSIONS", 10)
    monkeypatch.setattr(training, "NETWORK_TOKENS", 100)
    said: list[str] = []
    baseline = training.train(
        "net", [recorded(seed, 5) for seed in range(12)], network=True, check=False, say=said.append
    )
    assert any("network" in line for line in said)
    assert baseline.core.network is not None
    again = Baseline.of(*document.parse(document.write(baseline.body), "x"))
    assert again.score(recorded(50, 5).tokens) == baseline.score(recorded(50, 5).tokens)
    larger = baseline.body.model_copy(update={"groups": [*baseline.body.groups, "exec other"]})
    with pytest.raises(AgentmonError, match="the network knows other groups"):
        Baseline.of(larger)


def test_too_little_for_a_network_is_said(recorded: Callable[..., Recorded]) -> None:
    said: list[str] = []
    baseline = training.train(
        "net", [recorded(seed, 5) for seed in range(12)], network=True, check=False, say=said.append
    )
    assert baseline.core.network is None
    assert any("too little for a network (100 sessions, 20,000 acts)" in line for line in said)
