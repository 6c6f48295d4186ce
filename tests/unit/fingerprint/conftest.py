# SPDX-License-Identifier: Apache-2.0
"""One baseline of a made-up agent for all tests that only ask it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.tokens import Token, Tokens
from agentmon.fingerprint.training import Recorded, train
from tests.support.behaviour import MadeSession, made


def tokens_of(session: MadeSession) -> list[Token]:
    reader = Tokens()
    return [token for record in session.records if (token := reader.read(record)) is not None]


def recorded_of(seed: int, tasks: int | None = None) -> Recorded:
    session = made(seed, tasks=tasks)
    return Recorded(session.id, tokens_of(session))


@pytest.fixture
def recorded() -> Callable[..., Recorded]:
    """A made-up session by its seed."""
    return recorded_of


@pytest.fixture
def tokens() -> Callable[[MadeSession], list[Token]]:
    """The tokens of a session."""
    return tokens_of


@pytest.fixture(scope="session")
def baseline() -> Baseline:
    """Of 40 sessions."""
    pytest.importorskip("sklearn", reason="training needs scikit-learn")
    return train("made", [recorded_of(seed, 8) for seed in range(40)], check=False)
