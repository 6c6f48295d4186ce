# SPDX-License-Identifier: Apache-2.0
"""Who is fenced: everything that an enrolled process starts, in whatever way, and nobody else."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.kernel.monitor import PROC, PROC_KEY
from agentmon.model.events import ProcessKey, What
from agentmon.model.operations import Tier
from tests.support.fence import PATIENCE_S, Fence, Outcome, attempt

Program = Callable[[str], Path]
SECRET = b"the content\n"


@pytest.fixture
def secret(ground: Path) -> Path:
    path = ground / "secret"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def policy(secret: Path) -> str:
    return f'  - {{id: fence, on: read, paths: ["{secret}"], action: deny}}\n'


def read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    return os.read(fd, 100)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.01)


def is_fenced(outcome: Outcome) -> bool:
    """Whether a program that would have printed the secret was stopped by the rule."""
    return SECRET not in outcome.value and outcome.told() == [("read", "deny", "fence")]


@pytest.mark.parametrize("how", ["fork", "vfork", "thread", "clone3"])
def test_children_are_fenced(fence: Fence, program: Program, policy: str, secret: Path, how: str) -> None:
    words = [program("spawn"), how, program("show"), secret]
    assert fence.without(words).value == SECRET
    outcome = fence.run(policy, words)
    assert is_fenced(outcome)
    changes = [c for c in outcome.changes if c.what is What.FORK]
    assert [c.parent_start_ns for c in changes] == [outcome.changes[0].process.start_ns]


def test_threads_are_fenced(fence: Fence, tier: Tier, policy: str, secret: Path) -> None:
    def body() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(attempt(lambda: read(secret))))
        thread.start()
        thread.join()
        return found[0]

    outcome = fence.run(policy, body)
    assert outcome.status == (0 if tier is Tier.LSM else -signal.SIGKILL)
    assert outcome.value == (errno.EPERM if tier is Tier.LSM else None)
    decision = outcome.decisions[-1]
    assert decision.tid != decision.process.pid


def test_exec_from_another_thread_stays_fenced(fence: Fence, program: Program, policy: str, secret: Path) -> None:
    words = [program("exec_thread"), program("show"), secret]
    assert fence.without(words).value == SECRET
    assert is_fenced(fence.run(policy, words))


def test_a_process_whose_first_thread_ended_stays_fenced(
    fence: Fence, program: Program, policy: str, secret: Path
) -> None:
    words = [program("leaderless"), secret]
    assert fence.without(words).value == SECRET
    assert is_fenced(fence.run(policy, words))


@pytest.mark.parametrize("new_session", [False, True])
def test_orphans_of_a_double_fork_are_fenced(
    fence: Fence, tier: Tier, policy: str, secret: Path, new_session: bool
) -> None:
    told_read, told_write = os.pipe()

    def body() -> None:
        os.close(told_read)
        if os.fork():
            return
        if new_session:
            os.setsid()
        middle = os.getpid()
        if os.fork():
            os._exit(0)
        wait_for(lambda: os.getppid() != middle, "the parent to end")
        os.write(told_write, str(attempt(lambda: read(secret))).encode())
        os._exit(0)

    assert fence.without(body).status == 0
    assert os.read(told_read, 10) == b"0"
    with fence.session(policy) as session:
        outcome = session.run(body)
        os.close(told_write)
        said = os.read(told_read, 10)
        os.close(told_read)
        assert outcome.status == 0
        assert said == (b"1" if tier is Tier.LSM else b"")
        wait_for(lambda: not session.live(), "the orphan to end")
        session.drain()
        told = [e for e in outcome.events + session.events if getattr(e, "rule", 0xFFFF) != 0xFFFF]
        assert len(told) == 1


def test_the_end_of_a_process_is_told_and_frees_its_entry(fence: Fence, program: Program, policy: str) -> None:
    with fence.session(policy) as session:
        outcome = session.run([program("spawn"), "fork", program("show"), "/nonexistent"])
        assert session.live() == []
    whats = [(c.what, c.process.pid) for c in outcome.changes]
    parent = outcome.changes[0].process.pid
    child = next(c.process.pid for c in outcome.changes if c.what is What.FORK)
    assert whats == [
        (What.EXEC, parent),
        (What.FORK, child),
        (What.EXEC, child),
        (What.EXIT, child),
        (What.EXIT, parent),
    ]
    assert outcome.changes[3].exit_code == 1 << 8


def test_a_violent_end_is_told_with_its_signal(fence: Fence, policy: str) -> None:
    with fence.session(policy) as session:
        outcome = session.run(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert [c.exit_code for c in outcome.changes if c.what is What.EXIT] == [signal.SIGTERM]


def test_a_reused_pid_inherits_nothing(fence: Fence, program: Program, policy: str, secret: Path) -> None:
    with fence.session(policy) as session:
        outcome = session.run(["/bin/true"])
        gone = outcome.changes[0].process
        # even if its end had been missed
        stale = PROC_KEY.pack(gone.start_ns, gone.pid, 0)
        session.monitor._maps["procs"].update(
            stale, PROC.pack(session.slot, 0, 0, 0, 0, 0, 0, 0, session.serial, 0, 0, 0)
        )
        assert ProcessKey(gone.pid, gone.start_ns) in session.live()
        words = [program("spawn"), str(gone.pid), program("show"), secret]
        done = subprocess.run(words, capture_output=True, check=False)
        session.monitor._maps["procs"].delete(stale)
        if done.returncode == 125:
            pytest.skip(f"not required: clone3 cannot choose a process id here ({done.stdout!r})")
        assert done.stdout == SECRET
        # where the kernel frees the old process late, its end is told (again): of itself, and of nobody else
        assert [e for e in session.drain() if e.process != gone] == []


def test_no_descendant_escapes_while_a_tree_is_enrolled(
    fence: Fence, tier: Tier, program: Program, ground: Path, secret: Path, policy: str
) -> None:
    flag = ground / "flag"
    depth, width = ("3", "3") if tier is Tier.REACT else ("2", "2")
    free = ground / "free"
    free.touch()
    assert b"escaped" in fence.without([program("swarm"), depth, width, secret, free]).value
    tree = subprocess.Popen([program("swarm"), depth, width, secret, flag], stdout=subprocess.PIPE)
    try:
        time.sleep(0.2)  # it forks all the while
        with fence.session(policy) as session:
            added = session.enroll(tree.pid)
            assert len(added) > int(width) ** int(depth)
            assert len(set(added)) == len(added)
            flag.touch()
            assert tree.stdout is not None
            assert tree.stdout.read() == b""
            tree.wait(PATIENCE_S)
            wait_for(lambda: not session.live(), "the tree to end")
            session.drain()
            told = [e for e in session.events if getattr(e, "rule", 0xFFFF) != 0xFFFF]
            assert len(told) >= int(width) ** int(depth)
    finally:
        tree.kill()
        tree.wait()


def test_what_runs_already_is_fenced_from_then_on(fence: Fence, tier: Tier, policy: str, secret: Path) -> None:
    with fence.session(policy) as session:
        go_read, go_write = os.pipe()

        def body() -> bytes:
            first = read(secret)
            os.read(go_read, 1)
            return first + read(secret)

        os.write(go_write, b"!")
        assert fence.without(body).value == SECRET * 2
        child = session.fork(body)
        session.begin(child)
        time.sleep(0.3)
        session.enroll(child.pid)
        os.write(go_write, b"!")
        assert session.finish(child).stopped(tier)
        os.close(go_read)
        os.close(go_write)


def test_each_process_of_a_large_tree_is_told(fence: Fence, program: Program, policy: str) -> None:
    """More than one read of the kernel's list of tasks holds (32 KiB)."""
    count = 1500
    with fence.session(policy) as session:
        child = session.fork([program("family"), str(count)])
        session.begin(child)
        try:
            assert os.read(child.result, 1) == b"!"
            listed = [key.pid for key in session.enroll(child.pid)]
            children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        finally:
            os.kill(child.pid, signal.SIGKILL)
        session.finish(child)
    assert sorted(listed) == sorted([child.pid, *map(int, children)])
    assert len(children) == count


def test_enrolling_twice_adds_nothing(fence: Fence, policy: str) -> None:
    with fence.session(policy) as session, fence.session(policy) as other:
        child = session.start(["/bin/sleep", "10"])
        assert session.enroll(child.pid) == []
        assert other.enroll(child.pid) == []  # nor can it change its fence
        assert len(session.live()) == 1
        os.kill(child.pid, signal.SIGKILL)
        session.finish(child)


def test_a_pid_that_is_gone_adds_nothing(fence: Fence, policy: str) -> None:
    child = subprocess.Popen(["/bin/true"])
    with fence.session(policy) as session:
        wait_for(lambda: Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "Z", "a zombie")
        assert session.enroll(child.pid) == []
        child.wait()
        assert session.enroll(child.pid) == []
        assert session.live() == []


def test_a_closed_session_frees_its_processes(fence: Fence, policy: str, secret: Path) -> None:
    go_read, go_write = os.pipe()
    with fence.session(policy) as session:

        def body() -> bytes:
            os.read(go_read, 1)
            return read(secret)

        child = session.start(body)
        session.monitor.close_session(session.slot)
        assert session.live() == []
        os.write(go_write, b"!")
        assert session.finish(child).value == SECRET
    os.close(go_read)
    os.close(go_write)


def test_a_doomed_session_dies_at_its_next_operation(fence: Fence, program: Program, policy: str, ground: Path) -> None:
    ways: list[Callable[[], object]] = [
        lambda: os.open(ground, os.O_RDONLY),
        lambda: os.execv(program("show"), ["show", "/dev/null"]),
        lambda: attempt(lambda: socket.create_connection(("127.0.0.1", 9))),
    ]
    for way in ways:
        go_read, go_write = os.pipe()
        with fence.session(policy) as session:

            def body(way: Callable[[], object] = way, go_read: int = go_read) -> None:
                os.read(go_read, 1)
                way()

            child = session.start(body)
            session.monitor.doom_session(session.slot)
            os.write(go_write, b"!")
            outcome = session.finish(child)
            assert outcome.status == -signal.SIGKILL
            assert outcome.told()[-1][1] == "kill"
        os.close(go_read)
        os.close(go_write)


def test_the_exec_of_a_child_does_not_touch_its_parents_program(
    fence: Fence, program: Program, ground: Path, secret: Path
) -> None:
    """Exe tags are a process's own; a child has its parent's until it runs something else."""
    good = ground / "good"
    good.write_bytes(program("spawn").read_bytes())
    good.chmod(0o755)
    text = f'  - {{id: fence, on: read, paths: ["{secret}"], except: {{exe: ["{good}"]}}, action: audit}}\n'
    outcome = fence.run(text, [good, "fork", program("show"), secret])
    assert outcome.value == SECRET
    assert outcome.told() == [("read", "audit", "fence")]
