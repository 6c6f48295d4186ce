# SPDX-License-Identifier: Apache-2.0
"""`action: hold` of what is done to files, which the LSM tier alone can hold: it waits, and goes on unharmed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

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
    frozen,
    tell,
)
from tests.support.hosts import PATIENCE_S, Host, wait_for

pytestmark = pytest.mark.tier("lsm")


ACTIONS = {
    "read": ("print(open('file').read())", "as shown", ["read file"]),
    "overwrite": ("print(open('file', 'w').write('12345'))", "5", ["write file"]),
    "both": ("print(open('file', 'r+').read())", "as shown", ["read and write file"]),
    "create": ("print(open('new', 'x').write('1'))", "1", ["create new"]),
    "mkdir": ("print(os.mkdir('new'))", "None", ["create new"]),
    "delete": ("print(os.unlink('file'))", "None", ["delete file"]),
    "rename": ("print(os.rename('file', 'other'))", "None", ["rename file", "create other"]),
    "link": ("print(os.link('file', 'other'))", "None", ["link file", "create other"]),
    "attr": ("print(os.chmod('file', 0o600))", "None", ["attr file"]),
    "exec": (
        "print(subprocess.run(['./script'], capture_output=True).stdout)",
        "b'as shown\\n'", ["exec script", "read script"],
    ),
    "vfork": (
        "print(os.waitpid(os.posix_spawn('./script', ['x'], {}), 0)[1])",
        "as shown\n0", ["exec script", "read script"],
    ),
    "a socket with a timeout": (
        "s = socket.socket(socket.AF_UNIX); s.settimeout(0.2); print(s.connect('socket'))",
        "None", ["unix socket"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_on_a_file_waits_and_goes_on(served: Host, kept: Path, asks: Path, action: str) -> None:
    body, said, wanted = ACTIONS[action]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(kept / "socket"))
    listener.listen()
    script = f"import os, socket, subprocess\nos.chdir({str(kept)!r})\n{body}"
    running = agent(served, asks, script)
    question = asked(served)[0]
    time.sleep(0.7)
    assert running.poll() is None
    served.agentmon("approve", question["id"])
    seen = [f"{question['does']} {os.path.basename(question['object'])}", *agree(served, running)]
    status, out = finish(running)
    assert (status, out.strip()) == (0, said), out
    assert seen == wanted


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


def test_what_is_denied_has_not_happened(served: Host, kept: Path, asks: Path) -> None:
    running = agent(served, asks, f"import os\nos.unlink('{kept}/file')")
    served.agentmon("deny", asked(served)[0]["id"])
    status, out = finish(running)
    assert status == 1
    assert "PermissionError" in out
    assert (kept / "file").read_text() == "as shown"


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": lambda file: file.write_text("something else"),
    "replaced": lambda file: ((file.parent / "x").write_text("something else"), (file.parent / "x").rename(file)),
    "linked": lambda file: ((file.parent / "x").symlink_to(file.parent / "hidden"), (file.parent / "x").rename(file)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_while_held_is_asked_again(served: Host, kept: Path, asks: Path, change: str) -> None:
    (kept / "hidden").write_text("something else")
    running = agent(served, asks, f"print(open('{kept}/file').read())")
    first = asked(served)[0]
    CHANGES[change](kept / "file")
    served.agentmon("approve", first["id"])
    wait_for(lambda: [q for q in approvals(served) if q["id"] != first["id"]], "to be asked again")
    second = approvals(served)[0]
    assert second["changed"] is True
    served.agentmon("deny", second["id"])
    out = finish(running)[1]
    assert "something else" not in out
    assert "PermissionError" in out


@pytest.mark.parametrize("program", ["echo", "script"])
def test_a_program_that_is_mapped_for_writing_does_not_run(served: Host, kept: Path, program: str) -> None:
    """What is written through a mapping does not change the file's times; but none runs that is open for writing."""
    running = agent_in_wait(served, only_run(served, kept, program), MAPPER, kept / program)
    tell(running, "map", "exec", "write")  # nobody is asked
    out = running.communicate(timeout=PATIENCE_S)[0]
    assert (f"ended with {errno.ETXTBSY}\n" in out, "another!" in out) == (True, False), out


@pytest.mark.parametrize("program", ["echo", "script"])
def test_a_program_that_is_mapped_for_writing_while_held_is_asked_for_again(
    served: Host, kept: Path, program: str
) -> None:
    running = agent_in_wait(served, only_run(served, kept, program), MAPPER, kept / program)
    tell(running, "exec")
    first = frozen(served)
    tell(running, "map")
    done = served.agentmon("approve", first["id"])
    assert (done.returncode, "is open for writing" in done.stderr) == (1, True), done.stderr
    tell(running, "write", "unmap")
    done = served.agentmon("approve", first["id"])
    assert (done.returncode, "changed while it was held" in done.stderr) == (1, True), done.stderr
    served.agentmon("deny", another(served, first)["id"])
    out = running.communicate(timeout=PATIENCE_S)[0]
    assert (f"ended with {errno.EPERM}\n" in out, "another!" in out) == (True, False), out


def only_run(host: Host, kept: Path, program: str) -> Path:
    """A policy that holds the exec of one program of that directory."""
    shutil.copy("/bin/echo", kept / "echo")
    with open(kept / "echo", "ab") as file:
        file.write(b"as shown")
    return host.policy(f"  - {{id: kept, on: exec, paths: ['{kept}/{program}'], action: hold}}", "mapped")


def test_threads_wait_together_and_are_one_question(served: Host, kept: Path, asks: Path) -> None:
    running = agent(served, asks, READERS, f"{kept}/file")
    agree(served, running)
    status, out = finish(running)
    assert (status, out.count("as shown")) == (0, 4)
