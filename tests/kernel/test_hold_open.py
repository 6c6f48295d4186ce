# SPDX-License-Identifier: Apache-2.0
"""`action: hold` on `read` and `write` of exactly named files in the react tier: their opens wait (fanotify)."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.daemon.opens import REMARK_S
from agentmon.kernel.fanotify import Gate, Opening
from tests.support.held import (
    APPENDER,
    MAPPER,
    READERS,
    agent,
    agent_in_wait,
    agree,
    another,
    approvals,
    asked,
    finish,
    go,
    tell,
)
from tests.support.hosts import PATIENCE_S, Host, wait_for

pytestmark = pytest.mark.tier("react")


@pytest.fixture
def kept(served: Host) -> Path:
    directory = served.directory / f"kept-{time.monotonic_ns()}"
    directory.mkdir()
    (directory / "file").write_text("as shown")
    return directory


@pytest.fixture
def asks(served: Host, kept: Path) -> Path:
    rule = f"  - {{id: kept, on: [read, write], paths: ['{kept}/file'], action: hold, reason: ask first}}"
    return served.policy(rule, "open")


OPENS = {
    "read": ("print(open('file').read())", "as shown", ["read file"]),
    "append": ("print(open('file', 'a').write('12345'))", "5", ["write file"]),
    "overwrite": ("print(open('file', 'w').write('12345'))", "5", ["write file"]),
    "both": ("print(open('file', 'r+').read())", "as shown", ["read and write file"]),
    "by another program": ("print(subprocess.run(['cat', 'file'], capture_output=True))", "as shown", ["read file"]),
    "openat2": (
        "print(os.read(libc.syscall(437, -100, b'file', struct.pack('QQQ', 0, 0, 0), 24), 99))",
        "as shown",
        ["read and write file"],  # what for is in memory, where others may change it
    ),
    "without blocking": ("print(os.read(os.open('file', os.O_RDONLY | os.O_NONBLOCK), 99))", "as shown", ["read file"]),
}


@pytest.mark.parametrize("how", OPENS)
def test_an_open_waits_and_goes_on_once_approved(served: Host, kept: Path, asks: Path, how: str) -> None:
    body, said, wanted = OPENS[how]
    script = f"import ctypes, os, struct, subprocess\nlibc = ctypes.CDLL(None)\nos.chdir({str(kept)!r})\n{body}"
    running = agent(served, asks, script)
    question = asked(served)[0]
    assert question["object"] == f"{kept}/file"
    assert (question["rule"], question["reason"]) == ("kept", "ask first")
    time.sleep(0.7)
    assert running.poll() is None
    assert (kept / "file").read_text() == "as shown"  # others do not wait, and nothing has happened
    assert served.agentmon("approve", question["id"]).returncode == 0
    seen = [f"{question['does']} {os.path.basename(question['object'])}", *agree(served, running)]
    status, out = finish(running)
    assert (status, said in out) == (0, True), out
    assert seen == wanted


def test_a_32_bit_open_waits_too(served: Host, kept: Path, asks: Path, program: Callable[[str], Path]) -> None:
    running = agent(served, asks, f"import os\nos.execv('{program('open_int80')}', ['x', '{kept}/file'])")
    assert agree(served, running) == ["read file"]
    assert finish(running)[0] == 0


@pytest.mark.parametrize("mode", ["r", "w"])
def test_an_open_that_is_denied_fails_and_has_not_happened(served: Host, kept: Path, asks: Path, mode: str) -> None:
    running = agent(served, asks, f"open('{kept}/file', '{mode}')")
    assert served.agentmon("deny", asked(served)[0]["id"], "--reason", "not today").returncode == 0
    status, said = finish(running)
    assert (status, "PermissionError" in said) == (1, True), said
    assert "not today" in said  # in the summary of `run`
    assert (kept / "file").read_text() == "as shown"


def test_an_approval_is_for_once_or_for_the_session(served: Host, kept: Path, asks: Path) -> None:
    running = agent(served, asks, f"for i in range(4):\n    print(open('{kept}/file').read())")
    first = asked(served)[0]
    served.agentmon("approve", first["id"])
    wait_for(lambda: [q for q in approvals(served) if q["id"] != first["id"]], "the second question")
    served.agentmon("approve", approvals(served)[0]["id"], "--session")
    status, said = finish(running)
    assert (status, said.count("as shown")) == (0, 4), said


def test_who_may_write_for_the_session_is_asked_to_read(served: Host, kept: Path, asks: Path) -> None:
    running = agent(served, asks, APPENDER, kept / "file")
    first = asked(served)[0]
    assert first["does"] == "write"
    served.agentmon("approve", first["id"], "--session")
    again = another(served, first)
    assert again["does"] == "read and write"
    served.agentmon("deny", again["id"])
    status, said = finish(running)
    assert (status, "as shown" in said) == (1, False), said


def test_threads_wait_together_and_are_one_question(served: Host, kept: Path, asks: Path) -> None:
    running = agent(served, asks, READERS, f"{kept}/file")
    wait_for(lambda: [q["waiters"] for q in approvals(served)] == [4], "all to wait for one answer")
    served.agentmon("approve", asked(served)[0]["id"])
    status, said = finish(running)
    assert (status, said.count("as shown")) == (0, 4), said


def test_who_opens_too_much_at_once_is_refused_and_nobody_else_waits(
    served: Host, kept: Path, asks: Path, tmp_path: Path
) -> None:
    script = f"""
        import os, threading
        def read(number):
            try:
                print(open("{kept}/file").read())
            except PermissionError:
                os.mkdir(f"{tmp_path}/{{number}}")
        threads = [threading.Thread(target=read, args=[n]) for n in range(200)]
        [t.start() for t in threads]
        [t.join() for t in threads]
    """
    running = agent(served, asks, script)
    wait_for(lambda: len(list(tmp_path.iterdir())) == 136, "all others to be refused")
    assert [q["waiters"] for q in approvals(served)] == [64]
    assert (kept / "file").read_text() == "as shown"
    served.agentmon("approve", asked(served)[0]["id"])
    status, said = finish(running)
    assert (status, said.count("as shown")) == (0, 64), said
    assert "136x read" in said


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": lambda file: file.write_text("something else"),
    "replaced": lambda file: ((file.parent / "x").write_text("something else"), (file.parent / "x").rename(file)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_while_held_is_asked_again(served: Host, kept: Path, asks: Path, change: str) -> None:
    running = agent(served, asks, f"print(open('{kept}/file').read())")
    first = asked(served)[0]
    CHANGES[change](kept / "file")
    done = served.agentmon("approve", first["id"])
    assert (done.returncode, "changed while it was held" in done.stderr) == (1, True), done.stderr
    (again,) = approvals(served)
    assert (again["changed"], again["id"] != first["id"]) == (True, True)
    served.agentmon("deny", again["id"])
    assert "PermissionError" in finish(running)[1]


def test_a_file_that_was_replaced_is_held_as_well(served: Host, kept: Path, asks: Path) -> None:
    script = f"""
        import sys, time
        sys.stdin.readline()
        time.sleep(3)  # it is looked for each second
        print(open("{kept}/file").read())
    """
    (kept / "other").write_text("another")
    running = agent_in_wait(served, asks, script)
    (kept / "other").rename(kept / "file")
    go(running)
    served.agentmon("approve", asked(served)[0]["id"])
    assert running.communicate(timeout=PATIENCE_S)[0] == "another\n"


def test_what_only_some_programs_wait_for_others_do_not(served: Host, kept: Path) -> None:
    rule = f"  - {{id: kept, on: read, paths: ['{kept}/file'], exe: ['/**/cat'], action: hold}}"
    script = f"import subprocess\nprint(open('{kept}/file').read())\nsubprocess.run(['cat', '{kept}/file'])"
    running = agent(served, served.policy(rule, "some"), script)
    assert agree(served, running) == ["read file"]
    status, said = finish(running)
    assert (status, said.count("as shown")) == (0, 2), said


def test_a_script_is_asked_for_to_be_run_and_to_be_read(served: Host, kept: Path) -> None:
    script = kept / "script"
    script.write_text("#!/bin/sh\necho as shown\n")
    script.chmod(0o755)
    rule = f"  - {{id: kept, on: [exec, read], paths: ['{script}'], action: hold}}"
    running = agent(served, served.policy(rule, "script"), f"import subprocess\nsubprocess.run(['{script}'])")
    assert agree(served, running) == ["exec script", "read script"]
    assert "as shown" in finish(running)[1]


def test_sigkill_ends_what_waits(served: Host, kept: Path, asks: Path) -> None:
    running = agent(served, asks, f"print(open('{kept}/file').read())")
    os.kill(asked(served)[0]["pid"], signal.SIGKILL)
    assert finish(running)[0] == 128 + signal.SIGKILL
    wait_for(lambda: not approvals(served), "the question to end")


def test_who_is_interrupted_waits_no_more(served: Host, kept: Path, asks: Path) -> None:
    script = f"""
        import signal
        signal.signal(signal.SIGINT, lambda *_: print("heard"))
        try:
            open("{kept}/file")
        except PermissionError:
            print("refused")
    """
    running = agent(served, asks, script)
    os.kill(asked(served)[0]["pid"], signal.SIGINT)
    status, said = finish(running)
    assert (status, sorted(said.splitlines()[:2])) == (0, ["heard", "refused"]), said
    assert "interrupted by SIGINT while it was held" in said


def test_what_can_only_be_denied_is_said(served: Host, kept: Path) -> None:
    rules = f"""
  - {{id: exact, on: read, paths: ['{kept}/file'], action: hold}}
  - {{id: many, on: read, paths: ['{kept}/**'], action: hold}}
  - {{id: late, on: read, paths: ['{kept}/other'], action: hold, when: {{risk: high}}}}"""
    running = agent(served, served.policy(rules, "said"), f"print(open('{kept}/none').read())")
    assert "denies it: many, late\n" in finish(running)[1]


# ---- programs


@pytest.fixture
def runs(served: Host, kept: Path) -> Path:
    shutil.copy("/bin/echo", kept / "echo")
    return served.policy(f"  - {{id: kept, on: exec, paths: ['{kept}/echo'], action: hold, reason: ask first}}", "run")


def test_a_program_that_is_named_exactly_waits_unseen_by_its_parent(served: Host, kept: Path, runs: Path) -> None:
    script = f"""
        import os, signal, sys
        signal.signal(signal.SIGCHLD, lambda *_: print("signal", flush=True))
        child = os.posix_spawn("{kept}/echo", ["echo", "hello"], {{}})
        while not os.WIFEXITED(status := os.waitpid(child, os.WUNTRACED | os.WCONTINUED)[1]):
            print("it stopped")
        print("status", status)
    """
    running = agent(served, runs, script)
    question = asked(served)[0]
    assert (question["operation"], question["object"]) == ("exec", f"{kept}/echo")
    time.sleep(0.7)
    served.agentmon("approve", question["id"])
    status, said = finish(running)
    assert (status, said.partition("agentmon")[0]) == (0, "hello\nsignal\nstatus 0\n")
    assert approvals(served) == []


def test_a_program_that_is_named_exactly_is_refused_and_not_killed(served: Host, kept: Path, runs: Path) -> None:
    running = agent(served, runs, f"import os\nos.execv('{kept}/echo', ['echo', 'hello'])")
    served.agentmon("deny", asked(served)[0]["id"], "--reason", "not today")
    status, said = finish(running)
    assert (status, "PermissionError" in said) == (1, True), said
    assert "not today" in said


def test_what_was_refused_is_not_asked_again_at_once(served: Host, kept: Path, runs: Path) -> None:
    """As shells do, which try each directory of PATH."""
    (kept / "bin").symlink_to(".")
    script = f"""
        import os
        for path in ("{kept}/echo", "{kept}/bin/echo"):
            try:
                os.execv(path, ["echo", "hello"])
            except OSError as error:
                print(error.errno, flush=True)
    """
    running = agent(served, runs, script)
    served.agentmon("deny", asked(served)[0]["id"], "--reason", "not today")
    status, said = finish(running)
    assert (status, said.count("1\n1\n"), said.count("not today")) == (0, 1, 1), said
    assert agree(served, agent(served, runs, script)) == ["exec echo"]  # another process is asked for


def test_approved_programs_are_those_that_were_shown(served: Host, kept: Path, runs: Path) -> None:
    script = f"import subprocess\nfor i in range(3):\n    print(subprocess.run(['{kept}/echo', str(i)]).returncode)"
    running = agent(served, runs, script)
    first = asked(served)[0]
    (kept / "x").write_text("another")
    (kept / "x").rename(kept / "echo")
    done = served.agentmon("approve", first["id"])
    assert (done.returncode, "changed while it was held" in done.stderr) == (1, True), done.stderr
    served.agentmon("deny", approvals(served)[0]["id"])
    assert "PermissionError" in finish(running)[1]


@pytest.mark.parametrize("mapped", ["before it is held", "while it is held"])
def test_a_program_that_is_mapped_for_writing_is_not_approved(
    served: Host, kept: Path, runs: Path, mapped: str
) -> None:
    """What is written through a mapping does not change the file's times."""
    with open(kept / "echo", "ab") as file:
        file.write(b"as shown")
    running = agent_in_wait(served, runs, MAPPER, kept / "echo")
    if mapped == "before it is held":
        tell(running, "map", "exec")
        first = asked(served)[0]
    else:
        tell(running, "exec")
        first = asked(served)[0]
        tell(running, "map")
    done = served.agentmon("approve", first["id"])
    assert (done.returncode, "is open for writing" in done.stderr) == (1, True), done.stderr
    tell(running, "write", "unmap")
    done = served.agentmon("approve", first["id"])
    assert (done.returncode, "changed while it was held" in done.stderr) == (1, True), done.stderr
    again = another(served, first)
    assert b"another!" in (kept / "echo").read_bytes()
    served.agentmon("approve", again["id"])
    running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0


def test_what_was_moved_to_an_approved_name_is_asked_for_by_its_own(served: Host, kept: Path) -> None:
    (kept / "other").write_text("not shown")
    rules = f"  - {{id: kept, on: read, paths: ['{kept}/file', '{kept}/other'], action: hold}}"
    script = "import sys\nfor line in sys.stdin:\n    print(open(sys.argv[1]).read(), flush=True)"
    running = agent_in_wait(served, served.policy(rules, "moved"), script, kept / "file")
    go(running)
    served.agentmon("approve", asked(served)[0]["id"], "--session")
    assert running.stdout is not None
    assert running.stdout.readline() == "as shown\n"
    (kept / "other").rename(kept / "file")
    time.sleep(2.5 * REMARK_S)
    go(running)
    question = asked(served)[0]
    assert question["object"] == f"{kept}/other"
    served.agentmon("deny", question["id"])
    assert "not shown" not in running.communicate(timeout=PATIENCE_S)[0]
    assert running.returncode == 1  # PermissionError


# ---- the end of the daemon; of one that is killed, see test_hold_open_next.py


def test_an_open_is_denied_by_a_daemon_that_is_stopped(tmp_path: Path) -> None:
    kept = tmp_path / "file"
    kept.write_text("as shown")
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: kept, on: read, paths: ['{kept}'], action: hold}}")
        daemon = host.start()
        script = f"import subprocess\nprint(subprocess.run(['cat', '{kept}']).returncode, flush=True)"
        running = agent(host, policy, script)
        asked(host)
        daemon.terminate()
        daemon.wait()
        assert running.stdout is not None
        assert running.stdout.readline() == "1\n"
        running.kill()
        running.communicate()


def test_the_next_daemon_holds_opens_too(tmp_path: Path) -> None:
    kept = tmp_path / "file"
    kept.write_text("as shown")
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: kept, on: read, paths: ['{kept}'], action: hold}}")
        daemon = host.start()
        script = f"import sys\nsys.stdin.readline()\nprint(open('{kept}').read(), flush=True)"
        running = agent_in_wait(host, policy, script)
        daemon.kill()
        daemon.wait()
        host.start()
        time.sleep(1.5)
        go(running)
        host.agentmon("approve", asked(host)[0]["id"])
        assert running.stdout is not None
        assert running.stdout.readline() == "as shown\n"
        running.kill()
        running.communicate()


def test_an_answer_that_comes_too_late_is_written_into_no_other_file(tmp_path: Path) -> None:
    gate = Gate()
    number = gate.fd
    gate.close()
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)  # which may well get that number
    os.dup2(other, number)
    gate.answer(Opening(os.dup(other), 1, to_run=False), allow=True)
    for fd in {other, number}:
        os.close(fd)
    assert (tmp_path / "other").read_bytes() == b""
