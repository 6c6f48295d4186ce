# SPDX-License-Identifier: Apache-2.0
"""`action: hold`: others of the session change what was shown, or wake who waits; nothing happens unapproved."""

from __future__ import annotations

import shutil
import signal
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from agentmon.model.operations import Tier
from tests.support.held import Sink, agent, agent_in_wait, another, approvals, asked, finish, frozen, go
from tests.support.hosts import PATIENCE_S, Host, wait_for

# ---- an address

#: An address in memory that is shared, the first port in it; `write(port)` changes it.
SHARED = """
    import ctypes, mmap, os, socket, struct, sys, threading, time
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = map(int, sys.argv[1:3])
    shared = mmap.mmap(-1, 4096)
    address = ctypes.c_char.from_buffer(shared)
    def write(port):
        shared[:8] = struct.pack("=H", socket.AF_INET) + struct.pack(">H4B", port, 127, 0, 0, 1)
    def connect():
        s = socket.socket()
        if libc.connect(s.fileno(), ctypes.byref(address), 16):
            print(ctypes.get_errno(), flush=True)
        else:
            s.send(b"hello")
            print("sent", flush=True)
    write(first)
"""


@pytest.fixture
def sinks() -> Any:
    found = Sink(), Sink()
    yield found
    for sink in found:
        sink.server.close()


def to_both(host: Host, sinks: tuple[Sink, Sink], more: str = "") -> Path:
    ports = sorted(sink.port for sink in sinks)
    rule = f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: {ports}, action: hold}}\n{more}"
    return host.policy(rule, "both")


def test_an_approval_that_was_used_is_none_for_another_call_that_comes_to_the_same(
    served: Host, sinks: tuple[Sink, Sink], tmp_path: Path
) -> None:
    mark = tmp_path / "go"
    script = f"""{SHARED}
    if not os.fork():
        while not os.path.exists("{mark}"):
            time.sleep(0.01)
        write(first)
        os.mkdir("{mark}-done")
        os._exit(0)
    connect()
    write(second)
    connect()
    """
    running = agent(served, to_both(served, sinks), script, *(sink.port for sink in sinks))
    first = frozen(served)
    assert served.agentmon("approve", first["id"]).returncode == 0
    wait_for(lambda: [q["id"] for q in approvals(served)] not in ([], [first["id"]]), "the second question")
    second = frozen(served)
    assert second["object"] == f"127.0.0.1:{sinks[1].port}"
    mark.touch()
    wait_for((tmp_path / "go-done").exists, "the address to be changed back")
    assert served.agentmon("deny", second["id"]).returncode == 0
    third = another(served, first, second)
    assert third["object"] == first["object"]
    assert served.agentmon("deny", third["id"]).returncode == 0
    assert finish(running)[1].startswith("sent\n1\n")
    assert (sinks[0].heard, sinks[1].heard) == ([b"hello"], [])


@pytest.mark.parametrize(("before", "last"), [("approve", "approve"), ("approve", "deny"), ("deny", "deny")])
def test_an_address_that_another_process_changes_is_asked_again(
    served: Host, sinks: tuple[Sink, Sink], tmp_path: Path, before: str, last: str
) -> None:
    mark = tmp_path / "go"
    script = f"""{SHARED}
    if not os.fork():
        while not os.path.exists("{mark}"):
            time.sleep(0.01)
        write(second)
        os.mkdir("{mark}-done")
        os._exit(0)
    connect()
    """
    running = agent(served, to_both(served, sinks), script, *(sink.port for sink in sinks))
    first = frozen(served)
    assert first["object"] == f"127.0.0.1:{sinks[0].port}"
    mark.touch()
    wait_for((tmp_path / "go-done").exists, "the address to be changed")
    assert served.agentmon(before, first["id"]).returncode == 0
    again = another(served, first)
    assert (again["object"], again["changed"]) == (f"127.0.0.1:{sinks[1].port}", before == "approve")
    time.sleep(0.7)
    assert running.poll() is None
    assert [sink.heard for sink in sinks] == [[], []]
    assert served.agentmon(last, again["id"]).returncode == 0
    said, reached = ("sent\n", [b"hello"]) if last == "approve" else ("1\n", [])
    assert finish(running)[1].startswith(said)
    wait_for(lambda: sinks[1].heard == reached, "it to arrive")
    assert sinks[0].heard == []
    assert approvals(served) == []


def test_an_address_that_a_thread_changes_before_it_is_frozen_is_asked_again(
    patient: Host, sinks: tuple[Sink, Sink]
) -> None:
    """While the daemon is stopped nobody is frozen."""
    script = f"""{SHARED}
    def change():
        time.sleep(0.5)
        write(second)
        print("changed", flush=True)
    sys.stdin.readline()
    threading.Thread(target=change).start()
    connect()
    """
    daemon = patient.start()
    running = agent_in_wait(patient, to_both(patient, sinks), script, *(sink.port for sink in sinks))
    daemon.send_signal(signal.SIGSTOP)
    go(running)
    assert running.stdout is not None
    assert running.stdout.readline() == "changed\n"
    time.sleep(0.5)
    daemon.send_signal(signal.SIGCONT)
    place = f"127.0.0.1:{sinks[1].port}"
    wait_for(lambda: [q["object"] for q in approvals(patient)] == [place], "to be asked for the other")
    (question,) = approvals(patient)
    assert question["changed"]
    assert [sink.heard for sink in sinks] == [[], []]
    patient.agentmon("deny", question["id"])
    assert running.stdout.readline() == "1\n"
    running.communicate(timeout=PATIENCE_S)
    assert [sink.heard for sink in sinks] == [[], []]


def test_an_address_that_a_thread_changes_all_the_time_is_reached_when_it_was_approved(
    served: Host, sinks: tuple[Sink, Sink]
) -> None:
    """One of them never is; the other is what connected."""
    script = f"""{SHARED}
    def change():
        while True:
            write(second)
            write(first)
    threading.Thread(target=change, daemon=True).start()
    connect()
    """
    running = agent(served, to_both(served, sinks), script, *(sink.port for sink in sinks))
    place = f"127.0.0.1:{sinks[0].port}"
    seen: set[str] = set()
    while running.poll() is None:
        for question in approvals(served):
            if question["id"] not in seen:
                seen.add(question["id"])
                served.agentmon("approve" if question["object"] == place else "deny", question["id"])
        time.sleep(0.02)
    assert finish(running)[1].startswith(("sent\n", "1\n"))
    assert sinks[1].heard == []


# ---- a program

#: Starts `argv[1]`; a process beside changes it once there is `argv[2]`.
STARTS = """
    import os, subprocess, sys, time
    what, mark = sys.argv[1:]
    os.chdir(os.path.dirname(what))
    if not os.fork():
        while not os.path.exists(mark):
            time.sleep(0.01)
        {change}
        os.mkdir(mark + "-done")
        os._exit(0)
    print("status", subprocess.run([what]).returncode, flush=True)
"""
CHANGES = {
    "rewritten": "open('script', 'w').write(open('hidden').read())",
    "replaced": "os.rename('hidden', 'script')",
    "linked": "os.symlink('hidden', 'new'), os.rename('new', 'script')",
    "moved": "os.symlink('hidden', 'new'), os.rename('new', 'link')",
}


@pytest.mark.parametrize("named", ["*", "exactly"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_script_that_another_process_changes_is_asked_again(
    served: Host, kept: Path, tier: Tier, tmp_path: Path, change: str, named: str
) -> None:
    (kept / "hidden").write_text(f"#!/bin/sh\necho another > {tmp_path}/ran; echo another\n")
    (kept / "hidden").chmod(0o755)
    (kept / "link").symlink_to("script")
    called = "link" if change == "moved" else "script"
    names = ["*"] if named == "*" else ["script", "link", "hidden"]
    policy = served.policy(
        f"  - {{id: kept, on: exec, paths: {[f'{kept}/{name}' for name in names]}, action: hold}}", "scripts"
    )
    running = agent(
        served, policy, textwrap.dedent(STARTS).format(change=CHANGES[change]), kept / called, tmp_path / "go"
    )
    first = frozen(served)
    (tmp_path / "go").touch()
    wait_for((tmp_path / "go-done").exists, "it to be changed")
    done = served.agentmon("approve", first["id"])
    if tier is Tier.REACT:
        assert (done.returncode, "changed while it was held" in done.stderr) == (1, True), done.stderr
    again = another(served, first)
    if tier is Tier.LSM and change in ("linked", "moved"):
        assert again["object"] == f"{kept}/hidden"  # it is asked for the file, which is another
    else:
        assert again["changed"]
    time.sleep(0.3)
    assert running.poll() is None
    assert not (tmp_path / "ran").exists()
    assert served.agentmon("approve", again["id"]).returncode == 0
    status, out = finish(running)
    assert (status, out.startswith("another\nstatus 0\n")) == (0, True), out
    assert approvals(served) == []


@pytest.mark.parametrize("named", ["*", "exactly"])
def test_a_program_that_another_process_replaces_does_not_run_unapproved(
    served: Host, kept: Path, tmp_path: Path, named: str
) -> None:
    """What runs is what was opened, or found again, and approved as that."""
    shutil.copy("/bin/true", kept / "true")
    shutil.copy("/bin/false", kept / "false")
    policy = served.policy(
        f"  - {{id: kept, on: exec, paths: ['{kept}/{'*' if named == '*' else 'true'}'], action: hold}}", "programs"
    )
    change = "os.rename('false', 'true')"
    running = agent(served, policy, textwrap.dedent(STARTS).format(change=change), kept / "true", tmp_path / "go")
    first = asked(served)[0]
    (tmp_path / "go").touch()
    wait_for((tmp_path / "go-done").exists, "it to be changed")
    served.agentmon("approve", first["id"])
    again = another(served, first)
    assert again["changed"]
    time.sleep(0.3)
    assert running.poll() is None
    served.agentmon("deny", again["id"])
    status, out = finish(running)
    assert status == 0 if "status -9" in out else "PermissionError" in out, out
    assert "status 0" not in out
    assert "status 1" not in out


@pytest.mark.parametrize("named", ["*", "exactly"])
def test_a_path_that_another_process_changes_starts_nothing_unapproved(
    served: Host, kept: Path, tier: Tier, tmp_path: Path, named: str
) -> None:
    """In memory that both have. Where the call does not restart, the program is found already."""
    for name in ("shown", "other"):
        shutil.copy("/bin/echo", kept / name)
    names = ["*"] if named == "*" else ["shown", "other"]
    policy = served.policy(
        f"  - {{id: kept, on: exec, paths: {[f'{kept}/{name}' for name in names]}, action: hold}}", "paths"
    )
    script = f"""
        import ctypes, mmap, os, time
        libc = ctypes.CDLL(None, use_errno=True)
        shared = mmap.mmap(-1, 4096)
        def write(path):
            shared[:len(path) + 1] = path + b"\\0"
        write(b"{kept}/shown")
        if not os.fork():
            while not os.path.exists("{tmp_path}/go"):
                time.sleep(0.01)
            write(b"{kept}/other")
            os.mkdir("{tmp_path}/go-done")
            os._exit(0)
        path = ctypes.c_char.from_buffer(shared)
        libc.execv(ctypes.byref(path), (ctypes.c_char_p * 3)(b"echo", b"started", None))
        print("errno", ctypes.get_errno())
    """
    running = agent(served, policy, script)
    first = frozen(served) if named == "*" or tier is Tier.LSM else asked(served)[0]
    assert first["object"] == f"{kept}/shown"
    (tmp_path / "go").touch()
    wait_for((tmp_path / "go-done").exists, "the path to be changed")
    assert served.agentmon("approve", first["id"]).returncode == 0
    if tier is Tier.LSM:
        again = another(served, first)
        assert again["object"] == f"{kept}/other"
        assert served.agentmon("deny", again["id"]).returncode == 0
        assert finish(running)[1].startswith("errno 1\n")
    else:
        assert finish(running)[1].startswith("started\n")
    assert approvals(served) == []


# ---- signals

FLOOD = """
    import os, signal, socket, sys, time
    parent = os.getpid()
    if not os.fork():
        while os.getppid() == parent:
            os.kill(parent, signal.SIGCONT)
        os._exit(0)
    for _ in range(2):
        try:
            with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
                s.send(b"hello")
                print("sent", flush=True)
        except OSError as error:
            print(error.errno, flush=True)
"""


def test_a_flood_of_sigcont_changes_nothing(served: Host, sink: Sink) -> None:
    """It comes while the call restarts, and while its process is frozen."""
    policy = served.policy(
        f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}}\n"
        "  - {id: wakes, on: signal, action: allow}",
        "flood",
    )
    running = agent(served, policy, FLOOD, sink.port)
    first = frozen(served)
    time.sleep(0.7)
    assert running.poll() is None
    assert not sink.heard
    assert [question["id"] for question in approvals(served)] == [first["id"]]
    served.agentmon("approve", first["id"])
    again = another(served, first)
    wait_for(lambda: sink.heard, "the connection")
    assert sink.heard == [b"hello"]
    served.agentmon("deny", again["id"])
    status, out = finish(running)
    assert (status, out.startswith("sent\n1\n")) == (0, True), out
    assert sink.heard == [b"hello"]


PARENT = """
    import os, signal, socket, subprocess, sys, time
    signal.signal(signal.SIGCHLD, lambda *_: print("signal", flush=True))
    child = os.fork()
    if not child:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
            s.send(b"hello")
        os._exit(3)
    while not os.WIFEXITED(status := os.waitpid(child, os.WUNTRACED | os.WCONTINUED)[1]):
        print("it stopped", status, flush=True)
    print("status", os.WEXITSTATUS(status))
"""


def test_a_parent_is_told_nothing(served: Host, sink: Sink, to_sink: Path) -> None:
    """Of what makes the call restart: a stop that is undone before it takes effect."""
    running = agent(served, to_sink, PARENT, sink.port)
    question = frozen(served)
    time.sleep(0.7)
    served.agentmon("approve", question["id"])
    status, out = finish(running)
    assert (status, out.partition("agentmon")[0]) == (0, "signal\nstatus 3\n"), out
    assert sink.heard == [b"hello"]
