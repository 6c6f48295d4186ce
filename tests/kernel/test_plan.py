# SPDX-License-Identifier: Apache-2.0
"""A plan is kept by the kernel: what comes out of order, or is of no step, does not happen."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from agentmon.kernel.grants import boot_ns
from agentmon.kernel.tables import STEP, STEPS_HEAD
from agentmon.model.events import Decision, StepEvent
from agentmon.model.operations import Action, Operation, Reason, Tier
from agentmon.model.plans import OUTSIDE
from tests.support.fence import ALLOW_ALL, Fence, Outcome, Session, attempt, closed

Program = Callable[[str], Path]
OPEN = f"policy: open\n{ALLOW_ALL}"

CHAIN = """
plan: chain
steps:
  - {id: fetch, starts: {exe: "**/fetch"}}
  - {id: build, needs: fetch, starts: {exe: "**/build"}, repeat: true}
  - {id: push, needs: build, starts: {exe: "**/push", argv: [now]}, once: true}
"""


@pytest.fixture
def tools(ground: Path) -> Path:
    """Programs by the names of steps: each ends with the status it is told, else 0."""
    for name in ("fetch", "build", "push", "other"):
        shutil.copy("/bin/sh", ground / name)
    return ground


def run(program: Path, *words: str) -> int:
    """Runs a program in a child. Its status; minus the signal that killed it; 256 + errno if it could not begin."""
    pid = os.fork()
    if not pid:
        number = 0
        try:
            os.execv(program, [program.name, *words])
        except OSError as error:
            number = error.errno or 0
        finally:
            os.kill(os.getpid(), signal.SIGUSR1 if number == errno.EPERM else signal.SIGUSR2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sh(program: Path, text: str) -> int:
    return run(program, "-c", text)


def begin(program: Path) -> tuple[int, int]:
    """Runs a shell in a child until a line is written to it: its PID, once it has begun, and where to write."""
    read, write = os.pipe()
    ready, begun = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(read, 0)
        os.dup2(begun, 7)
        os.closerange(8, 64)
        os.execv(program, [program.name, "-c", "echo >&7; read line; exit 0"])
    os.close(read)
    os.read(ready, 1)
    return pid, write


def refused(tier: Tier) -> int:
    return -signal.SIGUSR1 if tier is Tier.LSM else -signal.SIGKILL


def steps(outcome: Outcome) -> list[tuple[str, int, int]]:
    """What became of which step, and its status."""
    return [(e.what.name, e.step, e.status) for e in outcome.events if isinstance(e, StepEvent)]


def blocked(outcome: Outcome) -> list[tuple[str, str, int]]:
    """Operation, reason and step of what was blocked."""
    return [(d.operation.word, d.reason.name, d.step) for d in outcome.decisions if d.verdict >= Action.HOLD]


def settled(session: Session, count: int, *, alive: int = 0) -> None:
    """Waits until no step but so many processes are left: the last of a step may be reaped before it is counted out."""
    deadline = time.monotonic() + 20
    while sum(state.alive for state in session.monitor.steps(session.slot, count)) != alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_in_the_right_order_each_step_is_done(fence: Fence, tools: Path) -> None:
    with fence.session(OPEN, plan=CHAIN) as session:
        outcome = session.run(
            lambda: [sh(tools / "fetch", "exit 0"), sh(tools / "build", "exit 0"), run(tools / "push", "now")]
        )
        assert outcome.value == [0, 0, 2]  # there is no such script
        states = session.monitor.steps(session.slot, 3)
    assert [(s.done, s.ended, s.begun, s.status) for s in states] == [
        (True, True, True, 0),
        (True, True, True, 0),
        (False, True, True, 2),
    ]
    assert steps(outcome) == [
        ("BEGAN", 0, 0), ("DONE", 0, 0), ("BEGAN", 1, 0), ("DONE", 1, 0), ("BEGAN", 2, 0), ("FAILED", 2, 2),
    ]  # fmt: skip
    assert blocked(outcome) == []


def test_out_of_order_nothing_begins(fence: Fence, tier: Tier, tools: Path) -> None:
    with fence.session(OPEN, plan=CHAIN) as session:
        outcome = session.run(
            lambda: [sh(tools / "build", "exit 0"), sh(tools / "fetch", "exit 3"), sh(tools / "build", "exit 0")]
        )
        states = session.monitor.steps(session.slot, 3)
    assert outcome.value == [refused(tier), 3, refused(tier)]  # fetch was begun, and has failed
    assert [s.begun for s in states] == [True, False, False]
    assert blocked(outcome) == [("exec", "PLAN_ORDER", 1)] * 2
    assert steps(outcome) == [("BEGAN", 0, 0), ("FAILED", 0, 3)]


def test_what_failed_may_be_tried_again_and_what_is_done_may_not(fence: Fence, tier: Tier, tools: Path) -> None:
    def body() -> list[int]:
        fetch, build, push = (tools / name for name in ("fetch", "build", "push"))
        return [
            *(sh(fetch, f"exit {status}") for status in (1, 0, 0)),
            *(sh(build, "exit 0") for _ in range(2)),
            *(run(push, "now") for _ in range(2)),  # once: though it fails
        ]

    with fence.session(OPEN, plan=CHAIN) as session:
        outcome = session.run(body)
    no = refused(tier)
    assert outcome.value == [1, 0, no, 0, 0, 2, no]
    assert blocked(outcome) == [("exec", "PLAN_DONE", 0), ("exec", "PLAN_DONE", 2)]


def test_what_is_of_no_step_does_not_run(fence: Fence, tier: Tier, tools: Path) -> None:
    with fence.session(OPEN, plan=CHAIN) as session:
        outcome = session.run(lambda: sh(tools / "other", "exit 0"))
    assert outcome.value == refused(tier)
    assert blocked(outcome) == [("exec", "PLAN_CLOSED", OUTSIDE)]


def test_with_other_arguments_it_is_no_step(fence: Fence, tier: Tier, tools: Path) -> None:
    plan = 'plan: p\nsteps:\n  - {id: push, starts: {exe: "**/push", argv: [-c, "exit 0", "**"]}}\n'
    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run(
            lambda: [sh(tools / "push", "exit 1"), run(tools / "push"), run(tools / "push", "-c", "exit 0", "x", "y")]
        )
    # by its arguments a program is told when the one before is gone
    assert outcome.value == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert {reason for _, reason, _ in blocked(outcome)} == {"PLAN_CLOSED"}


def test_the_policy_is_in_force_besides(fence: Fence, tier: Tier, tools: Path) -> None:
    """The stricter wins; and what the policy denies has begun nothing."""
    policy = f"{OPEN}rules:\n  - {{id: no, on: exec, paths: ['{tools}/fetch'], action: deny}}\n"
    with fence.session(policy, plan=CHAIN) as session:
        outcome = session.run(lambda: [sh(tools / "fetch", "exit 0"), sh(tools / "build", "exit 0")])
        assert not any(state.begun for state in session.monitor.steps(session.slot, 3))
    assert outcome.value == [refused(tier)] * 2
    assert outcome.told() == [("exec", "deny", "no"), ("exec", "deny", "")]


def test_a_step_may_do_what_its_rules_say(fence: Fence, tier: Tier, tools: Path) -> None:
    out, other = tools / "out", tools / "elsewhere"
    for each in (out, other):
        each.write_text("")
    plan = f"""
plan: p
steps:
  - id: fetch
    starts: {{exe: "**/fetch"}}
    rules: [{{id: out, on: write, paths: ["{out}"], action: allow}}]
  - id: build
    needs: fetch
    starts: {{exe: "**/build"}}
    repeat: true
    exit: any
    read-only: true
"""
    write = "echo x >> "
    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run(
            lambda: [
                sh(tools / "fetch", f"{write} {out}; exit 0"),
                sh(tools / "build", f"{write} {other}"),
                sh(tools / "build", f"{write} /dev/null; exit 0"),
            ]
        )
        again = session.run(lambda: attempt(lambda: os.close(os.open(other, os.O_WRONLY))))
    assert outcome.value == [0, 2 if tier is Tier.LSM else -signal.SIGKILL, 0]
    assert (out.read_text(), other.read_text()) == ("x\n", "")
    [(operation, reason, step)] = blocked(outcome)
    assert (operation, reason, step) == ("write", "PLAN_RULE", 1)
    assert outcome.told() == [("write", "deny", "read-only")]
    assert again.stopped(tier) or again.value == errno.EPERM  # the agent itself may not either
    assert [d.reason.name for d in again.decisions if d.verdict >= Action.HOLD] == ["PLAN_CLOSED"]


def test_parallel_branches_run_at_once(fence: Fence, tier: Tier, tools: Path) -> None:
    plan = """
plan: p
steps:
  - {id: fetch, starts: {exe: "**/fetch"}}
  - {id: build, starts: {exe: "**/build"}}
  - {id: push, needs: [fetch, build], starts: {exe: "**/push"}}
"""

    def body() -> list[int]:
        found = []
        first, second = begin(tools / "fetch"), begin(tools / "build")
        found.append(sh(tools / "push", "exit 0"))
        for pid, write in (first, second):
            found.append(sh(tools / "push", "exit 0"))
            os.write(write, b"\n")
            found.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        found.append(sh(tools / "push", "exit 0"))
        return found

    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run(body)
    no = refused(tier)
    assert outcome.value == [no, no, 0, no, 0, 0]


def test_a_child_that_outlives_its_step_keeps_it_from_ending(fence: Fence, tier: Tier, tools: Path) -> None:
    def body() -> list[int]:
        read, write = os.pipe()
        os.dup2(read, 7)
        first = sh(tools / "fetch", "(read line <&7) & exit 0")
        found = [first, sh(tools / "build", "exit 0")]
        os.write(write, b"\n")
        return found

    with fence.session(OPEN, plan=CHAIN) as session:
        outcome = session.run(body)
        settled(session, 3)
        assert session.monitor.steps(session.slot, 3)[0].done
        assert session.run(lambda: sh(tools / "build", "exit 0")).value == 0
    assert outcome.value == [0, refused(tier)]


@pytest.mark.parametrize("how", ["fork", "vfork", "clone3"])
def test_children_are_in_the_step_whatever_the_fork(
    fence: Fence, tier: Tier, program: Program, tools: Path, how: str
) -> None:
    secret = tools / "secret"
    secret.write_text("")
    plan = f"""
plan: p
steps:
  - id: fetch
    starts: {{exe: "{program("spawn")}"}}
    rules: [{{id: no, on: read, paths: ["{secret}"], action: deny}}]
"""
    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run([program("spawn"), how, program("show"), secret])
    assert ("read", "PLAN_RULE", 0) in blocked(outcome)


def test_an_exec_from_another_thread_stays_in_its_step(fence: Fence, program: Program, tools: Path) -> None:
    """The kernel replaces the leader: neither the step nor its count of processes may be lost."""
    first = program("exec_thread")
    plan = f"""
plan: p
steps:
  - {{id: fetch, starts: {{exe: "{first}"}}}}
  - {{id: build, needs: fetch, starts: {{exe: "**/build"}}}}
"""
    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run(lambda: [run(first, "/bin/true"), sh(tools / "build", "exit 0")])
        states = session.monitor.steps(session.slot, 2)
    assert outcome.value == [0, 0]
    assert [(s.done, s.alive) for s in states] == [(True, 0)] * 2


def test_a_daemon_is_still_in_the_step_it_left(fence: Fence, tier: Tier, tools: Path) -> None:
    """Forked twice, in a session of its own, adopted by init."""
    secret, done = tools / "secret", tools / "done"
    secret.write_text("")
    plan = f"""
plan: p
steps:
  - id: fetch
    starts: {{exe: "**/fetch"}}
    rules: [{{id: no, on: read, paths: ["{secret}"], action: deny}}]
"""
    text = f"(setsid sh -c 'sleep 0.3; (exec 3<{secret}); echo x > {done}' &) ; exit 0"
    with fence.session(OPEN, plan=plan) as session:
        first = session.run(lambda: sh(tools / "fetch", text))
        settled(session, 1)
        session.drain()
        events = [*first.events, *session.events]
        assert session.monitor.steps(session.slot, 1)[0].done
    assert first.value == 0
    told = [
        (d.operation, d.reason.name, d.step) for d in events if isinstance(d, Decision) and d.verdict >= Action.HOLD
    ]
    assert told == [(Operation.READ, "PLAN_RULE", 0)]


def test_two_sessions_of_one_plan_do_not_touch_each_other(fence: Fence, tier: Tier, tools: Path) -> None:
    with fence.session(OPEN, plan=CHAIN) as one, fence.session(OPEN, plan=CHAIN) as other:
        assert one.run(lambda: sh(tools / "fetch", "exit 0")).value == 0
        assert other.run(lambda: sh(tools / "build", "exit 0")).value == refused(tier)
        assert one.run(lambda: sh(tools / "build", "exit 0")).value == 0
        assert other.run(lambda: sh(tools / "fetch", "exit 0")).value == 0


def test_what_runs_in_a_step_begins_no_other(fence: Fence, tools: Path) -> None:
    with fence.session(OPEN, plan=CHAIN) as session:
        outcome = session.run(lambda: sh(tools / "fetch", f"{tools}/build -c 'exit 0'; exit 0"))
        states = session.monitor.steps(session.slot, 3)
    assert outcome.value == 0
    assert [s.begun for s in states] == [True, False, False]


def test_a_script_starts_a_step(fence: Fence, tier: Tier, tools: Path) -> None:
    for name in ("one", "two"):
        (tools / name).write_text("#!/bin/sh\nexit $1\n")
        (tools / name).chmod(0o755)
    plan = """
plan: p
steps:
  - {id: one, starts: {exe: "**/one", argv: ["0"]}}
  - {id: two, needs: one, starts: {exe: "**/two"}, exit: [7]}
"""
    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run(
            lambda: [run(tools / "two", "7"), run(tools / "one", "1"), run(tools / "one", "0"), run(tools / "two", "7")]
        )
        states = session.monitor.steps(session.slot, 2)
    assert outcome.value == [refused(tier), -signal.SIGKILL, 0, 7]
    assert [s.done for s in states] == [True, True]


def test_a_pipe_of_several_ways_is_one_run(fence: Fence, tier: Tier, tools: Path) -> None:
    """Each way once; another of the same is refused while the run is under way."""
    plan = 'plan: p\nsteps:\n  - {id: pipe, starts: [{exe: "**/fetch"}, {exe: "**/build"}]}\n'

    def body() -> list[int]:
        pid, write = begin(tools / "fetch")
        found = [sh(tools / "build", "exit 0"), sh(tools / "build", "exit 0"), sh(tools / "fetch", "exit 0")]
        os.write(write, b"\n")
        return [*found, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]

    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run(body)
    assert outcome.value == [0, refused(tier), refused(tier), 0]


def test_a_change_of_policy_keeps_the_steps(fence: Fence, tier: Tier, tools: Path) -> None:
    from agentmon.policy.load import load_text

    with fence.session(OPEN, plan=CHAIN) as session:
        assert session.run(lambda: sh(tools / "fetch", "exit 0")).value == 0
        session.swap(load_text(OPEN, "new.yaml"))
        assert session.run(lambda: [sh(tools / "fetch", "exit 0"), sh(tools / "build", "exit 0")]).value == [
            refused(tier),
            0,
        ]


def test_another_monitor_finds_the_plan_where_it_was(fence: Fence, tier: Tier, tools: Path) -> None:
    """As after a restart of the daemon: what is pinned goes on, and is known."""
    from agentmon.kernel.monitor import Monitor

    with fence.session(OPEN, plan=CHAIN) as session:
        assert session.run(lambda: sh(tools / "fetch", "exit 0")).value == 0
        pins = session.monitor.pin_directory.parent
        other = Monitor.open(pin_dir=pins, tier=tier)
        try:
            assert other.adopted
            assert [s.done for s in other.steps(session.slot, 3)] == [True, False, False]
            assert other.tables.has_plan(session.policy_slot)
            assert other.tables.part_generations(session.policy_slot) == session.monitor.tables.part_generations(
                session.policy_slot
            )
        finally:
            other.close()
        assert session.run(lambda: sh(tools / "build", "exit 0")).value == 0


def test_a_session_whose_steps_are_lost_does_nothing(fence: Fence, tier: Tier, tools: Path) -> None:
    with fence.session(OPEN, plan=CHAIN) as session:
        session.monitor._maps["steps"].delete(session.serial.to_bytes(8, "little"))
        outcome = session.run(lambda: attempt(lambda: os.listdir(tools)))
    assert (outcome.value, outcome.status) == ((errno.EPERM, 0) if tier is Tier.LSM else (None, -signal.SIGKILL))


MARKED = """
plan: p
steps:
  - {id: one, starts: mark, read-only: true}
  - {id: two, needs: one, starts: [mark, {exe: "**/build"}]}
"""


def test_a_mark_begins_a_step_in_its_turn_and_ends_it(fence: Fence, tier: Tier, tools: Path) -> None:
    read, write = os.pipe()
    back, told = os.pipe()

    def body() -> list[int]:
        found = []
        for _ in range(2):
            os.write(told, b"x")
            os.read(read, 1)
            found.append(sh(tools / "build", "exit 0"))
        return found

    plan = MARKED + 'agent: {rules: [{id: sh, on: exec, exe: "**/sh", action: allow}]}\n'
    with fence.session(OPEN, plan=plan) as session:
        child = session.start(body)
        [key] = session.live()
        mark = session.monitor.mark_step
        os.read(back, 1)
        assert mark(key, 1) is Reason.PLAN_ORDER
        assert mark(key, 7) is Reason.PLAN_MARK
        assert mark(key, 0, ends=True) is Reason.PLAN_MARK  # it is not in it
        assert mark(key, 0) is None
        assert session.monitor.process(key).step == 0
        assert mark(key, 0) is Reason.PLAN_MARK  # it is in a step
        assert mark(key, 0, ends=True, status=0) is None
        assert session.monitor.process(key).step == OUTSIDE
        assert mark(key, 0) is Reason.PLAN_DONE
        os.write(write, b"x")
        os.read(back, 1)
        os.write(write, b"x")
        outcome = session.finish(child)
        states = session.monitor.steps(session.slot, 2)
    assert outcome.value == [0, refused(tier)]
    assert [(s.done, s.alive) for s in states] == [(True, 0), (True, 0)]


def test_what_began_by_a_program_is_not_ended_by_a_mark(fence: Fence, tools: Path) -> None:
    plan = 'plan: p\nsteps:\n  - {id: one, starts: [mark, {exe: "**/fetch"}]}\n'
    os.mkfifo(tools / "line")
    with fence.session(OPEN, plan=plan) as session:
        child = session.start([tools / "fetch", "-c", f"read line < {tools}/line; exit 0"])
        [key] = session.live()
        while session.monitor.process(key).step == OUTSIDE:
            time.sleep(0.01)
        assert session.monitor.mark_step(key, 0, ends=True) is Reason.PLAN_MARK
        (tools / "line").write_text("\n")
        assert session.finish(child).status == 0
        assert session.monitor.steps(session.slot, 1)[0].done


@pytest.mark.parametrize("name", ["other", "script"])
def test_the_command_that_is_run_needs_no_plan(fence: Fence, tier: Tier, tools: Path, name: str) -> None:
    """It is the agent itself; what it runs is asked for."""
    (tools / "script").write_text(f"#!/bin/sh\n{tools}/other -c 'exit 0'; exit 5\n")
    (tools / "script").chmod(0o755)
    words = [tools / "script"] if name == "script" else [tools / "other", "-c", f"{tools}/build -c 'exit 0'; exit 5"]
    with fence.session(OPEN, plan=CHAIN) as session:
        child = session.fork(words)
        [key] = session.enroll(child.pid)
        session.monitor.expect_command(key)
        session.begin(child)
        outcome = session.finish(child)
    assert outcome.status == 5
    assert [(reason, step) for _, reason, step in blocked(outcome)] == [
        ("PLAN_CLOSED", OUTSIDE) if name == "script" else ("PLAN_ORDER", 1)
    ]


def test_no_more_processes_than_the_step_may_have(fence: Fence, tier: Tier, tools: Path) -> None:
    plan = 'plan: p\nsteps:\n  - {id: fetch, starts: {exe: "**/fetch"}, max-procs: 3, exit: any, repeat: true}\n'
    os.mkfifo(tools / "line")
    line = os.open(
        tools / "line", os.O_RDWR
    )  # or who opens it after the words were written would wait for another writer
    text = "for i in 1 2 3 4; do (echo $i >> $0/out; read line < $0/line) & done; wait; exit 0"
    with fence.session(OPEN, plan=plan) as session:
        child = session.start(lambda: run(tools / "fetch", "-c", text, str(tools)))
        deadline = time.monotonic() + 60
        # LSM: a shell that cannot fork ends before its children; react: those that are too many end at once
        while not (any(isinstance(e, StepEvent) and e.reason for e in session.events) and _lines(tools / "out") == 2):
            session.drain()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.write(line, b"\n\n")
        outcome = session.finish(child)
        os.close(line)
        settled(session, 1)
        assert session.run(lambda: sh(tools / "fetch", "(exit 3)")).value == 3  # the count came down again
    assert _lines(tools / "out") == 2
    assert [e.reason for e in outcome.events if isinstance(e, StepEvent) and e.reason] != []
    assert {e.reason for e in outcome.events if isinstance(e, StepEvent) and e.reason} == {Reason.PLAN_PROCS}


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_after_its_time_a_step_does_nothing_and_is_not_done(fence: Fence, tier: Tier, tools: Path) -> None:
    plan = 'plan: p\nsteps:\n  - {id: fetch, starts: {exe: "**/fetch"}, timeout: 5s}\n'
    text = "echo in > $0/in; read line < $0/line; echo late > $0/late; exit 0"
    os.mkfifo(tools / "line")
    with fence.session(OPEN, plan=plan) as session:
        child = session.start(lambda: run(tools / "fetch", "-c", text, str(tools)))
        deadline = time.monotonic() + 60
        while not (tools / "in").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(5.1)
        (tools / "line").write_text("\n")
        outcome = session.finish(child)
        state = session.monitor.steps(session.slot, 1)[0]
    assert not (tools / "late").exists() or tier is Tier.REACT  # there it was made, and nothing written
    assert not (tools / "late").exists() or (tools / "late").read_text() == ""
    assert (state.done, state.ended) == (False, True)
    assert ("PLAN_TIME", 0) in [(reason, step) for _, reason, step in blocked(outcome)]


def test_what_was_allowed_before_is_refused_once_the_step_has_had_its_time(
    fence: Fence, tier: Tier, tools: Path
) -> None:
    """What is remembered of an allowed open is of the slot of the step's rules, whichever that is."""
    lines = [
        f"  - {{id: s{i}, starts: mark, timeout: 10min,"
        f" rules: [{{id: r{i}, on: write, paths: ['/nowhere/{i}'], action: deny}}]}}"
        for i in range(40)
    ]
    file = tools / "file"
    file.write_text("")
    read, told = os.pipe()
    back, done = os.pipe()

    def body() -> int:
        for _ in range(2):
            os.read(read, 1)
            for _ in range(2):
                number = attempt(lambda: os.close(os.open(file, os.O_RDONLY)))
            os.write(done, bytes([number]))
        return number

    with fence.session(OPEN, plan="\n".join(["plan: p", "steps:", *lines])) as session:
        plan, slots = session.compiled.plan, session.monitor.tables._installed[session.policy_slot].parts
        assert plan is not None
        # numbers that a reason and an action may add up to
        step = plan.part_of.index(slots.index(Reason.PLAN_TIME + Action.DENY - 1))
        child = session.start(body)
        [key] = session.live()
        assert session.monitor.mark_step(key, step) is None
        os.write(told, b"x")
        assert os.read(back, 1) == b"\0"
        make_late(session, step)
        os.write(told, b"x")
        outcome = session.finish(child)
    assert (outcome.value, outcome.status) == ((errno.EPERM, 0) if tier is Tier.LSM else (None, -signal.SIGKILL))
    assert {(reason, step) for _, reason, step in blocked(outcome)} == {("PLAN_TIME", step)}


def make_late(session: Session, step: int) -> None:
    """As if the step had begun long ago: at a time that is to come, which an unsigned difference takes for that."""
    key, place = session.serial.to_bytes(8, "little"), STEPS_HEAD.size + step * STEP.size
    value = bytearray(session.monitor._maps["steps"].lookup(key) or b"")
    alive, bad, _, written, files = STEP.unpack_from(value, place)
    STEP.pack_into(value, place, alive, bad, boot_ns() + 3600 * 10**9, written, files)
    session.monitor._maps["steps"].update(key, bytes(value))


def test_a_step_kills_on_violation_if_it_says_so(fence: Fence, tools: Path) -> None:
    plan = """
plan: p
on-violation: kill
steps:
  - {id: fetch, starts: {exe: "**/fetch"}}
  - {id: build, needs: fetch, starts: {exe: "**/build"}}
"""
    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run(lambda: [sh(tools / "build", "exit 0"), sh(tools / "fetch", "exit 0")])
    assert outcome.value == [-signal.SIGKILL, 0]
    assert [d.verdict for d in outcome.decisions if d.verdict >= Action.HOLD] == [Action.KILL]


def test_no_more_files_than_the_step_may_change(fence: Fence, tier: Tier, tools: Path) -> None:
    """The same one again is none more; a device is none; they count over all runs."""
    plan = 'plan: p\nsteps:\n  - {id: fetch, starts: {exe: "**/fetch"}, max-files: 3, exit: any, repeat: true}\n'
    old = tools / "old"
    old.write_text("")
    write = "echo x >> $0/{}"
    some = "; ".join(write.format(name) for name in ("old", "new", "new", "old", "../../../../../dev/null"))
    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run(
            lambda: [
                run(tools / "fetch", "-c", f"{some}; {write.format('new')}; exit 0", str(tools)),
                run(tools / "fetch", "-c", f"{write.format('third')}; {write.format('new')}; exit 0", str(tools)),
                run(tools / "fetch", "-c", f"{write.format('new')}; {write.format('fourth')}; exit 7", str(tools)),
            ]
        )
        assert session.monitor.steps(session.slot, 1)[0].files == 3
    assert outcome.value == [0, 0, 7 if tier is Tier.LSM else -signal.SIGKILL]
    assert ((tools / "new").read_text(), (tools / "third").read_text()) == ("x\n" * 5, "x\n")
    assert not (tools / "fourth").exists() or (tools / "fourth").read_text() == ""
    assert [(reason, step) for _, reason, step in blocked(outcome)] == [("PLAN_FILES", 0)]


_LINUX = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])


@pytest.mark.parametrize(
    "how",
    [
        "write", "writev", "pwrite", "sendfile", "copy_file_range", "fallocate", "mmap", "write, by a longer number",
        "mmap, by a longer number",
    ],
)  # fmt: skip
def test_no_more_bytes_than_the_step_may_write(fence: Fence, tier: Tier, tools: Path, how: str) -> None:
    """To the byte, over all runs; what goes into a pipe is none."""
    plan = """
plan: p
agent: {rules: [{id: any, on: write, action: allow}]}
steps:
  - {id: one, starts: mark, max-write: 1000, repeat: true}
"""
    source, target = tools / "source", tools / "target"
    source.write_bytes(b"s" * 4096)
    target.write_bytes(b"")
    write = {
        "write": lambda fd, n: os.write(fd, b"x" * n),
        "writev": lambda fd, n: os.writev(fd, [b"x" * (n // 2), b"y" * (n - n // 2)]),
        "pwrite": lambda fd, n: os.pwrite(fd, b"x" * n, 0),
        "sendfile": lambda fd, n: os.sendfile(fd, os.open(source, os.O_RDONLY), 0, n),
        "copy_file_range": lambda fd, n: os.copy_file_range(os.open(source, os.O_RDONLY), fd, n),
        "fallocate": lambda fd, n: os.posix_fallocate(fd, 0, n),
        "mmap": _map,
        # the kernel looks at 32 bits of a number
        "write, by a longer number": lambda fd, n: _call(1 << 32 | 1, fd, b"x" * n, n),
        "mmap, by a longer number": lambda fd, n: (
            os.ftruncate(fd, PAGE),
            _call(1 << 32 | 9, 0, ctypes.c_long(n), mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0),
        ),
    }[how]
    read, told = os.pipe()
    back, ready = os.pipe()
    both, done = os.pipe()

    def body() -> list[int]:
        fd = os.open(target, os.O_RDWR)
        pipe = os.pipe()
        os.write(ready, b"x")
        os.read(read, 1)
        os.write(pipe[1], b"p" * 5000)
        found = [attempt(lambda: write(fd, 600)), attempt(lambda: write(fd, 400))]
        os.write(done, bytes(number != 0 for number in found))
        return [*found, attempt(lambda: write(fd, 1))]

    with fence.session(OPEN, plan=plan) as session:
        assert session.monitor.programs()["write_check" if tier is Tier.LSM else "write_exit"] == "attached"
        child = session.start(body)
        [key] = session.live()
        os.read(back, 1)
        assert session.monitor.mark_step(key, 0) is None
        os.write(told, b"x")
        outcome = session.finish(child)
        os.close(done)
        refused_before = os.read(both, 2)
    assert session.monitor.programs()["write_check" if tier is Tier.LSM else "write_exit"].startswith("not needed")
    if tier is Tier.LSM and how in ("sendfile", "copy_file_range") and _LINUX < (6, 8):
        # this kernel asks several times for one call: less may be written, never more (docs/plans.md)
        assert errno.EPERM in outcome.value
        assert target.stat().st_size <= 1000
        return
    assert refused_before == bytes(2), outcome  # what fits was written
    assert (outcome.value, outcome.status) == (
        ([0, 0, errno.EPERM], 0) if tier is Tier.LSM else (None, -signal.SIGKILL)
    )
    assert [(reason, step) for _, reason, step in blocked(outcome)] == [("PLAN_BYTES", 0)]


def test_each_child_of_a_step_does_not_write_too_much_once(fence: Fence, tier: Tier, tools: Path) -> None:
    """What was written too much counts, and the step may nothing more: else a loop of forks would write without end."""
    plan = """
plan: p
agent: {rules: [{id: any, on: [write, create], action: allow}]}
steps:
  - {id: fetch, starts: {exe: "**/fetch"}, max-write: 1000, exit: any, repeat: true}
"""
    text = "for i in 1 2 3 4; do (printf '%5000s' x > $0/out$i) & wait; done; exit 0"
    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run(
            lambda: [run(tools / "fetch", "-c", text, str(tools)), run(tools / "fetch", "-c", text, str(tools))]
        )
        events = [e.reason for e in outcome.events if isinstance(e, StepEvent) and e.reason]
    written = sum(file.stat().st_size for file in tools.glob("out*"))
    assert written == (5000 if tier is Tier.REACT else 0)
    assert {reason for _, reason, _ in blocked(outcome)} == {"PLAN_BYTES"}
    if tier is Tier.REACT:
        assert outcome.value[1] == -signal.SIGKILL  # nor does it begin again
        assert set(events) == {Reason.PLAN_BYTES}


PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
LIBC.mmap.restype = LIBC.mremap.restype = ctypes.c_void_p
LIBC.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.remap_file_pages.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t, ctypes.c_int]
FAILED = ctypes.c_void_p(-1).value


def _mapped(fd: int) -> int:
    """A page of a file, for all; or of memory."""
    flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return int(LIBC.mmap(None, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0))


def _grown(at: int, pages: int) -> int:
    """To so many pages; to where there is room."""
    found = int(LIBC.mremap(at, (pages - 1) * PAGE, pages * PAGE, 1, None))
    if found == FAILED:
        raise OSError(ctypes.get_errno(), "mremap")
    return found


@pytest.mark.parametrize("how", ["mremap", "remap_file_pages"])
def test_what_a_mapping_comes_to_show_later_counts_too(fence: Fence, tier: Tier, tools: Path, how: str) -> None:
    """A page that was counted may not become a window to all of the file; memory may grow."""
    plan = f"""
plan: p
agent: {{rules: [{{id: any, on: write, action: allow}}]}}
steps:
  - {{id: one, starts: mark, max-write: {2 * PAGE}, repeat: true}}
"""
    target = tools / "target"
    target.write_bytes(bytes(4 * PAGE))
    with open(target, "r+b") as file:  # without a fence it grows
        assert LIBC.munmap(ctypes.c_void_p(_grown(_mapped(file.fileno()), 2)), ctypes.c_size_t(2 * PAGE)) == 0
    read, told = os.pipe()
    back, ready = os.pipe()
    both, done = os.pipe()

    def body() -> int:
        fd = os.open(target, os.O_RDWR)
        memory = _mapped(-1)
        os.write(ready, b"x")
        os.read(read, 1)
        for pages in range(2, 9):
            memory = _grown(memory, pages)
        at = _mapped(fd)

        def further(pages: int) -> None:
            nonlocal at
            if how == "mremap":
                at = _grown(at, pages)
            elif LIBC.remap_file_pages(at, PAGE, 0, pages - 1, 0):
                raise OSError(ctypes.get_errno(), how)

        further(2)
        os.write(done, b"x")
        return attempt(lambda: further(3))

    with fence.session(OPEN, plan=plan) as session:
        child = session.start(body)
        [key] = session.live()
        os.read(back, 1)
        assert session.monitor.mark_step(key, 0) is None
        os.write(told, b"x")
        outcome = session.finish(child)
        os.close(done)
        assert os.read(both, 1) == b"x", outcome
    assert (outcome.value, outcome.status) == ((errno.EPERM, 0) if tier is Tier.LSM else (None, -signal.SIGKILL))
    assert [(reason, step) for _, reason, step in blocked(outcome)] == [("PLAN_BYTES", 0)]


def test_a_write_that_others_carry_out_is_not_let_through_uncounted(fence: Fence, tier: Tier, tools: Path) -> None:
    """io_submit(2): how much it writes, nobody can tell beforehand."""

    class Block(ctypes.Structure):
        _fields_ = (
            ("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("flags", ctypes.c_uint32),
            ("opcode", ctypes.c_uint16), ("priority", ctypes.c_int16), ("fd", ctypes.c_uint32),
            ("buffer", ctypes.c_uint64), ("count", ctypes.c_uint64), ("offset", ctypes.c_int64),
            ("spare", ctypes.c_uint64 * 2),
        )  # fmt: skip

    def submit(fd: int) -> None:
        context, text = ctypes.c_ulong(0), ctypes.create_string_buffer(b"x" * 4096)
        assert LIBC.syscall(206, 1, ctypes.byref(context)) == 0
        block = Block(opcode=1, fd=fd, buffer=ctypes.addressof(text), count=4096)
        blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        if LIBC.syscall(209, context, ctypes.c_long(1), blocks) != 1:
            raise OSError(ctypes.get_errno(), "io_submit")

    target = tools / "target"
    with open(target, "wb") as file:
        submit(file.fileno())  # without a fence it is written
        assert target.stat().st_size == 4096
        file.truncate(0)
    plan = """
plan: p
agent: {rules: [{id: any, on: write, action: allow}]}
steps: [{id: one, starts: mark, max-write: 1000000}]
"""
    read, told = os.pipe()
    back, ready = os.pipe()

    def body() -> int:
        fd = os.open(target, os.O_RDWR)
        os.write(ready, b"x")
        os.read(read, 1)
        return attempt(lambda: submit(fd))

    with fence.session(OPEN, plan=plan) as session:
        child = session.start(body)
        [key] = session.live()
        os.read(back, 1)
        assert session.monitor.mark_step(key, 0) is None
        os.write(told, b"x")
        outcome = session.finish(child)
    assert (outcome.value, outcome.status) == ((errno.EPERM, 0) if tier is Tier.LSM else (None, -signal.SIGKILL))
    assert target.stat().st_size == 0 or tier is Tier.REACT  # there it is told what it has done


@pytest.mark.parametrize("polled", [(), ("sqpoll",)], ids=["entered", "sqpoll"])
def test_a_ring_writes_nothing_where_bytes_are_counted(
    fence: Fence, tier: Tier, program: Program, tools: Path, polled: tuple[str, ...]
) -> None:
    target = tools / "target"
    target.write_bytes(b"")
    words = [program("ring"), "write", target, *polled]
    plain = fence.without(words)
    if plain.value.startswith(b"no ring"):
        pytest.skip(closed(plain))
    assert (plain.value, target.read_bytes()) == (b"ok\n", b"data")
    target.write_bytes(b"")
    plan = f'plan: p\nsteps:\n  - {{id: one, starts: {{exe: "{program("ring")}"}}, max-write: 1000}}\n'
    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run(words)
    if tier is Tier.LSM:
        assert outcome.value == f"errno {errno.EPERM}\n".encode()
        assert target.read_bytes() == b""
    else:
        assert outcome.status == -signal.SIGKILL
    assert ("write", "PLAN_BYTES", 0) in blocked(outcome)


def _call(number: int, *words: object) -> int:
    """A system call by its number, all 64 bits of it."""
    found = int(LIBC.syscall(ctypes.c_long(number), *words))
    if found == -1:
        raise OSError(ctypes.get_errno(), "")
    return found


def _map(fd: int, count: int) -> None:
    os.ftruncate(fd, 4096)
    mmap.mmap(fd, count).close()


def test_a_step_reaches_the_hosts_that_it_names_and_no_others(fence: Fence, tier: Tier, tools: Path) -> None:
    """By their addresses, as the resolver found them; the policy would let it reach all."""
    from agentmon.policy.hosts import PolicyNames

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        plan = f"""
plan: p
steps:
  - {{id: one, starts: mark, hosts: ["one.example:{port}"]}}
  - {{id: two, starts: mark, hosts: ["two.example:{port}"], needs: one}}
"""
        read, told = os.pipe()

        def body() -> list[int]:
            found = []
            for _ in range(4):
                os.read(read, 1)
                with socket.socket() as client:
                    found.append(client.connect_ex(("127.0.0.1", port)))
                os.write(done, b"x")
            return found

        back, done = os.pipe()
        with fence.session(OPEN, plan=plan) as session:
            monitor = session.monitor
            monitor.serve_names(session.slot, resolver.getsockname()[1])
            tables = session.compiled.plan
            assert tables is not None
            generation = monitor.tables.part_generations(session.policy_slot)[tables.part_of[0]]
            entries = PolicyNames(tables.parts[tables.part_of[0]]).entries("one.example")
            child = session.start(body)
            [key] = session.live()

            def attempt_once() -> None:
                os.write(told, b"x")
                assert select.select([back], [], [], 60)[0]
                os.read(back, 1)

            attempt_once()  # outside of all steps
            assert monitor.mark_step(key, 0) is None
            attempt_once()
            monitor.grants.grant(session.serial, generation, [bytes(10) + b"\xff\xff\x7f\0\0\1"], entries, 60)
            attempt_once()
            assert monitor.mark_step(key, 0, ends=True) is None
            assert monitor.mark_step(key, 1) is None
            attempt_once()  # what another step was told is not this one's
            outcome = session.finish(child)
    assert outcome.value == [errno.EPERM, errno.EPERM, 0, errno.EPERM]
    assert [(reason, step) for _, reason, step in blocked(outcome)] == [
        ("PLAN_CLOSED", OUTSIDE), ("PLAN_CLOSED", 0), ("PLAN_CLOSED", 1),
    ]  # fmt: skip


def test_a_program_in_memory_is_of_no_step(fence: Fence, tier: Tier, tools: Path) -> None:
    """Also where the policy lets such a program run: it has no name that a step could start with."""

    def body() -> list[int]:
        found = []
        for _ in range(2):
            pid = os.fork()
            if not pid:
                fd = os.memfd_create("x")
                os.sendfile(fd, os.open("/bin/true", os.O_RDONLY), 0, 1 << 20)
                try:
                    os.execv(f"/proc/self/fd/{fd}", ["true"])
                except OSError as error:
                    os.kill(os.getpid(), signal.SIGUSR1 if error.errno == errno.EPERM else signal.SIGUSR2)
            found.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            found.append(sh(tools / "fetch", "exit 0"))
        return found

    plan = CHAIN + "agent: {rules: [{id: notes, on: [write, create], action: allow}]}\n"
    with fence.session(OPEN, plan=plan) as session:
        outcome = session.run(body)
    assert outcome.value == [refused(tier), 0, refused(tier), refused(tier)]
    assert ("anon_exec", "PLAN_CLOSED", OUTSIDE) in blocked(outcome)
    closed = "  - {id: fetch, starts: mark, no-exec: true}\n"
    opened = "agent: {default: {exec: allow, write: allow}}\n"
    # without a fence it runs as well
    with fence.session(OPEN, plan=f"plan: p\n{opened}steps:\n{closed}") as session:
        assert session.run(body).value == [0, 0, 0, 0]


def test_of_many_that_begin_at_once_one_does(fence: Fence, tier: Tier, tools: Path) -> None:
    plan = 'plan: p\nsteps:\n  - {id: fetch, starts: {exe: "**/fetch"}, once: true}\n'
    gate, opener = os.pipe()

    def body() -> list[int]:
        children = []
        for _ in range(12):
            pid = os.fork()
            if not pid:
                os.close(opener)
                os.read(gate, 1)
                try:
                    os.execv(tools / "fetch", ["fetch", "-c", "exit 0"])
                finally:
                    os._exit(9)
            children.append(pid)
        os.close(opener)
        return sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)

    with fence.session(OPEN, plan=plan) as session:
        child = session.start(body)
        os.close(opener)
        outcome = session.finish(child)
        [state] = session.monitor.steps(session.slot, 1)
    os.close(gate)
    # LSM: refused, or by another one's begin in between told before the first instruction
    assert (len(outcome.value), outcome.value.count(0)) == (12, 1)
    assert set(outcome.value) <= {0, -signal.SIGKILL, *([9] if tier is Tier.LSM else [])}
    assert steps(outcome) == [("BEGAN", 0, 0), ("DONE", 0, 0)]
    assert (state.done, state.alive) == (True, 0)


def test_a_fork_while_a_mark_ends_leaves_nobody_in_the_step(fence: Fence, tools: Path) -> None:
    """Each run that begins has one end, and nobody is in a step that has none under way."""
    plan = "plan: p\nsteps:\n  - {id: one, starts: mark, repeat: true}\n"
    back, ready = os.pipe()

    def body() -> None:
        stop = threading.Event()

        def crowd() -> None:
            while not stop.is_set():
                if not (pid := os.fork()):
                    os._exit(0)
                os.waitpid(pid, 0)

        threads = [threading.Thread(target=crowd) for _ in range(3)]
        for thread in threads:
            thread.start()
        os.write(ready, b"x")
        select.select([gate], [], [])
        stop.set()
        for thread in threads:
            thread.join()

    gate, opener = os.pipe()
    with fence.session(OPEN, plan=plan) as session:
        child = session.start(body)
        os.read(back, 1)
        [key] = [key for key in session.live() if key.pid == child.pid]
        for _ in range(100):
            while session.monitor.mark_step(key, 0) is not None:  # a child of the run before is not reaped yet
                session.drain()
            assert session.monitor.mark_step(key, 0, ends=True) is None
            session.drain()
        os.write(opener, b"x")
        outcome = session.finish(child)
        settled(session, 1)
        session.drain()
        seen = [e.what.name for e in (*outcome.events, *session.events) if isinstance(e, StepEvent)]
    assert seen.count("BEGAN") == seen.count("DONE") + seen.count("FAILED")


def test_a_step_without_network_asks_for_no_names(fence: Fence, tier: Tier, tools: Path) -> None:
    """A question can carry something out; nor is it asked on a socket that was made before, in the LSM tier."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind(("127.0.0.1", 0))
        # without a fence in the way, as in step four, it is asked
        plan = """
plan: p
agent: {hosts: ["one.example:443"]}
steps:
  - {id: one, starts: mark, hosts: ["one.example:443"]}
  - {id: two, starts: mark, no-network: true}
  - {id: three, starts: mark, rules: [{id: near, on: connect, cidrs: ["192.0.2.0/24"], action: allow}]}
  - {id: four, starts: mark}
"""
        read, told = os.pipe()
        back, done = os.pipe()

        def body() -> list[int]:
            found = []
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as old:
                old.connect(("198.51.100.1", 53))
                for number in range(5):
                    os.write(done, b"x")
                    os.read(read, 1)
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as new:
                        found.append(attempt(partial(new.sendto, b"new%d" % number, ("198.51.100.1", 53))))
                    if tier is Tier.LSM:
                        found.append(attempt(partial(old.send, b"old%d" % number)))
            return found

        with fence.session(OPEN, plan=plan) as session:
            session.monitor.serve_names(session.slot, resolver.getsockname()[1])
            child = session.start(body)
            [key] = session.live()
            for number in range(5):
                assert select.select([back], [], [], 60)[0]
                os.read(back, 1)
                if number > 1:
                    assert session.monitor.mark_step(key, number - 2, ends=True) is None
                if number:
                    assert session.monitor.mark_step(key, number - 1) is None
                os.write(told, b"x")
            outcome = session.finish(child)
        resolver.setblocking(False)
        asked = []
        while select.select([resolver], [], [], 0)[0]:
            asked.append(resolver.recv(16))
    each = [0, 0, errno.EPERM, errno.EPERM, 0]
    twice = tier is Tier.LSM
    assert outcome.value == [number for number in each for _ in range(1 + twice)]
    assert asked == [b"%s%d" % (kind, n) for n in (0, 1, 4) for kind in (b"new", b"old")[: 1 + twice]]


def in_steps(session: Session, parts: list[tuple[int, Callable[[], object]]]) -> Outcome:
    """What each part does, one after the other in a process that is marked for its step; OUTSIDE: for none."""
    (back, ready), (read, told) = os.pipe(), os.pipe()

    def body() -> list[object]:
        found = []
        for _, part in parts:
            os.write(ready, b"x")
            os.read(read, 1)
            found.append(part())
        return found

    child = session.start(body)
    [key] = session.live()
    before = OUTSIDE
    for step, _ in parts:
        assert select.select([back], [], [], 60)[0]
        os.read(back, 1)
        if before not in (OUTSIDE, step):
            assert session.monitor.mark_step(key, before, ends=True) is None
        if step not in (OUTSIDE, before):
            assert session.monitor.mark_step(key, step) is None
        before = step
        os.write(told, b"x")
    return session.finish(child)


@pytest.mark.tier("lsm")
def test_a_directory_is_moved_by_who_could_have_copied_what_is_in_it(fence: Fence, tools: Path) -> None:
    """So what other steps forbid below it need not be asked: a move makes nothing freer than a copy would."""
    (tools / "tree").mkdir()
    (tools / "tree" / "secret").write_text("s")
    (tools / "tree" / "fixed").write_text("f")
    plan = f"""
plan: p
steps:
  - {{id: blind, starts: mark, rules: [{{id: no, on: read, paths: ["{tools}/tree/secret"], action: deny}}]}}
  - {{id: tied, starts: mark, rules: [{{id: no, on: write, paths: ["{tools}/tree/fixed"], action: deny}}]}}
  - {{id: narrow, starts: mark, rules: [{{id: some, on: read, paths: ["{tools}", "/usr/**"], action: allow}}]}}
  - {{id: wide, starts: mark}}
"""

    def move() -> int:
        return attempt(lambda: os.rename(tools / "tree", tools / "moved"))

    def read() -> int:
        return attempt(lambda: os.close(os.open(tools / "moved" / "secret", os.O_RDONLY)))

    with fence.session(OPEN, plan=plan) as session:
        outcome = in_steps(session, [(0, move), (1, move), (2, move), (3, move), (3, read), (OUTSIDE, read)])
    assert outcome.value == [errno.EPERM, errno.EPERM, errno.EPERM, 0, 0, 0]
    assert [step for _, _, step in blocked(outcome)] == [0, 1, 2]


@pytest.mark.tier("lsm")
@pytest.mark.parametrize("how", ["send", "write", "sendfile"])
def test_what_was_connected_before_is_judged_by_the_step(fence: Fence, tools: Path, how: str) -> None:
    if how == "sendfile" and _LINUX < (6, 5):
        pytest.skip("not required: this kernel asks nobody about it (docs/bypasses.md)")
    (tools / "source").write_bytes(b"x")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        other, _ = server.accept()
        send = {
            "send": lambda: client.send(b"x"),
            "write": lambda: os.write(client.fileno(), b"x"),
            "sendfile": lambda: os.sendfile(client.fileno(), os.open(tools / "source", os.O_RDONLY), 0, 1),
        }[how]
        send()  # without a fence it goes out
        plan = "plan: p\nagent: {default: {connect: allow, send: allow}}\n"
        plan += "steps:\n  - {id: mute, starts: mark, no-network: true}\n"
        with fence.session(OPEN, plan=plan) as session:
            outcome = in_steps(session, [(part, lambda: attempt(send)) for part in (OUTSIDE, 0)])
        assert outcome.value == [0, errno.EPERM]
        assert [(reason, step) for _, reason, step in blocked(outcome)] == [("PLAN_RULE", 0)]
        assert other.recv(16) == b"xx"
        other.close()


def test_a_step_takes_over_no_process_that_is_not_in_it(fence: Fence, tier: Tier, tools: Path) -> None:
    """Who may write into the memory of another can do what that one may; in the same step that is nothing new."""

    class Part(ctypes.Structure):
        _fields_ = (("at", ctypes.c_void_p), ("count", ctypes.c_size_t))

    text = ctypes.create_string_buffer(16)
    other = 0

    def write() -> int:
        nonlocal other
        if not other and not (other := os.fork()):
            os.closerange(3, 256)
            signal.pause()
        mine, theirs = (Part(ctypes.addressof(text), 16) for _ in range(2))
        done = LIBC.process_vm_writev(other, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
        return 0 if done == 16 else ctypes.get_errno()

    policy = OPEN.replace("ptrace: allow", "ptrace: deny")
    plan = "plan: p\nsteps:\n  - {id: one, starts: mark}\n"
    with fence.session(policy, plan=plan) as session:
        outcome = in_steps(session, [(OUTSIDE, write), (0, write)])
    assert (outcome.value, outcome.status) == (([0, errno.EPERM], 0) if tier is Tier.LSM else (None, -signal.SIGKILL))
    assert [(d.operation.word, d.step) for d in outcome.decisions if d.verdict >= Action.HOLD] == [("ptrace", 0)]
