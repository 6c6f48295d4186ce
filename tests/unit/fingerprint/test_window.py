# SPDX-License-Identifier: Apache-2.0
"""Windows: what each number is, and how far one is from the usual."""

from __future__ import annotations

import random

import pytest

from agentmon.fingerprint import fitting
from agentmon.fingerprint.tokens import Token
from agentmon.fingerprint.window import NAMES, STEP, WINDOW, Depths, Seen, Windows, features, value


def token(
    operation: str, group: str = "", detail: str = "", *, place: str = "", pid: int = 1, parent: int = 0
) -> Token:
    return Token(0, group or operation, detail, operation, place, "x", group.startswith(f"{operation}!"), pid, parent)


def read(seen: list[Seen]) -> dict[str, float]:
    return {name: round(value(name, v), 6) for name, v in zip(NAMES, features(seen), strict=True)}


def plain(*tokens: Token) -> list[Seen]:
    return [Seen(t, new_group=False, new_detail=False, depth=0) for t in tokens]


def test_shares_and_numbers() -> None:
    found = read(
        plain(
            token("exec", "exec text", "cat"),
            token("read", "read home", place="home"),
            token("read", "read! etc/keys", place="etc/keys"),
            token("connect", "connect public:https", "example.com"),
        )
    )
    assert found["programs started"] == 0.25
    assert found["files read"] == 0.5
    assert found["network"] == 0.25
    assert found["blocked"] == 0.25
    assert found["outside of workspace and system"] == 0.5
    assert (found["different programs"], found["different hosts"], found["different places"]) == (1, 1, 2)
    assert found["variety (bits)"] == 2


def test_fan_out_and_depth_follow_forks() -> None:
    depths = Depths()
    forks = [token("fork", pid=n, parent=1) for n in (2, 3, 4)] + [token("fork", pid=9, parent=4)]
    seen = [Seen(t, new_group=False, new_detail=False, depth=depths.of(t)) for t in forks]
    found = read(seen)
    assert found["widest fan-out"] == 3
    assert found["depth of processes"] == 2
    assert depths.of(token("exit", pid=9)) == 2
    assert depths.of(token("read", pid=9)) == 0


def test_what_is_new_is_counted_and_nothing_is_nothing() -> None:
    found = read([Seen(token("read"), new_group=True, new_detail=False, depth=0)] * 2)
    assert found["kinds of act never seen in the baseline"] == 1
    assert set(read([]).values()) == {0.0}


def test_a_window_ends_every_step_from_the_first_full_one_on() -> None:
    cuts = Windows()
    at = [n for n in range(1, 130) if cuts.add(plain(token("read"))[0]) is not None]
    assert at == list(range(WINDOW, 130, STEP))


def test_the_distance_grows_with_what_is_unusual_and_its_parts_add_up() -> None:
    pytest.importorskip("sklearn")
    draw = random.Random(1)
    usual = [[abs(draw.gauss(0.5, 0.1)) for _ in NAMES[:-1]] + [0.0] for _ in range(80)]  # the last is constant
    shape = fitting.fit_shape(usual)
    middle = list(shape.middle)
    assert shape.distance(middle) == 0
    near, far = [*middle], [*middle]
    near[0] += 0.1
    far[0] += 0.5
    assert 0 < shape.distance(near) < shape.distance(far)
    assert sum(shape.parts(far)) == pytest.approx(shape.distance(far) ** 2)
    odd = [*middle]
    odd[-1] = 0.25
    assert shape.distance(odd) > 3


def test_intervals() -> None:
    pytest.importorskip("scipy")
    assert fitting.interval(0, 100) == (0.0, pytest.approx(0.0362, abs=1e-4))
    assert fitting.interval(5, 100) == (pytest.approx(0.0164, abs=1e-4), pytest.approx(0.1128, abs=1e-4))
    assert fitting.interval(7, 7)[1] == 1.0
