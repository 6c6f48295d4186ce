# SPDX-License-Identifier: Apache-2.0
"""Random plans, and sessions that do random things: the kernel lets happen what the reference does, and no more."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from agentmon.model.events import StepEvent, Stepping
from agentmon.model.operations import Action, Operation
from agentmon.plan.bind import bind_plan
from agentmon.plan.load import load_text
from agentmon.plan.track import State, Tracker
from agentmon.policy.rules import Variables
from tests.support.fence import ALLOW_ALL, Fence

HERE = Variables.of(workspace="/nonexistent", home="/nonexistent", user="nobody")
PROGRAMS = 4
FILES = 3
WORDS = ("x", "y")

#: Does what it is told: w(rite), n(othing but a child), r(un another program), e(xit).
LOOP = """
echo ready >&8
while read word what <&7; do
    case $word in
    w) (echo x >> $what) 2>/dev/null && echo yes >&8 || echo no >&8 ;;
    r) ($what -c 'exit 0') 2>/dev/null && echo yes >&8 || echo no >&8 ;;
    n) (:); echo yes >&8 ;;
    e) exit $what ;;
    esac
done
"""

#: What was tried: what, the number of the process, more about it, and whether it happened.
Log = list[tuple[str, int, str, bool]]


def plan_text(rng: random.Random, ground: Path) -> str:
    """A plan of a few steps."""
    count = rng.randint(1, 5)
    lines = ["plan: random", "agent:", "  rules:"]
    lines.append(f"    - {{id: some, on: exec, paths: ['{ground}/p{rng.randrange(PROGRAMS)}'], action: allow}}")
    lines.append(f"    - {{id: notes, on: write, paths: ['{ground}/f{rng.randrange(FILES)}'], action: allow}}")
    lines.append("steps:")
    for number in range(count):
        ways = []
        for _ in range(rng.randint(1, 2)):
            argv = rng.choice(["", f", argv: ['**', {rng.choice(WORDS)}]"])
            ways.append(f"{{exe: '{ground}/p{rng.randrange(PROGRAMS)}'{argv}}}")
        parts = [f"id: s{number}", f"starts: [{', '.join(ways)}]"]
        before = {f"s{i}": rng.choice(["needs", "after", "", ""]) for i in range(number)}
        waits = {key: ", ".join(name for name, how in before.items() if how == key) for key in ("needs", "after")}
        parts += [f"{key}: [{names}]" for key, names in waits.items() if names]
        parts += [text for text in ("once: true", "repeat: true", "exit: any") if rng.random() < 0.3]
        if rng.random() < 0.3:
            parts.append("read-only: true")
        elif rng.random() < 0.5:
            parts.append(f"rules: [{{id: out, on: write, paths: ['{ground}/f{rng.randrange(FILES)}'], action: allow}}]")
        if rng.random() < 0.2:
            parts.append("no-exec: true")
        if "once: true" in parts and "repeat: true" in parts:
            parts.remove("repeat: true")
        lines.append(f"  - {{{', '.join(parts)}}}")
    return "\n".join(lines) + "\n"


def act(ground: Path, seed: int, count: int) -> Log:
    """In the session: what it tried, and what came of it."""
    rng = random.Random(seed)
    log: Log = []
    living: dict[int, tuple[int, int, int]] = {}  # number -> pid, its commands, its answers
    number = 0
    for _ in range(count):
        if not living or (len(living) < 4 and rng.random() < 0.4):
            number += 1
            program, word = f"{ground}/p{rng.randrange(PROGRAMS)}", rng.choice(WORDS)
            started = _start(program, word)
            log.append(("start", number, f"{program} {word}", started is not None))
            if started is not None:
                living[number] = started
            continue
        each = rng.choice(list(living))
        pid, commands, answers = living[each]
        what = rng.choice("wwrnee")
        argument = {
            "w": f"{ground}/f{rng.randrange(FILES)}", "r": f"{ground}/p{rng.randrange(PROGRAMS)}",
            "e": str(rng.choice((0, 0, 0, 3))),
        }.get(what, "")  # fmt: skip
        os.write(commands, f"{what} {argument}\n".encode())
        if what == "e":
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == int(argument)
            del living[each]
            log.append(("exit", each, argument, True))
        else:
            log.append((what, each, argument, _answer(answers) == b"yes"))
    for each, (pid, _, _) in living.items():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        log.append(("exit", each, "137", True))
    return log


def _answer(answers: int) -> bytes:
    found = b""
    while not found.endswith(b"\n") and (piece := os.read(answers, 16)):
        found += piece
    return found.strip()


def _start(program: str, word: str) -> tuple[int, int, int] | None:
    commands_read, commands = os.pipe()
    answers, answers_write = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(commands_read, 7)
        os.dup2(answers_write, 8)
        os.closerange(9, 200)
        try:
            os.execv(program, [program, "-c", LOOP, "loop", word])
        except OSError as error:
            os._exit(100 if error.errno == errno.EPERM else 101)
    os.close(commands_read)
    os.close(answers_write)
    if _answer(answers) == b"ready":
        return pid, commands, answers
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (100, -signal.SIGKILL)
    os.close(commands)
    os.close(answers)
    return None


def follow(tracker: Tracker, log: Log) -> None:
    """The same by the reference; fails where it says something else."""
    tracker.enrol("agent")
    for what, number, more, happened in log:
        if what == "start":
            program, word = more.split()
            tracker.fork("agent", number)
            said = tracker.exec(number, program.encode(), [b"-c", LOOP.encode(), b"loop", word.encode()])
            assert said.passes is happened, (what, more, said)
            if not said.passes:
                tracker.exit(number, 137)
        elif what == "exit":
            tracker.exit(number, int(more))
        else:
            child = f"child of {number}"
            tracker.fork(number, child)
            if what == "w":
                said = tracker.attempt(child, Operation.WRITE, more.encode())
                assert said.passes is happened, (what, more, said)
            elif what == "r":
                tracker.fork(child, "grandchild")
                said = tracker.exec("grandchild", more.encode(), [b"-c", b"exit 0"])
                assert said.passes is happened, (what, more, said)
                tracker.exit("grandchild", 0 if said.passes else 137)
            tracker.exit(child, 0)


@pytest.mark.parametrize("seed", range(24))
def test_the_kernel_keeps_a_plan_as_the_reference_does(fence: Fence, ground: Path, seed: int) -> None:
    rng = random.Random(seed)
    for i in range(PROGRAMS):
        shutil.copy("/bin/sh", ground / f"p{i}")
    for i in range(FILES):
        (ground / f"f{i}").touch()
    text = plan_text(rng, ground)
    tracker = Tracker(bind_plan(load_text(text, "plan.yaml"), HERE))
    with fence.session(f"policy: open\n{ALLOW_ALL}", plan=text) as session:
        outcome = session.run(lambda: act(ground, seed, 40))
        states = session.monitor.steps(session.slot, len(tracker.steps))
    assert isinstance(outcome.value, list), outcome
    follow(tracker, outcome.value)
    assert [s.alive for s in states] == [0] * len(states)
    assert [s.done for s in states] == [tracker.state(step.id) is State.DONE for step in tracker.steps], text
    names = [step.id for step in tracker.steps]
    words = {Stepping.BEGAN: State.ACTIVE, Stepping.DONE: State.DONE, Stepping.FAILED: State.FAILED}
    told = [(names[e.step], words[e.what]) for e in outcome.events if isinstance(e, StepEvent) and e.what in words]
    assert told == [(change.step, change.state) for change in tracker.changes()], text
    assert not [d for d in outcome.decisions if d.verdict is Action.HOLD]
