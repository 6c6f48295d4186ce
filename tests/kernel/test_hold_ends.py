# SPDX-License-Identifier: Apache-2.0
"""`action: hold`: signals that end who waits, and daemons that do not come; nothing happens then."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.model.operations import Tier
from tests.kernel.test_hold import kill_with_warden
from tests.support.held import CONNECT, Sink, agent, agent_in_wait, approvals, finish, frozen, go, stands_still
from tests.support.hosts import PATIENCE_S, Host, wait_for
from tests.support.starts import first
from tests.support.terminal import Terminal

# ---- signals

ENDS = {
    "SIGTERM": (signal.SIGTERM, 128 + signal.SIGTERM),
    "SIGHUP": (signal.SIGHUP, 128 + signal.SIGHUP),
    "SIGQUIT": (signal.SIGQUIT, 128 + signal.SIGQUIT),
    "SIGKILL": (signal.SIGKILL, 128 + signal.SIGKILL),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_signal_without_a_handler_ends_who_is_held(served: Host, sink: Sink, to_sink: Path, name: str) -> None:
    number, status = ENDS[name]
    script = f"import resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n{CONNECT.strip()}"
    if number != signal.SIGKILL:  # who runs the tests may ignore it, as nohup(1) does
        script = f"import signal\nsignal.signal({int(number)}, signal.SIG_DFL)\n{script}"
    running = agent(served, to_sink, script.replace("\n    ", "\n"), sink.port)
    question = frozen(served)
    os.kill(question["pid"], number)
    assert finish(running)[0] == status
    wait_for(lambda: not approvals(served), "the question to end")
    late = served.agentmon("approve", question["id"])
    assert late.returncode == 1
    assert not sink.heard


def test_a_handler_runs_once_the_call_was_given_up(served: Host, sink: Sink, to_sink: Path) -> None:
    """Of what does not ask to end (SIGUSR1), it runs when there is an answer."""
    script = """
        import signal, socket, sys
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, _: print(signal.Signals(number).name, flush=True))
        for _ in range(2):
            try:
                socket.create_connection(("127.0.0.1", int(sys.argv[1]))).send(b"hello")
                print("sent", flush=True)
            except PermissionError:
                print("refused", flush=True)
    """
    running = agent(served, to_sink, script, sink.port)
    question = frozen(served)
    os.kill(question["pid"], signal.SIGUSR1)
    time.sleep(1.5)  # longer than the daemon takes to see who is interrupted
    assert [q["id"] for q in approvals(served)] == [question["id"]]
    assert not sink.heard
    assert served.agentmon("approve", question["id"]).returncode == 0
    wait_for(lambda: [q for q in approvals(served) if q["id"] != question["id"]], "the second question")
    (second,) = approvals(served)
    wait_for(lambda: stands_still(second["pid"]), "it to be frozen")
    os.kill(second["pid"], signal.SIGTERM)
    status, out = finish(running)
    said = out.splitlines()[:4]
    assert (status, sorted(said[:2]), sorted(said[2:])) == (0, ["SIGUSR1", "sent"], ["SIGTERM", "refused"]), out
    assert "interrupted by SIGTERM while it was held" in out
    assert sink.heard == [b"hello"]


HANDLERS = {
    "default": ("signal.SIG_DFL", "", 128 + signal.SIGINT),
    "handler": ("lambda *_: print('heard')", "heard", 7),
    "ignored": ("signal.SIG_IGN", "", None),
}


@pytest.mark.parametrize("how", HANDLERS)
def test_interrupted_at_a_terminal(served: Host, sink: Sink, to_sink: Path, how: str) -> None:
    """`^C` is for `agentmon run` and what it runs; who ignores it goes on waiting."""
    handler, said, status = HANDLERS[how]
    script = (
        "import signal, socket, sys\n"
        f"signal.signal(signal.SIGINT, {handler})\n"
        "sys.exit(7 if socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1]))) else 0)\n"
    )
    words = served.command("run", "-p", to_sink, "--", sys.executable, "-c", script, str(sink.port))
    # a terminal that is opened by the leader of a session is its controlling one
    with Terminal(["sh", "-c", 'exec "$@" < "$(tty)"', "sh", *words], served.environment()) as terminal:
        question = frozen(served)
        terminal.type("\x03")
        terminal.until("^C")
        if status is None:
            time.sleep(1.5)
            assert [q["id"] for q in approvals(served)] == [question["id"]]
            assert not sink.heard
            served.agentmon("approve", question["id"])
        assert terminal.ended() == (status or 0), terminal.text
        assert said in terminal.text
    wait_for(lambda: not approvals(served), "the question to end")
    wait_for(lambda: len(sink.heard) == (status is None), "the connection")


# ---- daemons


def test_what_the_daemon_does_not_come_to_freeze_is_denied(tmp_path: Path, sink: Sink) -> None:
    """It is stopped, and the kernel waits for it no longer than `park_ms`."""
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}}")
        daemon = host.start()
        running = agent_in_wait(host, policy, f"\n    import sys\n    sys.stdin.readline(){CONNECT * 2}", sink.port)
        daemon.send_signal(signal.SIGSTOP)
        go(running)
        assert running.stdout is not None
        assert running.stdout.readline() == "1\n"
        assert running.stdout.readline() == "1\n"
        assert not sink.heard
        daemon.send_signal(signal.SIGCONT)
        assert running.wait(PATIENCE_S) == 0
        assert approvals(host) == []
        assert not sink.heard
        running.communicate()


def test_a_program_that_is_frozen_never_runs_when_no_daemon_is_there_any_more(tmp_path: Path) -> None:
    """By what systemd starts: it kills the warden along with the daemon."""
    program, mark = first(tmp_path / "first"), tmp_path / "mark"
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: kept, on: exec, paths: ['{program}*'], action: hold}}")
        daemon = host.start()
        body = f"""
            import subprocess
            try:
                print(subprocess.run(["{program}", "{mark}"]).returncode, flush=True)
            except PermissionError:
                print("refused", flush=True)
        """
        running = agent(host, policy, body)
        question = frozen(host)
        kill_with_warden(daemon)
        assert stands_still(question["pid"])
        done = host.agentmon("daemon", "--let-go")
        assert done.stdout == "1 held action(s) denied; nobody is frozen\n", done.stderr
        assert running.stdout is not None
        assert running.stdout.readline() in ("-9\n", "refused\n")  # what was started already is killed
        assert not mark.exists()
        running.kill()
        running.communicate()


# ---- what cannot wait

LSM_ONLY = [pytest.param(request, marks=pytest.mark.tier("lsm")) for request in ("openat", "unix")]


@pytest.mark.parametrize("polled", [(), ("sqpoll",)], ids=["entered", "sqpoll"])
@pytest.mark.parametrize("request_", ["connect", "send", *LSM_ONLY])
def test_a_ring_has_done_nothing_that_nobody_approved(
    served: Host, kept: Path, tier: Tier, program: Callable[[str], Path], request_: str, polled: tuple[str, ...]
) -> None:
    """It is denied; in the react tier it may be asked for, and fails whatever the answer."""
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear,
    ):
        listener.bind(str(kept / "socket"))
        listener.listen()
        ear.bind(("127.0.0.1", 0))
        ear.setblocking(False)
        what = {"openat": kept / "file", "unix": kept / "socket"}.get(request_, str(ear.getsockname()[1]))
        words: list[str | Path] = [program("ring"), request_, what, *polled]
        if subprocess.run(words, capture_output=True, check=False).stdout.startswith(b"no ring"):
            pytest.skip("not required: no io_uring on this host, for everybody")
        if isinstance(what, str):
            wait_for(lambda: ear.recv(10) == b"data", "what is sent without a fence")
            rule = f"{{id: out, on: [connect, send], cidrs: ['127.0.0.1:{what}'], action: hold}}"
        else:
            rule = f"{{id: files, on: [read, unix], paths: ['{kept}/**'], action: hold}}"
        policy = served.policy(f"  - {rule}\n  - {{id: rings, on: io_uring, action: allow}}", "rings")
        # `agentmon run` takes rings away, in the react tier
        words = ["sh", "-c", 'read line; "$@"', "sh", *words]
        started = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        served.json("enroll", str(started.pid), "-p", policy)
        go(started)
        while tier is Tier.REACT and started.poll() is None:
            for question in approvals(served):
                served.agentmon("deny", question["id"])
        out = started.communicate(timeout=PATIENCE_S)[0]
        assert out == "errno 1\n" if tier is Tier.LSM else out.startswith("errno "), out
        assert approvals(served) == []
        with pytest.raises(BlockingIOError):
            ear.recv(10)
