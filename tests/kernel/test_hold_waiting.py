# SPDX-License-Identifier: Apache-2.0
"""`action: hold`: kinds of calls that wait, and of programs that make them; each goes on as if nothing had been."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support.held import Sink, agent, agent_in_wait, agree, approvals, asked, finish, go, received
from tests.support.hosts import PATIENCE_S, Host, wait_for

SEND = """
    import socket, sys
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        print("sent", s.sendto(b"hello", ("127.0.0.1", int(sys.argv[1]))))
    except OSError as error:
        print("errno", error.errno)
"""


@pytest.mark.parametrize(
    ("answer", "said", "arrives"), [("approve", "sent 5\n", [b"hello"]), ("deny", "errno 1\n", [])]
)
def test_a_message_waits(served: Host, ear: socket.socket, answer: str, said: str, arrives: list[bytes]) -> None:
    port = ear.getsockname()[1]
    rule = f"  - {{id: out, on: [connect, send], cidrs: [127.0.0.1/32], ports: [{port}], action: hold}}"
    running = agent(served, served.policy(rule, "udp"), SEND, port)
    question = asked(served)[0]
    assert (question["operation"], question["object"]) == ("send", f"127.0.0.1:{port}")
    time.sleep(0.7)  # longer than the kernel waits for whoever is not frozen
    assert running.poll() is None
    assert received(ear) == []
    assert served.agentmon(answer, question["id"]).returncode == 0
    status, out = finish(running)
    assert (status, out.startswith(said)) == (0, True), out
    assert received(ear) == arrives
    assert approvals(served) == []


CONNECTS = {
    "without blocking": "s.setblocking(False)\nprint(s.connect_ex(to) in (0, errno.EINPROGRESS))",
    "with a time-out": "s.settimeout(0.2)\nprint(s.connect_ex(to) == 0)",  # of the wait for the other side
    "a time-out of the socket": (
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('qq', 0, 200_000))\n"
        "print(s.connect_ex(to) == 0)"
    ),
}


@pytest.mark.parametrize("how", CONNECTS)
def test_a_connection_that_would_not_block_waits_too(served: Host, sink: Sink, to_sink: Path, how: str) -> None:
    script = (
        "import errno, select, socket, struct, sys\n"
        f"s, to = socket.socket(), ('127.0.0.1', int(sys.argv[1]))\n{CONNECTS[how]}\n"
        "print(len(select.select([], [s], [])[1]), s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))\n"
        "s.send(b'hello')\n"
    )
    running = agent(served, to_sink, script, sink.port)
    question = asked(served)[0]
    time.sleep(0.7)
    assert running.poll() is None
    assert not sink.heard
    served.agentmon("approve", question["id"])
    status, out = finish(running)
    assert (status, out.startswith("True\n1 0\n")) == (0, True), out
    wait_for(lambda: sink.heard, "the connection")
    assert sink.heard == [b"hello"]


@pytest.mark.parametrize("how", CONNECTS)
def test_one_that_is_denied_fails(served: Host, sink: Sink, to_sink: Path, how: str) -> None:
    script = (
        "import errno, socket, struct, sys\n"
        "s, to = socket.socket(), ('127.0.0.1', int(sys.argv[1]))\n"
        f"{CONNECTS[how].rpartition('print')[0]}\nprint(s.connect_ex(to))\n"
    )
    running = agent(served, to_sink, script, sink.port)
    served.agentmon("deny", asked(served)[0]["id"])
    assert finish(running)[1].startswith("1\n")
    assert not sink.heard


# ---- several threads

THREADS = """
    import socket, sys, threading
    all_here = threading.Barrier(3)
    def connect(port):
        all_here.wait()
        try:
            with socket.create_connection(("127.0.0.1", int(port))) as s:
                s.send(b"hello")
                print(port, "sent\\n", end="")
        except OSError as error:
            print(port, f"{error.errno}\\n", end="")
    sys.stdin.readline()
    threads = [threading.Thread(target=connect, args=[port]) for port in sys.argv[1:]]
    [t.start() for t in threads]
    all_here.wait()
    print("all here", flush=True)
    [t.join() for t in threads]
"""


@pytest.mark.parametrize("last", ["approve", "deny"])
def test_threads_that_want_different_things_are_two_questions(patient: Host, sink: Sink, last: str) -> None:
    """A process goes on when all that it asked is answered. The daemon is stopped until both have asked."""
    other = Sink()
    ports = sorted([sink.port, other.port])
    rule = f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: {ports}, action: hold}}"
    daemon = patient.start()
    running = agent_in_wait(patient, patient.policy(rule, "two"), THREADS, sink.port, other.port)
    daemon.send_signal(signal.SIGSTOP)
    go(running)
    assert running.stdout is not None
    assert running.stdout.readline() == "all here\n"
    time.sleep(1)
    daemon.send_signal(signal.SIGCONT)
    by_object = {question["object"]: question["id"] for question in asked(patient, 2)}
    assert sorted(by_object) == [f"127.0.0.1:{port}" for port in ports]
    assert patient.agentmon("approve", by_object[f"127.0.0.1:{sink.port}"]).returncode == 0
    time.sleep(0.7)
    assert running.poll() is None
    assert not sink.heard
    assert not other.heard
    assert [question["object"] for question in approvals(patient)] == [f"127.0.0.1:{other.port}"]
    assert patient.agentmon(last, by_object[f"127.0.0.1:{other.port}"]).returncode == 0
    out, _ = running.communicate(timeout=PATIENCE_S)
    ended = "sent" if last == "approve" else "1"
    assert sorted(out.splitlines()) == sorted([f"{sink.port} sent", f"{other.port} {ended}"])
    wait_for(lambda: sink.heard, "the connection")
    assert (sink.heard, other.heard) == ([b"hello"], [b"hello"] if last == "approve" else [])
    assert approvals(patient) == []
    other.server.close()


BESIDE = """
    import os, socket, sys, threading, time
    counted, over = [0, 0], threading.Event()
    def count(which):
        while not over.is_set():
            counted[which] += 1
            time.sleep(0.001)
    threads = [threading.Thread(target=count, args=[which]) for which in (0, 1)]
    [t.start() for t in threads]
"""


def test_a_thread_connects_while_others_run(served: Host, sink: Sink, to_sink: Path) -> None:
    """They wait with it, and go on with it."""
    script = f"""{BESIDE}
    def connect():
        with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
            s.send(b"hello")
    one = threading.Thread(target=connect)
    one.start()
    one.join()
    before = list(counted)
    while any(now < then + 10 for now, then in zip(counted, before)):
        time.sleep(0.01)
    over.set()
    print("all went on")
    """
    running = agent(served, to_sink, script, sink.port)
    assert agree(served, running) == [f"connect 127.0.0.1:{sink.port}"]
    status, out = finish(running)
    assert (status, out.startswith("all went on\n")) == (0, True), out
    assert sink.heard == [b"hello"]


@pytest.mark.parametrize("answer", ["approve", "deny"])
@pytest.mark.parametrize("named", ["echo", "*"])
def test_a_thread_starts_a_program_while_others_run(served: Host, kept: Path, named: str, answer: str) -> None:
    """Approved, it takes the process's place, of which no other thread is left."""
    shutil.copy("/bin/echo", kept / "echo")
    policy = served.policy(f"  - {{id: kept, on: exec, paths: ['{kept}/{named}'], action: hold}}", "exec")
    script = f"""{BESIDE}
    def start():
        try:
            os.execv("{kept}/echo", ["echo", "hello"])
        finally:
            over.set()
    threading.Thread(target=start).start()
    """
    running = agent(served, policy, script)
    question = asked(served)[0]
    assert (question["operation"], question["object"]) == ("exec", f"{kept}/echo")
    time.sleep(0.7)
    assert running.poll() is None
    assert served.agentmon(answer, question["id"]).returncode == 0
    status, out = finish(running)
    if answer == "approve":
        assert (status, out.startswith("hello\n")) == (0, True), out
    else:
        # refused, or killed where it had taken the process's place already
        assert "hello" not in out
        assert "PermissionError" in out if status == 0 else status == 128 + 9, out
    assert approvals(served) == []


# ---- for how long


def test_an_approval_for_a_while_is_asked_for_again_afterwards(served: Host, sink: Sink, to_sink: Path) -> None:
    script = """
        import socket, sys, time
        while True:
            with socket.socket() as s:
                if error := s.connect_ex(("127.0.0.1", int(sys.argv[1]))):
                    print(error)
                    break
                s.send(b"hello")
            time.sleep(0.01)
    """
    running = agent(served, to_sink, script, sink.port)
    first = asked(served)[0]
    before_ns = time.time_ns()
    done = served.agentmon("approve", first["id"], "--for", "2s")
    assert "approved for 2 s" in done.stdout, done.stderr
    wait_for(lambda: [q for q in approvals(served) if q["id"] != first["id"]], "to be asked again")
    (again,) = approvals(served)
    assert again["asked_ns"] - before_ns >= 2_000_000_000
    assert not again["changed"]
    assert len(sink.heard) > 1
    served.agentmon("deny", again["id"])
    assert finish(running)[1].startswith("1\n")
