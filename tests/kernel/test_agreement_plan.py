# SPDX-License-Identifier: Apache-2.0
"""Random plans, and sessions that do random things: the kernel lets happen what the reference does, and no more."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from agentmon.model.events import StepEvent, Stepping
from agentmon.model.operations import Action, Operation, Tier
from agentmon.plan.bind import bind_plan
from agentmon.plan.load import load_text
from agentmon.plan.track import State, Tracker
from agentmon.policy.rules import Variables
from tests.support.fence import ALLOW_ALL, Fence, Session

Program = Callable[[str], Path]
HERE = Variables.of(workspace="/nonexistent", home="/nonexistent", user="nobody")
PROGRAMS = 4  # and one more, that starts no step
FILES = 3
WORDS = ("x", "y")

#: What was tried: what, the number of the process, more about it, and whether it happened.
Log = list[tuple[str, int, str, bool]]
#: Marks a process: its PID, the number of the step, whether it ends, its status. Says whether it may.
Marker = Callable[[int, int, bool, int], bool]


def plan_text(rng: random.Random, ground: Path, ports: list[int]) -> str:
    """A plan of a few steps."""
    count = rng.randint(1, 5)
    lines = ["plan: random", "agent:", "  rules:"]
    some = ", ".join(f"'{ground}/p{number}'" for number in (rng.randrange(PROGRAMS), PROGRAMS))
    lines.append(f"    - {{id: some, on: exec, paths: [{some}], action: allow}}")
    lines.append(f"    - {{id: notes, on: write, paths: ['{ground}/f{rng.randrange(FILES)}'], action: allow}}")
    if rng.random() < 0.5:
        lines.append(f"    - {{id: near, on: connect, ports: [{rng.choice(ports)}], action: allow}}")
    lines.append("steps:")
    for number in range(count):
        ways = ["mark"] if rng.random() < 0.7 else []
        for _ in range(rng.randint(1, 2)):
            argv = rng.choice(["", f", argv: [{rng.choice(WORDS)}]"])
            ways.append(f"{{exe: '{ground}/p{rng.randrange(PROGRAMS)}'{argv}}}")
        parts = [f"id: s{number}", f"starts: [{', '.join(ways)}]"]
        before = {f"s{i}": rng.choice(["needs", "after", "", ""]) for i in range(number)}
        waits = {key: ", ".join(name for name, how in before.items() if how == key) for key in ("needs", "after")}
        parts += [f"{key}: [{names}]" for key, names in waits.items() if names]
        parts += [text for text in ("once: true", "repeat: true", "exit: any") if rng.random() < 0.3]
        rules = []
        if rng.random() < 0.3:
            parts.append("read-only: true")
        elif rng.random() < 0.5:
            rules.append(f"{{id: out, on: write, paths: ['{ground}/f{rng.randrange(FILES)}'], action: allow}}")
        if rng.random() < 0.3:
            parts.append("no-network: true")
        elif rng.random() < 0.5:
            action = rng.choice(["allow", "deny"])
            rules.append(f"{{id: near, on: connect, ports: [{rng.choice(ports)}], action: {action}}}")
        if rules:
            parts.append(f"rules: [{', '.join(rules)}]")
        if rng.random() < 0.2:
            parts.append("no-exec: true")
        if rng.random() < 0.3:
            parts.append(f"max-procs: {rng.randint(1, 4)}")
        if "read-only: true" not in parts:
            if rng.random() < 0.3:
                parts.append(f"max-files: {rng.randint(1, 2)}")
            if rng.random() < 0.4:
                parts.append(f"max-write: {rng.randint(2, 9)}")
        if "once: true" in parts and "repeat: true" in parts:
            parts.remove("repeat: true")
        lines.append(f"  - {{{', '.join(parts)}}}")
    return "\n".join(lines) + "\n"


def act(ground: Path, ports: list[int], mark: Marker, steps: int, seed: int, count: int) -> Log:
    """In the session: what it tried, and what came of it."""
    rng = random.Random(seed)
    log: Log = []
    living: dict[int, tuple[int, int, int]] = {}  # number -> pid, its commands, its answers
    number = 0
    for _ in range(count):
        if not living or (len(living) < 4 and rng.random() < 0.4):
            number += 1
            program, word = f"{ground}/p{min(rng.randrange(PROGRAMS + 2), PROGRAMS)}", rng.choice(WORDS)
            started = _start(program, word)
            log.append(("start", number, f"{program} {word}", started is not None))
            if started is not None:
                living[number] = started
            continue
        each = rng.choice(list(living))
        pid, commands, answers = living[each]
        what = rng.choice("wwwwrccneebbbd")
        if what in "bd":
            step, status = rng.randrange(steps), rng.choice((0, 0, 3))
            log.append((what, each, f"{step} {status}", mark(pid, step, what == "d", status)))
            continue
        argument = {
            "w": f"{ground}/f{rng.randrange(FILES)}", "r": f"{ground}/p{rng.randrange(PROGRAMS + 1)}",
            "c": str(rng.choice(ports)), "e": str(rng.choice((0, 0, 0, 3))),
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
            os.execv(program, [program, word])
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
    for entry in log:
        what, number, more, happened = entry
        if what == "start":
            program, word = more.split()
            tracker.fork("agent", number)
            said = tracker.exec(number, program.encode(), [word.encode()])
            assert said.passes is happened, (entry, said)
            if not said.passes:
                tracker.exit(number, 137)
        elif what == "exit":
            tracker.exit(number, int(more))
        elif what in "bd":
            step, status = map(int, more.split())
            name = tracker.steps[step].id
            said = tracker.end(number, name, status) if what == "d" else tracker.begin(number, name)
            assert said.passes is happened, (entry, said)
        else:
            assert _does(tracker, what, number, more) is happened, entry


def _does(tracker: Tracker, what: str, number: int, more: str) -> bool:
    """What a process does in a child of its own."""
    child = f"child of {number}"
    if not tracker.fork(number, child).passes:
        return False
    passes = True
    if what == "w":
        passes = tracker.attempt(child, Operation.WRITE, more.encode()).passes and tracker.wrote(child, 2).passes
    elif what == "c":
        passes = tracker.attempt(child, Operation.CONNECT, ("127.0.0.1", int(more))).passes
    elif what == "r":
        passes = tracker.fork(child, "grandchild").passes
        if passes:
            passes = tracker.exec("grandchild", more.encode(), [b"exit"]).passes
            tracker.exit("grandchild", 0 if passes else 137)
    tracker.exit(child, 0 if passes else 1)
    return passes


def _marks(session: Session, asked: int, told: int) -> None:
    """Marks whom it is asked to, until nobody asks."""
    while line := _answer(asked):
        pid, step, ends, status = map(int, line.split())
        [key] = [key for key in session.live() if key.pid == pid]
        why = session.monitor.mark_step(key, step, ends=bool(ends), status=status)
        os.write(told, b"no\n" if why else b"yes\n")


@pytest.mark.parametrize("seed", range(24))
def test_the_kernel_keeps_a_plan_as_the_reference_does(
    fence: Fence, program: Program, tier: Tier, ground: Path, seed: int
) -> None:
    rng = random.Random(seed)
    for i in range(PROGRAMS + 1):
        shutil.copy(program("puppet"), ground / f"p{i}")
    for i in range(FILES):
        (ground / f"f{i}").touch()
    (asked, ask), (answered, answer) = os.pipe(), os.pipe()

    def mark(pid: int, step: int, ends: bool, status: int) -> bool:
        os.write(ask, b"%d %d %d %d\n" % (pid, step, ends, status))
        return _answer(answered) == b"yes"

    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64)) for _ in range(2)]
        ports = [server.getsockname()[1] for server in servers]
        text = plan_text(rng, ground, ports)
        tracker = Tracker(bind_plan(load_text(text, "plan.yaml"), HERE), reacts=tier is Tier.REACT)
        session = stack.enter_context(fence.session(f"policy: open\n{ALLOW_ALL}", plan=text))
        child = session.start(lambda: act(ground, ports, mark, len(tracker.steps), seed, 40))
        os.close(ask)
        _marks(session, asked, answer)
        outcome = session.finish(child)
        states = session.monitor.steps(session.slot, len(tracker.steps))
    for fd in (asked, answered, answer):
        os.close(fd)
    assert isinstance(outcome.value, list), outcome
    follow(tracker, outcome.value)
    assert [s.alive for s in states] == [0] * len(states)
    assert [s.done for s in states] == [tracker.state(step.id) is State.DONE for step in tracker.steps], text
    names = [step.id for step in tracker.steps]
    words = {Stepping.BEGAN: State.ACTIVE, Stepping.DONE: State.DONE, Stepping.FAILED: State.FAILED}
    told = [(names[e.step], words[e.what]) for e in outcome.events if isinstance(e, StepEvent) and e.what in words]
    assert told == [(change.step, change.state) for change in tracker.changes()], text
    assert not [d for d in outcome.decisions if d.verdict is Action.HOLD]
