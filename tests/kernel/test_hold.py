# SPDX-License-Identifier: Apache-2.0
"""`action: hold`: what is held has no effect until somebody answers, and then goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.host import process
from tests.support.held import CONNECT, Sink, agent, approvals, asked, finish, frozen, stands_still
from tests.support.hosts import PATIENCE_S, Host, wait_for
from tests.support.terminal import Terminal


def test_a_connection_waits_and_goes_on_once_approved(served: Host, sink: Sink, to_sink: Path) -> None:
    running = agent(served, to_sink, CONNECT, sink.port)
    question = asked(served)[0]
    assert (question["operation"], question["object"]) == ("connect", f"127.0.0.1:{sink.port}")
    assert (question["rule"], question["reason"]) == ("out", "ask first")
    assert question["command"][0] == sys.executable
    assert [json.loads(line) for line in served.agentmon("approvals", "--json").stdout.splitlines()] == [
        {"v": 1} | question
    ]
    time.sleep(0.7)  # longer than the kernel waits for whoever is not frozen
    assert running.poll() is None
    assert not sink.heard
    assert served.agentmon("approve", question["id"]).returncode == 0
    status, said = finish(running)
    assert (status, "sent" in said) == (0, True), said
    wait_for(lambda: sink.heard, "the connection")
    assert sink.heard == [b"hello"]
    assert approvals(served) == []


def test_a_connection_that_is_denied_has_not_happened(served: Host, sink: Sink, to_sink: Path) -> None:
    running = agent(served, to_sink, CONNECT, sink.port)
    question = asked(served)[0]
    assert served.agentmon("deny", question["id"], "--reason", "not today").returncode == 0
    status, said = finish(running)
    assert status == 0
    assert "1\n" in said  # EPERM
    assert "not today" in said  # in the summary of `run`
    assert not sink.heard


def test_an_approval_is_for_once(served: Host, sink: Sink, to_sink: Path) -> None:
    running = agent(served, to_sink, CONNECT + textwrap.indent(CONNECT, ""), sink.port)
    first = asked(served)[0]
    served.agentmon("approve", first["id"])
    wait_for(lambda: [q for q in approvals(served) if q["id"] != first["id"]], "the second question")
    assert sink.heard == [b"hello"]
    served.agentmon("deny", approvals(served)[0]["id"])
    assert "sent\n1\n" in finish(running)[1]


def test_an_approval_for_once_is_not_renewed_by_another_question(served: Host) -> None:
    sink = Sink("0.0.0.0")
    policy = served.policy(f"  - {{id: out, on: connect, cidrs: [127.0.0.0/8], ports: [{sink.port}], action: hold}}")
    script = """
        import socket, sys
        for last in (1, 2, 1, 2, 1):
            s = socket.socket()
            print(last, s.connect_ex((f"127.0.0.{last}", int(sys.argv[1]))), flush=True)
            s.close()
    """
    running = agent(served, policy, script, sink.port)
    seen: list[str] = []
    for answer in ("approve", "approve", "approve", "deny", "deny"):
        wait_for(lambda: approvals(served) and approvals(served)[0]["id"] not in seen, f"question {len(seen) + 1}")
        seen.append(approvals(served)[0]["id"])
        served.agentmon(answer, seen[-1])
    status, out = finish(running)
    assert (status, out.split()[:10]) == (0, ["1", "0", "2", "0", "1", "0", "2", "1", "1", "1"]), out


def test_an_approval_for_the_session_is_not_asked_for_again(served: Host, sink: Sink, to_sink: Path) -> None:
    running = agent(served, to_sink, CONNECT + CONNECT, sink.port)
    served.agentmon("approve", asked(served)[0]["id"], "--session")
    assert "sent\nsent\n" in finish(running)[1]


def test_it_is_approved_in_the_live_view(served: Host, sink: Sink, to_sink: Path) -> None:
    with Terminal(served.command("top"), served.environment() | {"TERM": "xterm"}, size=(160, 40)) as top:
        top.until("enforcing")
        running = agent(served, to_sink, CONNECT, sink.port)
        top.until(f"127.0.0.1:{sink.port}")
        top.until("APPROVALS  1 pending")
        top.type("\t\t")  # sessions, stream, approvals
        wait_for(lambda: (top.listen(0.7), top.type("a"), not approvals(served))[2], "the key to be taken")
        assert "sent" in finish(running)[1]
        top.type("q")
        assert top.ended() == 0


def test_sigkill_ends_what_is_held(served: Host, sink: Sink, to_sink: Path) -> None:
    running = agent(served, to_sink, CONNECT, sink.port)
    question = asked(served)[0]
    os.kill(question["pid"], signal.SIGKILL)
    assert finish(running)[0] == 128 + signal.SIGKILL
    wait_for(lambda: not approvals(served), "the question to end")
    assert not sink.heard


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGALRM"])
def test_who_is_interrupted_waits_no_more(served: Host, sink: Sink, to_sink: Path, name: str) -> None:
    """A handler, as Python has one, or an alarm, runs only once it goes on."""
    number = getattr(signal, name)
    script = """
        import signal, socket, sys
        signal.signal(int(sys.argv[2]), signal.default_int_handler)  # tests in the background ignore it
        try:
            socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        except KeyboardInterrupt:
            print("gave up")
    """
    running = agent(served, to_sink, script, sink.port, int(number))
    question = asked(served)[0]
    # before it is frozen, its handler takes the signal, and the call restarts
    wait_for(lambda: stands_still(question["pid"]), "it to be frozen")
    os.kill(question["pid"], number)
    status, said = finish(running)
    assert (status, said.splitlines()[0]) == (0, "gave up"), said
    assert f"interrupted by {name} while it was held" in said
    assert approvals(served) == []
    assert "gave up" in served.agentmon("approve", question["id"]).stderr
    assert not sink.heard


def test_the_agent_cannot_answer(served: Host, sink: Sink, to_sink: Path) -> None:
    """Not even as root, and not by a child that is not held itself."""
    script = f"""
        import os, socket, subprocess, sys
        if os.fork() == 0:
            socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        sys.stdin.readline()
        for words in (["approvals"], ["approve", sys.argv[2]], ["deny", sys.argv[2]], ["release", "--all"]):
            done = subprocess.run({served.command()!r} + words, capture_output=True, text=True)
            print(words[0], done.returncode, "may not ask" in done.stderr, flush=True)
    """
    number = len(json.loads(served.agentmon("ps", "--json").stdout)["sessions"])
    assert number == 0
    running = served.spawn(
        "run", "-p", to_sink, "--", sys.executable, "-c", textwrap.dedent(script), str(sink.port), "a-1",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    question = asked(served)[0]
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.write("go\n")
    running.stdin.flush()
    for verb in ("approvals", "approve", "deny", "release"):
        assert running.stdout.readline() == f"{verb} 2 True\n"
    assert not sink.heard
    assert approvals(served)[0]["id"] == question["id"]
    served.agentmon("deny", question["id"])
    finish(running)


def test_what_waits_outlives_the_daemon(tmp_path: Path, sink: Sink) -> None:
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}}")
        daemon = host.start()
        running = agent(host, policy, CONNECT, sink.port)
        question = frozen(host)
        daemon.kill()
        daemon.wait()
        time.sleep(1)
        assert not sink.heard
        host.start()
        assert [q["id"] for q in asked(host)] == [question["id"]]
        host.agentmon("approve", question["id"])
        wait_for(lambda: sink.heard, "the connection")
        running.kill()
        running.communicate()


def test_what_is_held_when_its_session_is_released_was_not_approved(served: Host, to_sink: Path, sink: Sink) -> None:
    script = """
        import socket, sys
        to = ("127.0.0.1", int(sys.argv[1]))
        try:
            socket.create_connection(to)
        except PermissionError:
            print("denied", flush=True)
        sys.stdin.readline()
        socket.create_connection(to).sendall(b"not fenced any more")
    """
    running = served.spawn(
        "run", "-p", to_sink, "--", sys.executable, "-c", textwrap.dedent(script), str(sink.port),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    frozen(served)
    wait_for(lambda: served.agentmon("release", "--all").returncode == 0, "the release")  # it may have to be said again
    assert running.stdout is not None
    assert running.stdout.readline() == "denied\n"
    assert not sink.heard
    assert not approvals(served)
    running.communicate("go\n", timeout=PATIENCE_S)
    wait_for(lambda: sink.heard == [b"not fenced any more"], "the connection")


def test_a_session_is_not_released_while_a_call_has_yet_to_hear_that_it_is_denied(
    served: Host, to_sink: Path, sink: Sink
) -> None:
    running = agent(served, to_sink, CONNECT, sink.port)
    question = frozen(served)
    os.kill(question["pid"], signal.SIGSTOP)
    for _ in range(2):
        refused = served.agentmon("release", "--all")
        assert (refused.returncode, "release it again" in refused.stderr) == (1, True), refused.stderr
    os.kill(question["pid"], signal.SIGCONT)
    wait_for(lambda: served.agentmon("release", "--all").returncode == 0, "the release")
    assert "1\n" in finish(running)[1]
    assert not sink.heard


def test_no_two_approvals_have_one_id_whichever_daemon_asks(tmp_path: Path, sink: Sink) -> None:
    """Else an answer to what was shown before would let go on something else."""
    ids = []
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}}")
        for end in (subprocess.Popen.kill, subprocess.Popen.terminate, subprocess.Popen.kill):
            daemon = host.start()
            running = agent(host, policy, CONNECT, sink.port)
            ids += [q["id"] for q in asked(host)]
            host.agentmon("approve", ids[-1])
            assert "sent" in finish(running)[1]
            end(daemon)
            daemon.wait()
    assert len(set(ids)) == 3, ids


@pytest.mark.parametrize("end", [subprocess.Popen.kill, subprocess.Popen.terminate])
def test_nobody_stays_frozen_when_no_daemon_comes_any_more(
    tmp_path: Path, sink: Sink, end: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    """A daemon that is stopped denies; when one is killed, its warden does."""
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}}")
        daemon = host.start()
        running = agent(host, policy, CONNECT, sink.port)
        frozen(host)
        end(daemon)
        daemon.wait()
        assert running.stdout is not None
        assert running.stdout.readline() == "1\n"
        assert not sink.heard
        running.kill()
        running.communicate()


def test_a_warden_that_was_killed_is_there_again_for_the_next_that_is_held(tmp_path: Path, sink: Sink) -> None:
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}}")
        daemon = host.start()
        running = agent(host, policy, CONNECT, sink.port)
        question = asked(host)[0]
        for pid in wardens(daemon.pid):
            os.kill(pid, signal.SIGKILL)
        host.agentmon("approve", question["id"])
        finish(running)
        running = agent(host, policy, CONNECT, sink.port)
        asked(host)
        wait_for(lambda: wardens(daemon.pid), "another warden")
        daemon.kill()
        daemon.wait()
        assert "1\n" in finish(running)[1]


def test_who_is_frozen_is_denied_when_no_daemon_is_there_any_more(tmp_path: Path, sink: Sink) -> None:
    """By what systemd starts: it kills the warden along with the daemon."""
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}}")
        daemon = host.start()
        running = agent(host, policy, CONNECT, sink.port)
        question = frozen(host)
        refused = host.agentmon("daemon", "--let-go")
        assert (refused.returncode, "a daemon runs" in refused.stderr) == (1, True), refused.stderr
        kill_with_warden(daemon)

        waiting = host.spawn("daemon", "--let-go", "--wait", stdout=subprocess.PIPE)
        daemon = host.start()
        assert waiting.communicate(timeout=PATIENCE_S)[0] == "the next daemon came\n"
        assert [q["id"] for q in asked(host)] == [question["id"]]

        kill_with_warden(daemon)
        assert host.agentmon("daemon", "--let-go", "--wait").stdout == "1 held action(s) denied; nobody is frozen\n"
        assert running.stdout is not None
        assert running.stdout.readline() == "1\n"
        assert not sink.heard
        running.kill()
        running.communicate()


def kill_with_warden(daemon: subprocess.Popen[bytes]) -> None:
    for pid in [*wardens(daemon.pid), daemon.pid]:
        os.kill(pid, signal.SIGKILL)
    daemon.wait()


def wardens(daemon: int) -> list[int]:
    """Those of this daemon that live."""
    found = [pid for pid in process.descendants(daemon) if "agentmon.daemon.warden" in process.command_line(pid)]
    return [pid for pid in found if process.stat(pid).state != "Z"]


def test_a_damaged_list_of_what_is_held_denies_and_is_told(tmp_path: Path, sink: Sink) -> None:
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}}")
        daemon = host.start()
        running = agent(host, policy, CONNECT, sink.port)
        frozen(host)
        daemon.kill()
        daemon.wait()
        (host.state / "held.json").write_text('[{"id": "a-1", "of": "another version"}]')
        host.start()
        assert running.stdout is not None
        assert running.stdout.readline() == "1\n"
        assert not sink.heard
        assert "held.json" in host.log()
        assert "what an earlier daemon held is denied" in host.log()
        running.kill()
        running.communicate()


def test_an_approval_for_always_is_written_to_the_policy(served: Host, sink: Sink) -> None:
    policy = served.policy(
        f"  # ours\n  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}} # ask",
        "always",
    )
    running = agent(served, policy, CONNECT + CONNECT, sink.port)
    question = asked(served)[0]
    before = policy.read_text()
    with Terminal(served.command("approve", question["id"], "--always"), served.environment()) as no:
        no.until("[y/N]")
        no.type("n\n")
        assert no.ended() == 1
    assert policy.read_text() == before
    assert not sink.heard
    with Terminal(served.command("approve", question["id"], "--always"), served.environment(), size=(200, 40)) as yes:
        yes.until("[y/N]")
        assert f'+    cidrs: ["127.0.0.1:{sink.port}"]' in yes.text
        yes.type("y\n")
        assert yes.ended() == 0
    assert "sent\nsent\n" in finish(running)[1]
    assert "  # ours\n" in policy.read_text()
    assert "} # ask\n" in policy.read_text()
    again = agent(served, policy, CONNECT, sink.port)  # nobody is asked
    assert "sent\n" in finish(again)[1]
    assert approvals(served) == []


def test_a_command_of_the_operator_is_told_once(tmp_path: Path, sink: Sink) -> None:
    with Host(tmp_path) as host:
        told = tmp_path / "told"
        hook = tmp_path / "hook"
        hook.write_text(f"#!/bin/sh\ncat >> {told}\n")
        hook.chmod(0o755)
        with host.config.open("a") as config:
            config.write(f'[notify]\ncommand = ["{hook}"]\n')
        policy = host.policy(f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}}")
        host.start()
        running = agent(host, policy, CONNECT, sink.port)
        question = asked(host)[0]
        wait_for(lambda: told.exists() and told.read_text().endswith("\n"), "the hook")
        host.agentmon("approve", question["id"])
        assert finish(running)[0] == 0
        (line,) = told.read_text().splitlines()
        message = json.loads(line)
        assert (message["event"], message["id"], message["session"]) == ("asked", question["id"], question["session"])
        assert (message["operation"], message["object"]) == ("connect", f"127.0.0.1:{sink.port}")
        assert message["command"].startswith(f"{sys.executable} -c")


@pytest.mark.tier("react")
def test_what_this_tier_cannot_hold_is_denied_and_said(served: Host, kept: Path, asks: Path) -> None:
    running = agent(served, asks, f"print(open('{kept}/file').read())")
    status, out = finish(running)
    assert status != 0
    assert "as shown" not in out
    assert "denies it: kept" in out
    assert approvals(served) == []
