# SPDX-License-Identifier: Apache-2.0
"""`action: hold`: who may answer, and what this host says that it can hold."""

from __future__ import annotations

import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agentmon.model.operations import Tier
from tests.kernel.test_told import NOBODY, _says
from tests.kernel.test_told import agent as fenced_agent
from tests.support.held import CONNECT, Sink, agent, approvals, asked, finish, frozen
from tests.support.hosts import Host

DAEMON = 1  # another user, who owns no session


def test_a_process_in_a_session_answers_nothing(served: Host, sink: Sink, to_sink: Path) -> None:
    """Of another session, or of the same one under another user; not even for what may not be there."""
    closed = served.policy("  - {id: become, on: setid, action: allow}", "become")
    running = agent(served, to_sink, CONNECT, sink.port)
    question = frozen(served)
    for user in ("root", "nobody"):
        with fenced_agent(served, closed, "--user", user) as fenced:
            for verb, fields in (
                ("approve", {"approval": question["id"]}),
                ("approve", {"approval": question["id"], "scope": "session"}),
                ("deny", {"approval": question["id"]}),
                ("approve", {"approval": "a-999"}),
                ("resume", {"session": question["session"]}),
            ):
                assert '"code":"forbidden"' in _says(fenced, verb, **fields).replace(": ", ":"), (user, verb)
            code, _, err = fenced.does(shlex.join(served.command("approve", question["id"])))
            assert (code, "may not ask for `approve`" in err) == (2, True), err
    assert [q["id"] for q in approvals(served)] == [question["id"]]
    assert not sink.heard
    served.agentmon("deny", question["id"])
    assert finish(running)[1].startswith("1\n")


OTHERS = """
    import os, socket, subprocess, sys
    if not os.fork():
        socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    approval = sys.stdin.readline().strip()
    os.setgroups([]), os.setgid({uid}), os.setuid({uid})
    for verb in ("approve", "deny"):
        done = subprocess.run([*{command!r}, verb, approval], capture_output=True, text=True)
        print(verb, done.returncode, "may not ask" in done.stderr, flush=True)
"""


@pytest.mark.parametrize("uid", [NOBODY, DAEMON])
def test_a_process_of_the_same_session_under_another_user_answers_nothing(served: Host, sink: Sink, uid: int) -> None:
    policy = served.policy(
        f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold}}\n"
        "  - {id: become, on: setid, action: allow}",
        "users",
    )
    script = textwrap.dedent(OTHERS).format(uid=uid, command=served.command())
    running = served.spawn(
        "run", "-p", policy, "--", sys.executable, "-c", script, str(sink.port),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    question = frozen(served)
    assert running.stdin is not None
    running.stdin.write(question["id"] + "\n")
    running.stdin.flush()
    assert running.stdout is not None
    assert [running.stdout.readline() for _ in range(2)] == ["approve 2 True\n", "deny 2 True\n"]
    assert [q["id"] for q in approvals(served)] == [question["id"]]
    assert not sink.heard
    served.agentmon("deny", question["id"])
    finish(running)


def test_the_owner_of_a_session_answers_and_other_users_do_not(served: Host, sink: Sink, to_sink: Path) -> None:
    def by(uid: int, *words: str) -> subprocess.CompletedProcess[str]:
        return served.agentmon(*words, user=uid, group=uid, extra_groups=[])

    script = shlex.quote(textwrap.dedent(CONNECT))
    program = f"exec {shlex.quote(sys.executable)} -c {script} {sink.port}"
    words = ["run", "-p", to_sink, "--user", "nobody", "--", "sh", "-c", program]
    running = served.spawn(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    question = asked(served)[0]
    for verb in ("approve", "deny"):
        refused = by(DAEMON, verb, question["id"])
        assert (refused.returncode, "there is no approval" in refused.stderr) == (1, True), refused.stderr
    assert question["object"] not in by(DAEMON, "approvals").stdout
    assert by(DAEMON, "resume", question["session"]).returncode != 0
    assert [q["id"] for q in approvals(served)] == [question["id"]]
    assert not sink.heard
    assert question["object"] in by(NOBODY, "approvals").stdout
    done = by(NOBODY, "approve", question["id"])
    assert done.returncode == 0, done.stderr
    status, out = finish(running)
    assert (status, out.startswith("sent\n")) == (0, True), out

    running = agent(served, to_sink, CONNECT, sink.port)  # root's
    question = asked(served)[0]
    refused = by(NOBODY, "approve", question["id"])
    assert (refused.returncode, "there is no approval" in refused.stderr) == (1, True), refused.stderr
    served.agentmon("deny", question["id"])
    assert finish(running)[1].startswith("1\n")
    assert sink.heard == [b"hello"]


WAITS = {"exec", "connect", "send"}
NAMED = {"read", "write"}
HELD = WAITS | NAMED | {"create", "delete", "rename", "link", "attr", "unix"}


@pytest.mark.parametrize("command", ["ps", "doctor"])
def test_it_is_said_per_operation_what_waits(served: Host, tier: Tier, command: str) -> None:
    posture = served.json(command)["posture"]
    said = {operation: row["hold"] for operation, row in posture.items() if row["hold"]}
    if tier is Tier.LSM:
        assert said == dict.fromkeys(HELD, "waits")
    else:
        assert {operation for operation, word in said.items() if word == "waits"} == WAITS
        assert {operation for operation, word in said.items() if word == "waits if named exactly"} == NAMED
        assert {operation for operation, word in said.items() if word == "denied"} == HELD - WAITS - NAMED
        assert said.keys() == HELD
    text = served.agentmon(command).stdout
    assert "HOLD" in text
    rows = {line.split()[0]: line for line in text[text.index("HOLD") :].splitlines()[1:] if line.strip()}
    for operation, word in said.items():
        assert word in rows[operation], rows[operation]
