# SPDX-License-Identifier: Apache-2.0
"""Many processes on one CPU, preempted in the middle of hooks: no record ever carries a piece of another's path."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from agentmon.model.operations import Action, Operation, Tier
from tests.support.fence import Fence, object_path

PROCESSES = 8
FILES = 5


def test_scratch_memory_survives_preemption(
    fence: Fence, tier: Tier, program: Callable[[str], Path], ground: Path
) -> None:
    """Each process has paths of its own length and letters; the inode in the record tells which file it really was."""
    inodes: dict[int, tuple[int, bytes]] = {}
    for number in range(PROCESSES):
        real = ground.joinpath(*[chr(97 + number) * 150] * (number + 2))
        real.mkdir(parents=True)
        (ground / str(number)).symlink_to(real)
        for i in range(FILES):
            path = real / str(i)
            path.touch()
            inodes[path.stat().st_ino] = (number, os.fsencode(path))
    text = f'  - {{id: seen, on: read, paths: ["{ground}/**"], action: audit}}\n'
    seconds = 3 if tier is Tier.REACT else 12
    words = [program("crowd"), PROCESSES, FILES, seconds, ground]
    before = fence.monitor.counters()
    with fence.session(text) as session:
        outcome = session.run([str(w) for w in words])
        rules = [session.compiled.rules[0].id]
    after = fence.monitor.counters()
    opens = int(outcome.value)
    about = [d for d in outcome.decisions if d.verdict is not Action.ALLOW]
    assert rules == ["seen"]
    by_process: dict[int, set[int]] = defaultdict(set)
    for decision in about:
        number, path = inodes[decision.inode[1]]
        assert object_path(decision) == path
        assert (decision.operation, decision.verdict, decision.rule) == (Operation.READ, Action.AUDIT, 0)
        by_process[decision.process.pid].add(number)
    # each process opened only its own, and all of them ran
    assert sorted(by_process.values(), key=min) == [{n} for n in range(PROCESSES)]
    lost = after["ring_lost"] - before["ring_lost"]
    assert len(about) + lost >= opens
    assert len(about) > (10_000 if tier is Tier.REACT else 5_000)
    assert after["scratch_exhausted"] == before["scratch_exhausted"]
    assert after["read_failed"] == before["read_failed"]
