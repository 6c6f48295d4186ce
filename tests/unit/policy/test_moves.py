# SPDX-License-Identifier: Apache-2.0
"""Moving a directory frees nothing below it, and plants nothing: whoever is let through is checked path by path."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st

from agentmon.errors import PolicyError
from agentmon.model.operations import Action, Operation, Reason
from agentmon.model.tables import NO_RULE, CompiledPolicy
from agentmon.policy.bind import bind_policy
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator, leaving
from agentmon.policy.load import load, load_text
from agentmon.policy.rules import Variables
from agentmon.policy.walk import run_move
from tests.support.policies import random_case, random_paths

VARIABLES = Variables.of(workspace="/home/u/w", home="/home/u", user="u")
CODING = load("coding-agent")
COMPILED = compile_policy(CODING, VARIABLES)


def rule_of(compiled: CompiledPolicy, old: str, new: str) -> str | None:
    """The rule that keeps a directory in place, "default", or None."""
    verdict = run_move(compiled, old.encode(), new.encode())
    if verdict.action is Action.ALLOW:
        return None
    assert verdict.reason is Reason.CONTENTS
    return "default" if verdict.rule == NO_RULE else compiled.rules[verdict.rule].id


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/home/u/w/src", "/home/u/w/lib"),
        ("/home/u/w/build", "/home/u/w/build.old"),
        ("/home/u/w/a/b", "/home/u/w/b"),
        ("/tmp/x", "/tmp/y"),
        ("/tmp/x", "/var/tmp/x"),
        ("/home/u/.cache/pip/a", "/home/u/.cache/pip/b"),
        ("/home/u/w/node_modules/.a-Xy12", "/home/u/w/node_modules/a"),
    ],
)
def test_ordinary_moves_are_free(old: str, new: str) -> None:
    assert rule_of(COMPILED, old, new) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/home/u", "/home/u2"),
        ("/home", "/tmp/h"),
        ("/home/u/.config", "/tmp/c"),
        ("/home/u/.config", "/home/u/w/c"),
        ("/home/u/w/x", "/home/u/.config"),
        ("/tmp/x", "/home/u/.local"),
        ("/etc", "/tmp/etc"),
        ("/home/u/w", "/tmp/w"),
        ("/tmp/x", "/home/u/w/x"),  # with .git/hooks, which nobody may write there
        ("/home/u/w/x", "/var/tmp/x"),  # and back again
    ],
)
def test_nothing_fenced_is_carried_away_and_nothing_is_planted(old: str, new: str) -> None:
    assert rule_of(COMPILED, old, new) is not None


def test_the_rule_to_blame_is_named() -> None:
    text = "policy: p\ndefault: {read: allow, write: allow, create: allow}\nrules:\n"
    text += "  - {id: keys, on: read, paths: /srv/a/b/*.key, action: deny}\n"
    compiled = compile_policy(load_text(text, "p.yaml"), VARIABLES)
    assert rule_of(compiled, "/srv", "/srv2") == "keys"
    assert rule_of(compiled, "/srv/a", "/srv/x") == "keys"
    assert rule_of(compiled, "/srv/x", "/srv/a") == "keys"
    assert rule_of(compiled, "/srv/a/c", "/srv/x") is None


def test_what_may_not_be_deleted_stays() -> None:
    text = "policy: p\ndefault: {read: allow, write: allow, create: allow}\nrules:\n"
    text += "  - {id: keep, on: delete, paths: [/srv/a/keep/**, /srv/b/*.db], action: deny}\n"
    policy = load_text(text, "p.yaml")
    compiled, evaluator = compile_policy(policy, VARIABLES), Evaluator(policy, VARIABLES)
    for directory in ("/srv/a", "/srv/a/keep", "/srv/a/keep/x", "/srv/b", "/srv"):
        assert rule_of(compiled, directory, "/tmp/x") == "keep"
    assert rule_of(compiled, "/srv/a/keep/x", "/srv/a/keep/y") is None
    assert rule_of(compiled, "/srv/c", "/srv/d") is None

    def away(old: str, new: str) -> Action:
        return leaving(*(evaluator.path(Operation.DELETE, p.encode()) for p in (old, new))).action

    assert away("/srv/b/x.db", "/srv/b/x.db.old") is Action.DENY
    assert away("/srv/b/x.db", "/srv/b/y.db") is Action.ALLOW
    assert away("/srv/b/x.db.new", "/srv/b/x.db") is Action.ALLOW
    assert away("/srv/b/x", "/tmp/x") is Action.ALLOW


SUFFIXES = [b"", b"/a", b"/b", b"/a/b", b"/b/a.txt", b"/.x", b"/a/.x/key"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32))
@example(142_785)  # a hole below, where only one of the two is allowed for good
def test_random_moves_change_nothing_below(seed: int) -> None:
    policy, session, questions = random_case(seed)
    bound = bind_policy(policy, session)
    try:
        compiled = compile_policy(bound)
    except PolicyError:
        assume(False)
        raise
    evaluator = Evaluator(bound)
    paths = [path for _, path, _ in questions][:12] + random_paths(seed + 1, 6)
    directories = [p for p in dict.fromkeys([p.rpartition(b"/")[0] for p in paths]) if p][:8]
    below = [*SUFFIXES, *(p[len(d) :] for p in paths for d in directories if p.startswith(d + b"/"))]
    exe = questions[0][2]
    tags = evaluator.exe_tags(exe)

    def blocks(operation: Operation, path: bytes) -> bool:
        return evaluator.path_by_tags(operation, path, tags).action >= Action.HOLD

    for old in directories:
        for new in directories:
            if old == new or run_move(compiled, old, new, tags).action is not Action.ALLOW:
                continue
            event("a move was free")
            for suffix in below:
                if not suffix:
                    continue
                for operation in (Operation.READ, Operation.WRITE, Operation.DELETE):
                    assert not blocks(operation, old + suffix) or blocks(operation, new + suffix), (old, new, suffix)
                for operation in (Operation.WRITE, Operation.CREATE):
                    assert not blocks(operation, new + suffix) or blocks(operation, old + suffix), (old, new, suffix)
