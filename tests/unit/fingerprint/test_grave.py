# SPDX-License-Identifier: Apache-2.0
"""Acts of consequence: one is enough where an agent never did the like, and none where it usually does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.grave import grave
from agentmon.fingerprint.progress import STATISTICS
from agentmon.fingerprint.tokens import Token, Tokens
from agentmon.fingerprint.training import Recorded, train
from agentmon.fingerprint.watching import retold
from tests.support.behaviour import MadeSession, made

pytest.importorskip("sklearn", reason="training needs scikit-learn")

#: One act, allowed, and nothing else.
ACTS = {
    "a key is read": ("/usr/bin/cat", "read", "@/.ssh/id_rsa"),
    "a shell's start is changed": ("/usr/bin/bash", "write", "@/.bashrc"),
    "a job is installed": ("/usr/bin/tee", "create", "/etc/cron.d/job"),
    "a foreign address is reached": ("/usr/bin/curl", "connect", "198.51.100.66:4444"),
    "another process is looked into": ("/usr/bin/cat", "read", "/proc/1/environ"),
    "a process is traced": ("/usr/bin/gdb", "ptrace", ""),
}


@pytest.mark.parametrize(
    ("group", "is_grave"),
    [
        ("read home/keys", True), ("read etc/login", False), ("write etc/login", True), ("read workspace", False),
        ("read! workspace", True), ("write workspace/git-hooks", True), ("read workspace/git-hooks", False),
        ("create etc", True), ("create tmp", False), ("connect public:high", True), ("connect named:https", False),
        ("connect loopback:high", False), ("setid", True), ("exec accounts", True), ("exec text", False),
        ("exec tmp", True), ("fork", False), ("exit error", False),
    ],
)  # fmt: skip
def test_what_is_grave(group: str, is_grave: bool) -> None:
    assert grave(group) is is_grave


@pytest.fixture(scope="module")
def learnt() -> Baseline:
    return train("made", [session(n) for n in range(40)], check=False)


def session(seed: int, *more: tuple[str, str, str]) -> Recorded:
    """Made up; what is more comes at its end."""
    done = made(seed, tasks=8)
    for program, operation, where in more:
        done.runs(program, (operation, where.replace("@", done.home)))
    reader = Tokens()
    return Recorded(done.id, [t for record in done.records if (t := reader.read(record))])


@pytest.mark.parametrize("what", ACTS)
def test_one_such_act_is_over_the_threshold_at_once(what: str, learnt: Baseline) -> None:
    threshold = learnt.calibration.threshold(0.01)
    for seed in range(5000, 5005):
        before = session(seed)
        if learnt.score(before.tokens) > threshold:
            continue
        told = retold(learnt, session(seed, ACTS[what]).tokens)
        first = told.first_over(threshold)
        assert first is not None
        assert first - len(before.tokens) <= 3  # its program's start is three acts


def test_what_an_agent_usually_does_is_not_grave_for_it() -> None:
    acts = (ACTS["a key is read"], ACTS["a foreign address is reached"])
    baseline = train("deploys", [session(n, *acts) for n in range(40)], check=False)
    for seed in range(6000, 6010):
        told = baseline.standard.each(baseline.highest(session(seed, *acts).tokens))
        assert told["grave"] <= 1


def test_the_promise_counts_sessions_of_the_baseline_that_did_something_unheard_of() -> None:
    odd = session(7, ACTS["a key is read"])
    baseline = train("odd", [odd if n == 7 else session(n) for n in range(40)], check=False)
    other = baseline.highest(session(6100, ACTS["a job is installed"]).tokens)
    assert other["grave"] <= max(data.highest[STATISTICS.index("grave")] for data in baseline.body.sessions)


def test_its_own_process_is_no_secret_to_a_program(tokens: Callable[[MadeSession], list[Token]]) -> None:
    looks = MadeSession(1)
    for name in ("/proc/7/maps", "/proc/self/environ", "/proc/8/maps"):
        looks.did("read", name, comm="grep", pid=7)
    assert [t.group for t in tokens(looks)] == ["read proc/process", "read proc/process", "read proc/private"]
