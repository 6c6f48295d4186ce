# SPDX-License-Identifier: Apache-2.0
"""Whether a directory may move, and a file be changed by its name: the kernel says what the tables say in Python."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentmon.model.operations import Action, Operation, Tier
from agentmon.policy.evaluate import leaving
from agentmon.policy.walk import run_move
from tests.kernel.test_agreement import base, compare, remove_deep
from tests.support import policies
from tests.support.fence import Fence, Session, attempt, blocked, in_child, object_path

__all__ = ["base"]
CARRIED = (Operation.READ, Operation.WRITE, Operation.RENAME)


def may_move(session: Session, old: bytes, new: bytes) -> bool:
    """A directory, to a name that is free."""
    evaluator = session.evaluator
    verdicts = [evaluator.path_by_tags(o, old, 0) for o in CARRIED]
    verdicts += [evaluator.path_by_tags(Operation.CREATE, new, 0), run_move(session.compiled, old, new)]
    verdicts.append(leaving(*(evaluator.path_by_tags(Operation.DELETE, path, 0) for path in (old, new))))
    return all(v.action < Action.HOLD for v in verdicts)


@pytest.mark.tier("lsm")
def test_random_moves(fence: Fence, base: bytes) -> None:
    done = {True: 0, False: 0}
    for seed in range(24):
        policy, variables, questions = policies.random_case(seed, 40, os.fsdecode(base))
        paths = list(dict.fromkeys(p for _, p, _ in questions if p.startswith(base + b"/") and len(p) < 2000))
        pairs = [(a, b) for a in paths[:6] for b in paths[6:12] if not (b + b"/").startswith(a + b"/")]
        with fence.session(policy, variables) as session:
            for old, new in pairs[:8]:
                remove_deep(base)
                Path(os.fsdecode(old)).mkdir(parents=True)
                Path(os.fsdecode(os.path.dirname(new))).mkdir(parents=True, exist_ok=True)
                if os.path.lexists(new):
                    continue
                session.run(lambda old=old, new=new: attempt(lambda: os.rename(old, new)))  # type: ignore[misc]
                moved = os.path.lexists(new)
                assert moved == may_move(session, old, new), (seed, old, new)
                done[moved] += 1
    assert min(done.values()) > 10, done


CHANGES = (
    (Operation.ATTR, lambda path: os.chmod(path, 0o600)),
    (Operation.WRITE, lambda path: os.truncate(path, 0)),
    (Operation.DELETE, os.unlink),
)


def test_random_changes(fence: Fence, tier: Tier, base: bytes) -> None:
    done = {True: 0, False: 0}
    for seed in range(24 if tier is Tier.REACT else 8):
        policy, variables, questions = policies.random_case(seed, 40, os.fsdecode(base))
        paths = list(dict.fromkeys(p for _, p, _ in questions if p.startswith(base + b"/") and len(p) < 2000))
        with fence.session(policy, variables) as session:
            for path in paths[:8]:
                remove_deep(base)
                Path(os.fsdecode(os.path.dirname(path))).mkdir(parents=True, exist_ok=True)
                Path(os.fsdecode(path)).touch()
                outcome = session.run(lambda path=path: [in_child(lambda f=f: f(path)) for _, f in CHANGES])  # type: ignore[misc]
                told = [d for d in outcome.decisions if d.verdict.blocks]
                for (operation, _), ended in zip(CHANGES, outcome.value, strict=True):
                    refused = session.evaluator.path_by_tags(operation, path, 0).action >= Action.HOLD
                    assert ended == (blocked(tier) if refused else (0, 0)), (seed, operation, path)
                    if refused:
                        decision = told.pop(0)
                        assert (decision.operation, object_path(decision)) == (operation, path)
                        compare(session, operation, path, decision)
                    done[refused] += 1
                assert not told
    assert min(done.values()) > 10, done
