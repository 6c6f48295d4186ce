# SPDX-License-Identifier: Apache-2.0
"""Opens that wait in the react tier when the daemon is killed: they wait on, and the next daemon takes them up."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.control.client import reachable
from agentmon.daemon.gatekeeping import calm
from agentmon.host import process, starting
from agentmon.kernel.fanotify import Gate
from tests.support.held import READERS, agent, agent_in_wait, approvals, asked, go, is_written_down
from tests.support.hosts import PATIENCE_S, Host, wait_for

pytestmark = pytest.mark.tier("react")

#: Says what a program that is held said, and how it ended.
RUN = "import subprocess, sys\nprint(subprocess.run(sys.argv[1:]).returncode, flush=True)"


class Scene:
    """A file that is held to be read, a program that is held to be run, and a daemon."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.file = host.directory / "file"
        self.file.write_text("as shown\n")
        self.program = host.directory / "echo"
        shutil.copy("/bin/echo", self.program)
        self.policy = host.policy(
            f"  - {{id: kept, on: [read, write], paths: ['{self.file}'], action: hold}}\n"
            f"  - {{id: runs, on: exec, paths: ['{self.program}'], action: hold}}"
        )
        self.daemon = host.start()
        self.agents: list[subprocess.Popen[str]] = []

    def held(self, *command: str | Path) -> subprocess.Popen[str]:
        """One more agent, which runs a program that waits. It is written down: what is not, dies with the daemon."""
        number = len(approvals(self.host))
        running = agent(self.host, self.policy, RUN, *command)
        self.agents.append(running)
        self.written_down(asked(self.host, number + 1)[-1]["id"])
        return running

    def written_down(self, question: str) -> None:
        wait_for(lambda: is_written_down(self.host, question), "it to be written down")

    def die(self) -> None:
        self.daemon.kill()
        self.daemon.wait()

    def warden(self) -> int:
        """Of this daemon."""
        below = process.descendants(self.daemon.pid)
        (found,) = [pid for pid in below if "agentmon.daemon.warden" in process.command_line(pid)]
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Host(tmp_path) as host:
        scene = Scene(host)
        yield scene
        for running in scene.agents:
            for pid in [running.pid, *process.descendants(running.pid)]:  # who waits has our end of a pipe
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            running.communicate()


def said(running: subprocess.Popen[str], lines: int) -> list[str]:
    assert running.stdout is not None
    return [running.stdout.readline().strip() for _ in range(lines)]


def is_silent(running: subprocess.Popen[str]) -> bool:
    """For a second, which is more than all that would go on needs."""
    assert running.stdout is not None
    return not select.select([running.stdout], [], [], 1.0)[0]


def somebody_reads(file: Path) -> str:
    """Who is in no session."""
    return subprocess.run(["cat", file], check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout


WAITS = {
    "read": (lambda scene: ["cat", scene.file], "as shown"),
    "write": (lambda scene: [sys.executable, "-c", f"print(open({str(scene.file)!r}, 'a').write('12345'))"], "5"),
    "exec": (lambda scene: [scene.program, "hello"], "hello"),
}


@pytest.mark.parametrize("how", WAITS)
def test_it_waits_on_and_goes_on_when_the_next_daemon_is_told_yes(scene: Scene, how: str) -> None:
    command, output = WAITS[how]
    running = scene.held(*command(scene))
    before = asked(scene.host)
    scene.die()
    assert is_silent(running)
    scene.host.start()
    after = asked(scene.host)
    for key in ("id", "pid", "object", "rule", "operation", "asked"):
        assert [question.get(key) for question in after] == [question.get(key) for question in before]
    assert is_silent(running)
    assert scene.host.agentmon("approve", after[0]["id"]).returncode == 0
    assert said(running, 2) == [output, "0"]
    assert approvals(scene.host) == []


@pytest.mark.parametrize("how", ["read", "exec"])
def test_it_is_refused_and_not_killed_when_the_next_daemon_is_told_no(scene: Scene, how: str) -> None:
    call = f"open({str(scene.file)!r})" if how != "exec" else f"os.execv({str(scene.program)!r}, ['echo', 'hello'])"
    script = f"import os\ntry: {call}\nexcept PermissionError: print('refused')"
    running = scene.held(sys.executable, "-c", script)
    scene.die()
    scene.host.start()
    scene.host.agentmon("deny", asked(scene.host)[0]["id"])
    assert said(running, 2) == ["refused", "0"]


def test_threads_that_wait_together_are_taken_up_together(scene: Scene) -> None:
    running = scene.held(sys.executable, "-c", textwrap.dedent(READERS), scene.file)
    wait_for(lambda: [q["waiters"] for q in approvals(scene.host)] == [4], "all to wait for one answer")
    wait_for(lambda: is_written_down(scene.host, str(scene.file), 5), "all to be written down")
    scene.die()
    scene.host.start()
    assert [q["waiters"] for q in asked(scene.host)] == [4]
    scene.host.agentmon("approve", asked(scene.host)[0]["id"])
    assert [line for line in said(running, 9) if line] == 4 * ["as shown"] + ["0"]


def test_nobody_else_waits_for_a_daemon_that_is_dead(scene: Scene) -> None:
    running = scene.held("cat", scene.file)
    scene.die()
    for _ in range(20):  # the first ones may come before the marks are gone
        assert somebody_reads(scene.file) == "as shown\n"
    assert is_silent(running)
    scene.host.start()
    assert somebody_reads(scene.file) == "as shown\n"
    scene.host.agentmon("approve", asked(scene.host)[0]["id"])
    assert said(running, 2) == ["as shown", "0"]


def test_who_is_killed_in_between_is_not_asked_for(scene: Scene) -> None:
    running = scene.held("cat", scene.file)
    (question,) = asked(scene.host)
    scene.die()
    os.kill(question["pid"], signal.SIGKILL)
    assert said(running, 1) == ["-9"]
    scene.host.start()
    assert approvals(scene.host) == []


def test_what_is_opened_later_is_held_by_the_next_daemon_and_the_one_after_that(scene: Scene) -> None:
    """Each has a group of its own: what waits in one is not what waits in another by the same number."""
    first = scene.held("cat", scene.file)
    scene.die()
    scene.daemon = scene.host.start()
    second = scene.held(scene.program, "hello")
    scene.die()
    scene.daemon = scene.host.start()
    third = scene.held("cat", scene.file)
    ids = [question["id"] for question in asked(scene.host, 3)]
    assert ids == ["a-1", "a-2", "a-3"]
    scene.host.agentmon("deny", ids[2])
    assert said(third, 1) == ["1"]
    scene.host.agentmon("approve", ids[0])
    assert said(first, 2) == ["as shown", "0"]
    assert is_silent(second)
    scene.host.agentmon("approve", ids[1])
    assert said(second, 2) == ["hello", "0"]


def test_one_that_opens_again_and_again_is_asked_for_each_time(scene: Scene) -> None:
    """That it was let go on in the group of a daemon before counts for that open, and for none after it."""
    twice = f"for i in range(2): print(open({str(scene.file)!r}).read(), end='', flush=True)"
    running = scene.held(sys.executable, "-c", twice)
    scene.die()
    scene.host.start()
    first = asked(scene.host)[0]["id"]
    scene.host.agentmon("approve", first)
    assert said(running, 1) == ["as shown"]
    wait_for(lambda: [q for q in approvals(scene.host) if q["id"] != first], "the second question")
    assert is_silent(running)
    scene.host.agentmon("approve", asked(scene.host)[0]["id"])
    assert said(running, 2) == ["as shown", "0"]


def test_what_is_rewritten_in_between_is_asked_again(scene: Scene) -> None:
    running = scene.held("cat", scene.file)
    scene.die()
    scene.file.write_text("something else\n")
    scene.host.start()
    done = scene.host.agentmon("approve", asked(scene.host)[0]["id"])
    assert (done.returncode, "changed while it was held" in done.stderr) == (1, True), done.stderr
    (again,) = approvals(scene.host)
    assert again["changed"] is True
    scene.host.agentmon("approve", again["id"])
    assert said(running, 2) == ["something else", "0"]


def test_what_is_replaced_in_between_is_denied(scene: Scene) -> None:
    """Nobody can be shown any more what it would open."""
    running = scene.held("cat", scene.file)
    scene.die()
    (scene.host.directory / "other").write_text("something else\n")
    (scene.host.directory / "other").rename(scene.file)
    scene.host.start()
    assert said(running, 1) == ["1"]
    assert approvals(scene.host) == []
    assert "waits to open it, and is denied: it was replaced" in scene.host.log()


@pytest.mark.parametrize("moved", ["before its end", "after its end"])
def test_what_was_moved_to_an_approved_name_is_asked_for_by_its_own(scene: Scene, moved: str) -> None:
    """Each daemon knows what a file was called when the one before it was there."""
    other = scene.host.directory / "other"
    other.write_text("not shown")
    rule = f"  - {{id: kept, on: read, paths: ['{scene.file}', '{other}'], action: hold}}"
    script = "import sys\nfor line in sys.stdin:\n    print(open(sys.argv[1]).read(), end='', flush=True)"
    running = agent_in_wait(scene.host, scene.host.policy(rule, "moved"), script, scene.file)
    scene.agents.append(running)
    go(running)
    scene.host.agentmon("approve", asked(scene.host)[0]["id"], "--session")
    assert said(running, 1) == ["as shown"]
    scene.written_down(str(other))
    if moved == "before its end":
        other.rename(scene.file)
        wait_for(lambda: is_written_down(scene.host, str(scene.file), times=2), "it to be known by its new name")
        scene.die()
    else:
        scene.die()
        other.rename(scene.file)
    scene.daemon = scene.host.start()
    go(running)
    question = asked(scene.host)[0]
    assert question["object"] == str(other)
    scene.host.agentmon("deny", question["id"])
    assert "not shown" not in running.communicate(timeout=PATIENCE_S)[0]


def test_one_that_dies_while_it_starts_leaves_it_to_the_one_after(scene: Scene) -> None:
    running = scene.held("cat", scene.file)
    scene.die()
    for _ in range(2):
        with subprocess.Popen(scene.host.command("daemon"), env=scene.host.environment()) as daemon:
            wait_for(lambda: starting.under_way(scene.host.state) == daemon.pid, "it to start")
            time.sleep(0.5)  # it asks the warden first of all
            daemon.kill()
    assert is_silent(running)
    scene.host.start()
    scene.host.agentmon("approve", asked(scene.host)[0]["id"])
    assert said(running, 2) == ["as shown", "0"]


def test_the_warden_gives_nothing_to_who_is_no_daemon_that_starts(scene: Scene) -> None:
    running = scene.held("cat", scene.file)
    place = scene.host.state / "gates"
    assert (place.stat().st_uid, place.stat().st_mode & 0o777) == (0, 0o700)
    scene.die()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.settimeout(PATIENCE_S)
        other.connect(os.fspath(place))
        assert socket.recv_fds(other, 100, 16)[:2] == (b"", [])
    assert is_silent(running)


def test_what_was_not_written_down_is_not_let_go_on(scene: Scene) -> None:
    running = scene.held("cat", scene.file)
    os.kill(scene.warden(), signal.SIGSTOP)  # else it could read the file before it is damaged
    warden = scene.warden()
    scene.die()
    (scene.host.state / "held.json").write_text("{}")
    os.kill(warden, signal.SIGCONT)
    scene.host.start()
    assert said(running, 1) == ["-9"]


def test_nobody_waits_for_ever_when_no_daemon_comes_any_more(scene: Scene) -> None:
    """Its warden denies it, in half a minute."""
    running = scene.held("cat", scene.file)
    program = scene.held(scene.program, "hello")
    scene.die()
    assert said(running, 1) == ["1"]
    assert is_silent(program) or said(program, 1)


def test_it_is_ended_when_the_warden_is_killed_too(scene: Scene) -> None:
    """The kernel lets it go on then, and the program in the kernel ends it. Nobody else notices."""
    running = scene.held("cat", scene.file)
    warden = scene.warden()
    scene.die()
    os.kill(warden, signal.SIGKILL)
    assert said(running, 1) == ["-9"]
    assert somebody_reads(scene.file) == "as shown\n"


def test_who_was_not_known_to_wait_goes_on_and_the_known_wait_on(tmp_path: Path) -> None:
    """Whatever numbers they have: the one who goes on in the end came to have the number of one who waits."""
    file = tmp_path / "file"
    file.write_text("as shown")
    gate = Gate()

    def somebody() -> subprocess.Popen[bytes]:
        running = subprocess.Popen(["cat", file], stdout=subprocess.DEVNULL)
        assert select.select([gate.fd], [], [], PATIENCE_S)[0]
        return running

    assert gate.mark(os.fsencode(file), to_run=False)
    known = somebody()
    (first,) = gate.read()
    unknown = somebody()
    (second,) = gate.read()
    unread = somebody()
    os.close(first.fd)  # as in another process: the number is free
    calm(gate, {first.name})
    assert (unknown.wait(PATIENCE_S), unread.wait(PATIENCE_S)) == (0, 0)
    assert somebody_reads(file) == "as shown"  # the marks are gone
    assert known.poll() is None
    assert gate.respond(first.name, allow=False)
    assert known.wait(PATIENCE_S) == 1
    assert not gate.respond(second.name, allow=True)
    os.close(second.fd)
    gate.close()


# ---- systemd, which keeps what it is handed, and ends the warden with the daemon


#: As systemd starts a service: what it gets is there from descriptor 3 on, and by its own process id.
START = """
import fcntl, os, sys
given = [int(word) for word in sys.argv[1].split(",") if word]
fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in given]
for fd in given:
    os.set_inheritable(fd, False)
for number, fd in enumerate(fds, 3):
    os.dup2(fd, number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Store:
    """The service manager's side of sd_notify(3): what it was handed, by name."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(self.path))
        self.kept: dict[str, int] = {}
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            text, fds, _, _ = socket.recv_fds(self._socket, 4096, 16)
            words = dict(line.split("=", 1) for line in text.decode().splitlines())
            if words.get("FDSTORE") == "1":
                self.kept[words["FDNAME"]] = fds.pop()
            elif words.get("FDSTOREREMOVE") == "1":
                os.close(self.kept.pop(words["FDNAME"]))
            for fd in fds:
                os.close(fd)

    def start(self, host: Host) -> subprocess.Popen[bytes]:
        """A daemon that gets what is kept from descriptor 3 on."""
        names = dict(self.kept)
        told = {"NOTIFY_SOCKET": os.fspath(self.path), "LISTEN_FDNAMES": ":".join(names), "LISTEN_FDS": str(len(names))}
        with open(host.directory / "daemon.log", "ab") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-c", START, ",".join(map(str, names.values())), *host.command("daemon")],
                stderr=log,
                stdout=log,
                env=host.environment() | told,
                pass_fds=list(names.values()),
            )
        host.daemons.append(daemon)
        wait_for(lambda: daemon.poll() is not None or reachable(host.socket), "the daemon to answer")
        assert daemon.poll() is None, host.log()
        return daemon


@pytest.fixture
def store(scene: Scene) -> Store:
    scene.daemon.terminate()
    scene.daemon.wait()
    store = Store(scene.host.directory)
    scene.daemon = store.start(scene.host)
    return store


def test_systemd_keeps_it_waiting_when_it_ends_the_warden_as_well(scene: Scene, store: Store) -> None:
    """Which sees to it first that nobody else waits."""
    running = scene.held("cat", scene.file)
    warden = scene.warden()
    scene.die()
    os.kill(warden, signal.SIGTERM)
    wait_for(lambda: not Path(f"/proc/{warden}").exists() or process.stat(warden).state == "Z", "the warden to end")
    assert len(store.kept) == 1
    assert somebody_reads(scene.file) == "as shown\n"
    assert is_silent(running)
    scene.daemon = store.start(scene.host)
    scene.host.agentmon("approve", asked(scene.host)[0]["id"])
    assert said(running, 2) == ["as shown", "0"]
    wait_for(lambda: len(store.kept) == 1, "the group that nobody waits in any more to be given up")


def test_who_comes_while_systemd_alone_has_it_waits_for_the_next_daemon_at_most(scene: Scene, store: Store) -> None:
    running = scene.held("cat", scene.file)
    os.kill(scene.warden(), signal.SIGKILL)
    scene.die()
    other = subprocess.Popen(["cat", scene.file], stdout=subprocess.PIPE, text=True)
    assert is_silent(other)
    scene.daemon = store.start(scene.host)
    assert other.communicate(timeout=PATIENCE_S)[0] == "as shown\n"
    assert is_silent(running)
    scene.host.agentmon("deny", asked(scene.host)[0]["id"])
    assert said(running, 1) == ["1"]


def test_a_daemon_that_is_stopped_leaves_nothing_with_systemd(scene: Scene, store: Store) -> None:
    running = scene.held("cat", scene.file)
    scene.daemon.terminate()
    scene.daemon.wait()
    assert said(running, 1) == ["1"]
    wait_for(lambda: not store.kept, "systemd to be told")
    assert somebody_reads(scene.file) == "as shown\n"
