# SPDX-License-Identifier: Apache-2.0
"""`agentmon enroll`: fencing what already runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.host import process
from agentmon.model.operations import Tier
from tests.support.hosts import PATIENCE_S, Host, wait_for

NOBODY = 65534


@pytest.fixture
def secret(served: Host) -> Path:
    path = served.directory / "secret"
    path.write_text("secret\n")
    return path


@pytest.fixture
def policy(served: Host, secret: Path) -> Path:
    return served.policy(
        f"  - {{id: secret, on: [read, write], paths: ['{secret}'], action: deny, reason: it is secret}}"
    )


@contextlib.contextmanager
def reader(secret: Path, results: Path, before: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process whose child's child tries to read the secret, again and again, and writes what happened."""
    script = f"""
import os, sys, time
{before}
if os.fork() == 0:
    if os.fork() == 0:
        while True:
            if os.fork() == 0:
                try:
                    text = open({str(secret)!r}).read()
                    open({str(results)!r}, "a").write("read\\n")
                except PermissionError:
                    open({str(results)!r}, "a").write("denied\\n")
                os._exit(0)
            if os.wait()[1] == 9:
                open({str(results)!r}, "a").write("denied\\n")
            time.sleep(0.02)
    time.sleep(1000)
time.sleep(1000)
"""
    child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        yield child
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def last(results: Path) -> str:
    return (results.read_text().splitlines() or [""])[-1] if results.exists() else ""


def test_a_running_tree_is_fenced_and_released(served: Host, policy: Path, secret: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    with reader(secret, results) as child:
        wait_for(lambda: last(results) == "read", "a read")
        found = served.json("enroll", str(child.pid), "-p", policy)
        assert len(found["processes"]) >= 3
        wait_for(lambda: last(results) == "denied", "a denial")
        count = len(results.read_text().splitlines())
        wait_for(lambda: len(results.read_text().splitlines()) > count + 3, "more attempts")
        assert "read" not in results.read_text().splitlines()[count:]
        listed = next(s for s in served.json("ps")["sessions"] if s["session"] == found["session"])
        assert child.pid in [p["pid"] for p in listed["processes"]]
        assert listed["blocked"] > 0
        served.json("release", found["session"])
        wait_for(lambda: last(results) == "read", "a read after the release")
    assert served.agentmon("release", found["session"]).returncode == 1


def test_the_risk_of_a_session_is_set_by_the_operator(served: Host, secret: Path, tmp_path: Path) -> None:
    """And an ancestor is known of what ran before it was fenced."""
    program = os.path.realpath(sys.executable)
    policy = served.policy(
        f"  - {{id: secret, on: read, paths: ['{secret}'], parent: ['{program}'],"
        " when: {risk: elevated}, action: deny}"
    )
    results = tmp_path / "results"
    with reader(secret, results) as child:
        wait_for(lambda: last(results) == "read", "a read")
        session = served.json("enroll", str(child.pid), "-p", policy)["session"]
        try:
            for level, was, wanted in (
                ("high", "normal", "denied"),
                ("normal", "high", "read"),
                ("elevated", "normal", "denied"),
            ):
                assert served.json("risk", session, level) == {"v": 1, "session": session, "risk": level, "was": was}
                wait_for(lambda wanted=wanted: last(results) == wanted, wanted)
            assert [s["risk"] for s in served.json("ps")["sessions"] if s["session"] == session] == ["elevated"]
        finally:
            served.agentmon("release", session)


def test_what_is_held_already_is_refused_until_accepted(
    served: Host, policy: Path, secret: Path, tmp_path: Path
) -> None:
    hold = f"held = os.open({str(secret)!r}, os.O_RDWR); os.write(held, b'by it')"
    with reader(secret, tmp_path / "results", hold) as child:
        wait_for((tmp_path / "results").exists, "the reader")
        assert secret.read_text().startswith("by it")  # without a fence
        refused = served.agentmon("enroll", str(child.pid), "-p", policy)
        assert refused.returncode == 2
        assert f"{child.pid}:fd3: read `{secret}`" in refused.stderr
        assert "rule `secret`: it is secret" in refused.stderr
        assert served.json("ps")["sessions"] == []
        assert process.stat(child.pid).state == "S"  # goes on
        wait_for(lambda: last(tmp_path / "results") == "read", "an unfenced read")
        one = served.agentmon("enroll", str(child.pid), "-p", policy, "--accept", f"{child.pid}:fd3")
        assert one.returncode == 2  # its children hold it too
        wrong = served.agentmon("enroll", str(child.pid), "-p", policy, "--accept", "1:fd99")
        assert wrong.returncode == 64
        assert served.agentmon("enroll", str(child.pid), "-p", policy, "--accept", "all").returncode == 0
        served.agentmon("release", "--all")


#: Connects to the port argv[1]; sends a word at each line that it reads, and says what came of it.
SENDS = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
    print("connected", flush=True)
    for _ in sys.stdin:
        try:
            s.sendall(b"data")
            print("sent", flush=True)
        except PermissionError:
            print("denied", flush=True)
"""


def test_a_connection_that_is_there_already_is_refused_until_accepted(served: Host, tier: Tier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        port = server.getsockname()[1]
        rule = f"{{id: network, on: [connect, send], cidrs: ['127.0.0.1:{port}'], action: deny, reason: no network}}"
        policy = served.policy(f"  - {rule}", "network")
        words = [sys.executable, "-c", SENDS, str(port)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdin is not None
            assert child.stdout is not None

            def told(line: str = "") -> str:
                if line:
                    child.stdin.write(line)  # type: ignore[union-attr]
                    child.stdin.flush()  # type: ignore[union-attr]
                return child.stdout.readline().strip()  # type: ignore[union-attr]

            try:
                with server.accept()[0] as ear:
                    assert told() == "connected"
                    refused = served.agentmon("enroll", str(child.pid), "-p", policy)
                    assert refused.returncode == 2
                    assert f"{child.pid}:fd3: connect `127.0.0.1:{port}`" in refused.stderr
                    assert "rule `network`: no network" in refused.stderr
                    assert served.json("ps")["sessions"] == []
                    # without a fence, which was refused
                    assert told("go\n") == "sent"
                    assert ear.recv(100) == b"data"
                    one = served.agentmon("enroll", str(child.pid), "-p", policy, "--accept", f"{child.pid}:fd3")
                    assert one.returncode == 0, one.stderr
                    # react: what was accepted is not judged again
                    assert told("go\n") == ("denied" if tier is Tier.LSM else "sent")
                    ear.setblocking(False)
                    if tier is Tier.LSM:
                        with pytest.raises(BlockingIOError):
                            ear.recv(100)
            finally:
                child.kill()
                served.agentmon("release", "--all")


def test_a_stopped_process_stays_stopped(served: Host, policy: Path) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    try:
        child.send_signal(signal.SIGSTOP)
        wait_for(lambda: process.stat(child.pid).state == "T", "the stop")
        assert served.agentmon("enroll", str(child.pid), "-p", policy).returncode == 0
        time.sleep(0.1)
        assert process.stat(child.pid).state == "T"
    finally:
        child.kill()
        child.wait()


def test_orphans_are_listed(served: Host, policy: Path) -> None:
    script = (
        "import os, time\nif os.fork() == 0:\n  if os.fork() == 0:\n    time.sleep(1000)\n  os._exit(0)\n"
        "os.wait()\ntime.sleep(1000)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        wait_for(lambda: _orphan(child.pid) is not None, "the orphan")
        done = served.json("enroll", str(child.pid), "-p", policy)
        assert [o["pid"] for o in done["orphans"]] == [_orphan(child.pid)]
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        served.agentmon("release", "--all")


def _orphan(leader: int) -> int | None:
    for pid in process.pids():
        with contextlib.suppress(ProcessLookupError):
            stat = process.stat(pid)
            if stat.pgrp == leader and pid != leader and not process.is_descendant(pid, leader):
                return pid
    return None


@pytest.mark.parametrize(
    ("pid", "words"),
    [("999999999", "there is no process"), ("2", ""), ("x", "invalid int"), (str(os.getpid()), "above it")],
    ids=["absent", "kernel thread", "no number", "above"],  # the same on every host: guests report by name
)
def test_bad_targets_are_named(served: Host, policy: Path, pid: str, words: str) -> None:
    done = served.agentmon("enroll", pid, "-p", policy, "--workspace", "/")
    assert done.returncode != 0
    assert words in done.stderr


def test_enrolling_twice_names_the_session(served: Host, policy: Path) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    try:
        first = served.json("enroll", str(child.pid), "-p", policy)
        second = served.agentmon("enroll", str(child.pid), "-p", policy)
        assert second.returncode == 1
        assert first["session"] in second.stderr
    finally:
        child.kill()
        child.wait()


def test_an_ordinary_user_needs_no_new_privs_and_own_processes(served: Host, policy: Path) -> None:
    def enrol_as_nobody(pid: int) -> tuple[bool, str]:
        script = (
            "import sys, os; sys.path.insert(0, sys.argv[4]); os.setresgid(65534, 65534, 65534); "
            "os.setresuid(65534, 65534, 65534)\n"
            "from pathlib import Path; from agentmon.control.client import Client\n"
            "from agentmon.control.protocol import RefusedError\n"
            "try:\n"
            "  with Client(Path(sys.argv[1])) as c:\n"
            "    policy = {'name': 't.yaml', 'text': sys.argv[3]}\n"
            "    c.call('enroll', pid=int(sys.argv[2]), policy=policy, workspace='/')\n"
            "  print('enrolled')\n"
            "except RefusedError as error: print(error)\n"
        )
        root = str(Path(__file__).parents[2])
        # imported while still root: nobody cannot read a checkout in a private place
        script = "import agentmon.control.client, agentmon.errors\n" + script
        done = subprocess.run(
            [sys.executable, "-c", script, str(served.socket), str(pid), policy.read_text(), root],
            capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
        return done.stdout.strip() == "enrolled", done.stdout + done.stderr

    def sleeper(*prefix: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*prefix, "sleep", "1000"])

    root = sleeper()
    plain = sleeper("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    ready = sleeper("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")
    try:
        wait_for(lambda: all(process.status(p.pid).uids[0] == NOBODY for p in (plain, ready)), "setpriv")
        wait_for(lambda: process.status(ready.pid).no_new_privs, "no_new_privs")
        assert "is not yours" in enrol_as_nobody(root.pid)[1]
        assert "no_new_privs" in enrol_as_nobody(plain.pid)[1]
        assert enrol_as_nobody(ready.pid) == (True, "enrolled\n")
    finally:
        for child in (root, plain, ready):
            child.kill()
            child.wait()
