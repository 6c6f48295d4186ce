# SPDX-License-Identifier: Apache-2.0
"""`action: hold`, when the kernel's tables take no more: no approval that they do not have counts, and nobody hangs."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmon.errors import KernelError
from agentmon.kernel.answers import ANSWER, APPROVAL, KEY, UNTIL
from agentmon.kernel.libbpf import Map
from agentmon.kernel.tables import open_maps
from agentmon.model.operations import Action
from tests.support.held import CONNECT, Sink, agent, approvals, asked, finish, frozen
from tests.support.hosts import Host, wait_for

#: More than any table has room for.
MANY = 100_000
#: What nobody asks for: of no process, and of no session.
NOBODY = {
    "answers": lambda n: (KEY.pack(1, 0, 0, n), ANSWER.pack(Action.DENY, 0, 0, 0, 0)),
    "approvals": lambda n: (APPROVAL.pack(1 << 63, n), UNTIL.pack(0)),
}


def fill(table: Map, what: Callable[[int], tuple[bytes, bytes]], keys: list[bytes]) -> None:
    for number in range(MANY):
        key, value = what(number)
        table.update(key, value)
        keys.append(key)


@contextlib.contextmanager
def full(host: Host, name: str) -> Iterator[None]:
    """The kernel's own table of this daemon has no room."""
    (build,) = host.pins.iterdir()
    table = open_maps(build / "maps", (name,))[name]
    keys: list[bytes] = []
    try:
        with contextlib.suppress(KernelError):
            fill(table, NOBODY[name], keys)
        assert len(keys) < MANY
        yield
    finally:
        for key in keys:
            table.delete(key)
        table.close()


def test_what_cannot_be_written_down_is_denied_and_does_not_stay_frozen(
    served: Host, sink: Sink, to_sink: Path
) -> None:
    with full(served, "answers"):
        status, said = finish(agent(served, to_sink, CONNECT, sink.port))
    assert (status, said.startswith("1\n")) == (0, True), said
    assert "it cannot be held: the kernel's table of answers: " in said
    assert "it is full" in said
    assert approvals(served) == []
    assert sink.heard == []


@pytest.mark.tier("react")
def test_a_program_that_cannot_be_written_down_does_not_run(served: Host, kept: Path, asks: Path) -> None:
    shutil.copy("/bin/touch", kept / "touch")
    with full(served, "answers"):
        script = f"import subprocess\nprint(subprocess.run(['{kept}/touch', '{kept}/mark']).returncode)"
        said = finish(agent(served, asks, script))[1]
    assert said.startswith("-9\n"), said
    assert "it cannot be held: the kernel's table of answers: " in said
    assert approvals(served) == []
    assert not (kept / "mark").exists()


@pytest.mark.parametrize("answer", ["approve", "deny"])
def test_who_is_frozen_can_be_answered_when_no_more_has_room(
    served: Host, sink: Sink, to_sink: Path, answer: str
) -> None:
    running = agent(served, to_sink, CONNECT, sink.port)
    question = frozen(served)
    with full(served, "answers"):
        done = served.agentmon(answer, question["id"])
        assert done.returncode == 0, done.stderr
        assert finish(running)[1].startswith("sent\n" if answer == "approve" else "1\n")
    wait_for(lambda: sink.heard == ([b"hello"] if answer == "approve" else []), "the connection")


@pytest.mark.parametrize("span", [["--session"], ["--for", "10m"]])
def test_an_approval_of_a_session_that_has_no_room_is_none(
    served: Host, sink: Sink, to_sink: Path, span: list[str]
) -> None:
    running = agent(served, to_sink, CONNECT + CONNECT, sink.port)
    question = frozen(served)
    with full(served, "approvals"):
        done = served.agentmon("approve", question["id"], *span)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"`{question['id']}` is not approved, and waits on: the kernel's table of approvals: " in done.stderr
        assert f"`agentmon approve {question['id']}` (once) takes no room there" in done.stderr
        time.sleep(0.7)  # longer than the kernel waits for whoever has no answer
        assert running.poll() is None
        assert sink.heard == []
        assert approvals(served) == [question]
        assert served.agentmon("approve", question["id"]).returncode == 0
        wait_for(lambda: [q["id"] for q in approvals(served)] not in ([], [question["id"]]), "the second to be asked")
    assert served.agentmon("approve", approvals(served)[0]["id"], *span).returncode == 0
    assert finish(running)[1].startswith("sent\nsent\n")


#: What waits in an open, and what it says once that goes on.
OPENS = {
    "read": ("print(open('file').read())", "as shown"),
    "exec": ("print(subprocess.run(['./echo', 'as', 'shown'], capture_output=True, text=True).stdout)", "as shown"),
}


@pytest.fixture
def exactly(served: Host, kept: Path) -> Path:
    shutil.copy("/bin/echo", kept / "echo")
    return served.policy(
        f"  - {{id: file, on: read, paths: ['{kept}/file'], action: hold}}\n"
        f"  - {{id: echo, on: exec, paths: ['{kept}/echo'], action: hold}}",
        "exactly",
    )


@pytest.mark.tier("react")
@pytest.mark.parametrize("last", ["approve", "deny"])
@pytest.mark.parametrize("what", OPENS)
def test_an_approval_of_an_open_that_has_no_room_is_none(
    served: Host, kept: Path, exactly: Path, what: str, last: str
) -> None:
    body, says = OPENS[what]
    running = agent(served, exactly, f"import os, subprocess\nos.chdir('{kept}')\n{body}")
    question = asked(served)[0]
    with full(served, "answers"):
        done = served.agentmon("approve", question["id"])
        assert (done.returncode, done.stdout) == (1, "")
        assert f"`{question['id']}` is not approved, and waits on: the kernel's table of answers: " in done.stderr
        assert "approve it again" in done.stderr
        time.sleep(0.3)
        assert running.poll() is None
        assert approvals(served) == [question]
        if last == "deny":  # takes no room
            assert served.agentmon("deny", question["id"]).returncode == 0
            assert "PermissionError" in finish(running)[1]
    if last == "approve":
        assert served.agentmon("approve", question["id"]).returncode == 0
        assert finish(running)[1].startswith(says)
    assert approvals(served) == []


@pytest.mark.tier("react")
def test_an_open_that_a_session_was_allowed_fails_and_does_not_hang_when_there_is_no_room(
    served: Host, kept: Path, exactly: Path
) -> None:
    script = f"""
        import os, time
        print(open("{kept}/file").read(), flush=True)
        while not os.path.exists("{kept}/go"):
            time.sleep(0.01)
        print(open("{kept}/file").read(), flush=True)
    """
    running = agent(served, exactly, script)
    assert served.agentmon("approve", asked(served)[0]["id"], "--session").returncode == 0
    assert running.stdout is not None
    assert running.stdout.readline() == "as shown\n"
    with full(served, "answers"):
        (kept / "go").touch()
        said = finish(running)[1]
    assert "PermissionError" in said
    assert "it was approved, and cannot go on: the kernel's table of answers: " in said
