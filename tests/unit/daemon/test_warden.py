# SPDX-License-Identifier: Apache-2.0
"""Whether the next daemon has come, as the warden sees it: by the lock alone, and never too soon."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from agentmon.daemon import warden
from agentmon.host import starting


class Scene:
    """A state directory whose lock others take and give back as time goes by."""

    def __init__(self, state: Path) -> None:
        self.state = state
        (state / "lock").touch()
        self.now_s = 100.0
        self.acts: dict[float, Callable[[], None]] = {}
        self.other: BinaryIO = open(state / "lock", "rb")  # noqa: SIM115  # closed by the fixture

    def take(self) -> None:
        fcntl.flock(self.other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def give(self) -> None:
        fcntl.flock(self.other, fcntl.LOCK_UN)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for at_s in [at_s for at_s in self.acts if 100 + at_s <= self.now_s]:
            self.acts.pop(at_s)()

    def nobody_comes(self) -> bool:
        with open(self.state / "lock", "rb") as lock:
            return warden.nobody_comes(lock, self.state, lambda: self.now_s, self.sleep)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.other.close()


def test_the_next_daemon_comes(scene: Scene) -> None:
    scene.acts[3] = scene.take
    assert scene.nobody_comes() is False


def test_nobody_comes(scene: Scene) -> None:
    assert scene.nobody_comes() is True
    assert scene.now_s > 100 + warden.GRACE_S


def test_the_lock_of_the_one_that_died_is_given_back_late(scene: Scene) -> None:
    """Its pipe is closed before its lock is: that is no other daemon."""
    scene.take()
    scene.acts[1] = scene.give
    assert scene.nobody_comes() is True


def test_one_that_fails_while_it_starts_takes_over_nothing(scene: Scene) -> None:
    def begin() -> None:
        scene.take()
        starting.announce(scene.state)

    def fail() -> None:
        starting.withdraw(scene.state)
        scene.give()

    scene.acts = {1: begin, 29: fail}
    assert scene.nobody_comes() is True


def test_one_that_fails_again_and_again_takes_over_nothing(scene: Scene) -> None:
    for second in range(1, 60, 4):
        scene.acts |= {second: scene.take, second + 3: scene.give}
    assert scene.nobody_comes() is True
    assert scene.now_s < 100 + warden.GRACE_S + 5
