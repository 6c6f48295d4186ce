# SPDX-License-Identifier: Apache-2.0
"""SIGKILL of `agentmon run`, or of the daemon, at random instants: the child is fenced or dead, always.

The fenced command tries the forbidden open again and again and writes a file when it succeeds. Instants are spread
from the start of `run` over its whole life. `AGENTMON_INSTANTS` sets how many of each kind.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.control.client import reachable
from agentmon.kernel.monitor import EVENTS_BYTES
from tests.support.hosts import PATIENCE_S, Host, wait_for

INSTANTS = int(os.environ.get("AGENTMON_INSTANTS", "34"))
#: After a kill, what is left gets this long for its next attempts; it makes one each 10 ms.
AFTERWARDS_S = 0.08

LOOP = """
echo $$ > "$1.pid"
while :; do
    if (read -r line < "$2") 2> /dev/null; then : > "$1.leak"; fi
    echo >> "$1.ticks"
    sleep 0.01
done
"""


class Arena:
    """A host with a secret, and the marks that fenced loops leave."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.secret = host.directory / "secret"
        self.secret.write_text("secret\n")
        self.policy = host.policy(f"  - {{id: secret, on: read, paths: ['{self.secret}'], action: deny}}")
        self.count = 0
        self.ticked = 0

    def run(self) -> tuple[subprocess.Popen[str], Path]:
        """Start `agentmon run` with the loop. Returns it, and what its marks' names begin with."""
        self.count += 1
        marks = self.host.directory / f"loop-{self.count}"
        command = ["sh", "-c", LOOP, "loop", str(marks), str(self.secret)]
        run = self.host.spawn(
            "run", "--quiet", "-p", self.policy, "--", *command, stderr=subprocess.DEVNULL, start_new_session=True
        )
        return run, marks

    def instants(self, seed: int) -> Iterator[tuple[subprocess.Popen[str], Path]]:
        """Runs, each some random time after its start; the last when its loop runs for sure, however slow the host."""
        longest = span(self) * 1.2
        chance = random.Random(seed)
        for left in reversed(range(INSTANTS)):
            run, marks = self.run()
            if left:
                time.sleep(chance.uniform(0, longest))
            else:
                wait_for(lambda marks=marks: ticks(marks) > 2, "the loop to run")
            yield run, marks

    def check(self, marks: Path) -> None:
        """Nothing leaked, also not afterwards."""
        before = ticks(marks)
        time.sleep(AFTERWARDS_S)
        if alive(marks):
            wait_for(lambda: ticks(marks) > before or not alive(marks), "the next attempt")
        assert not marks.with_suffix(".leak").exists(), f"{marks.name} read the secret; {self.host.log()}"
        self.ticked += ticks(marks) > 0

    def clear(self, run: subprocess.Popen[str], marks: Path) -> None:
        """End what is left of a run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait(PATIENCE_S)
        assert not marks.with_suffix(".leak").exists()


def ticks(marks: Path) -> int:
    path = marks.with_suffix(".ticks")
    return path.stat().st_size if path.exists() else 0


def alive(marks: Path) -> bool:
    """Whether the loop runs."""
    try:
        pid = int(marks.with_suffix(".pid").read_text())
        return str(marks).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    with Host(tmp_path) as host:
        yield Arena(host)


def span(arena: Arena) -> float:
    """How long it takes from the start of `run` to the loop's third attempt, here and now."""
    began = time.monotonic()
    run, marks = arena.run()
    wait_for(lambda: ticks(marks) > 2, "the loop to run")
    taken = time.monotonic() - began
    arena.check(marks)
    arena.clear(run, marks)
    return taken


def test_the_loop_would_leak_without_a_fence(arena: Arena) -> None:
    marks = arena.host.directory / "free"
    loop = subprocess.Popen(["sh", "-c", LOOP, "loop", str(marks), str(arena.secret)])
    try:
        wait_for(marks.with_suffix(".leak").exists, "the leak")
    finally:
        loop.kill()
        loop.wait()


def test_run_is_killed(arena: Arena) -> None:
    arena.host.start()
    for run, marks in arena.instants(1):
        run.kill()
        run.wait(PATIENCE_S)
        arena.check(marks)
        # The command dies with `run`; it may need a moment.
        wait_for(lambda marks=marks: not alive(marks), "the command to die with run")
        arena.clear(run, marks)
    assert arena.ticked > 1  # some were killed early, but not all


def test_the_daemon_is_killed(arena: Arena) -> None:
    daemon = arena.host.start()
    chance = random.Random(4)
    for run, marks in arena.instants(2):
        daemon.kill()
        daemon.wait()
        arena.check(marks)
        if chance.random() < 0.5:
            arena.clear(run, marks)
            daemon = arena.host.start()
        else:
            # The next daemon takes the session over, and the fence is still there.
            daemon = arena.host.start()
            arena.check(marks)
            if alive(marks) and run.poll() is None:
                sessions = arena.host.client().call("ps")["sessions"]
                assert any(str(marks) in session["command"] for session in sessions), arena.host.log()
            arena.clear(run, marks)
    assert arena.ticked > 1


def test_the_embedded_daemon_is_killed(arena: Arena) -> None:
    for run, marks in arena.instants(3):
        for pid in arena.host.daemon_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        arena.check(marks)
        arena.clear(run, marks)
    assert arena.ticked > 1
    assert str(arena.host.directory) not in Path("/proc/self/mounts").read_text()  # canaries mount, in vain


def test_the_daemon_is_told_to_stop_while_a_session_lives(arena: Arena) -> None:
    daemon = arena.host.start()
    run, marks = arena.run()
    wait_for(lambda: ticks(marks) > 2, "the loop to run")
    daemon.terminate()
    assert daemon.wait(PATIENCE_S) == 0
    assert not reachable(arena.host.socket)
    for _ in range(3):
        arena.check(marks)
        assert alive(marks)
    daemon = arena.host.start()
    assert [s["process_count"] >= 1 for s in arena.host.client().call("ps")["sessions"]] == [True]
    arena.clear(run, marks)
    wait_for(lambda: not arena.host.client().call("ps")["sessions"], "the session to end")
    daemon.terminate()
    assert daemon.wait(PATIENCE_S) == 0
    wait_for(arena.host.gone, "the pins to be taken away")


PARENT = """
read -r _ < "$1.go"
i=0
while [ $i -lt "$4" ]; do read -r line < "$3"; i=$((i + 1)); done
exec sh -c "$5" parent "$1" "$2" "$5" 3
"""
#: Its execs leave records as large as that of the fork: when they do not fit any more, that does not either.
FORK = """
if [ $4 -gt 0 ]; then exec sh -c "$3" parent "$1" "$2" "$3" $(($4 - 1)); fi
(read -r _ < "$1.gate"; if read -r line < "$2"; then : > "$1.leak"; fi) &
: > "$1.forked"
read -r _ < "$1.end"
"""


@contextlib.contextmanager
def gate(fifo: Path) -> Iterator[None]:
    """Somebody waits at this FIFO; let them go on at the end."""
    opened: list[int] = []

    def waits() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: nobody reads
            opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    wait_for(waits, f"a reader of {fifo.name}")
    yield
    os.close(opened[0])


def test_a_child_whose_record_was_lost_stays_fenced(arena: Arena) -> None:
    """The ring is full when it is born, and there is room again when the last process that the daemon knows of ends."""
    daemon = arena.host.start()
    told = arena.host.directory / "told"
    told.write_text("told\n")
    policy = arena.host.policy(
        f"  - {{id: secret, on: read, paths: ['{arena.secret}'], action: deny}}\n"
        f"  - {{id: told, on: read, paths: ['{told}'], action: audit}}",
        "parent",
    )
    marks = arena.host.directory / "child"
    for name in (".go", ".gate", ".end"):
        os.mkfifo(marks.with_suffix(name))
    flood = str(EVENTS_BYTES // 100)
    command = ["sh", "-c", PARENT, "parent", str(marks), str(arena.secret), str(told), flood, FORK]
    run = arena.host.spawn("run", "--quiet", "-p", policy, "--", *command, stderr=subprocess.DEVNULL)
    with gate(marks.with_suffix(".go")):
        daemon.send_signal(signal.SIGSTOP)
    wait_for(marks.with_suffix(".forked").exists, "the fork")
    daemon.send_signal(signal.SIGCONT)
    with gate(marks.with_suffix(".end")):
        pass
    run.wait(PATIENCE_S)
    reply = arena.host.client().call("ps")
    assert reply["counters"]["ring_lost"] > 0
    assert [s["process_count"] for s in reply["sessions"]] == [1]
    with gate(marks.with_suffix(".gate")):
        pass
    wait_for(lambda: not arena.host.client().call("ps")["sessions"], "the child to end")
    assert not marks.with_suffix(".leak").exists()
