# SPDX-License-Identifier: Apache-2.0
"""`approvals`, `approve` and `deny`, as whoever has to decide meets them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

from tests.support.held import CONNECT, Sink, agent, approvals, asked, finish
from tests.support.hosts import PATIENCE_S, Host, wait_for


def rule(sink: Sink) -> str:
    return f"  - {{id: out, on: connect, cidrs: [127.0.0.1/32], ports: [{sink.port}], action: hold, reason: ask first}}"


def test_who_decides_sees_what_the_session_did_before(served: Host, sink: Sink, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    script = f"open({str(secret)!r}).read()\n" + CONNECT.replace("\n    ", "\n")
    running = agent(served, served.policy(rule(sink)), script, sink.port)
    (question,) = asked(served)
    assert ("read", str(secret)) in [(deed["operation"], deed["object"]) for deed in question["recent"]]
    assert not any(deed["object"].startswith("/usr/lib") for deed in question["recent"])
    said = served.agentmon("approvals").stdout
    assert f"read {secret} by python" in said
    assert "for the session means: connect of 127.0.0.1:" in said
    assert question["command"][0] in said
    served.agentmon("deny", question["id"])
    finish(running)


def test_an_answer_says_what_it_was_for_and_who_gave_it_is_recorded(served: Host, sink: Sink) -> None:
    running = agent(served, served.policy(rule(sink)), CONNECT, sink.port)
    (question,) = asked(served)
    done = served.agentmon("approve", question["id"], "--for", "10m")
    place = f"127.0.0.1:{sink.port}"
    assert done.stdout == f"{question['id']} of {question['session']} approved for 600 s: connect {place}\n"
    assert "sent" in finish(running)[1]
    lines = served.agentmon("audit", "log", "--session", question["session"], "--json").stdout.splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "approval"]
    assert [record["verdict"] for record in records] == ["hold", "allow"]
    assert records[-1]["detail"] == f"{question['id']} approved by root (uid 0) for 600 s"


def test_an_answer_that_comes_too_late_is_told_why(served: Host, sink: Sink) -> None:
    running = agent(served, served.policy(rule(sink)), CONNECT, sink.port)
    (question,) = asked(served)
    assert served.json("deny", question["id"], "--reason", "no")["answer"] == "denied"
    late = served.agentmon("approve", question["id"])
    assert late.returncode == 1
    assert f"`{question['id']}` is answered already: denied by root (uid 0): no, " in late.stderr
    finish(running)

    running = agent(served, served.policy(rule(sink)), CONNECT, sink.port)
    (question,) = asked(served)
    running.kill()
    with contextlib.suppress(ProcessLookupError):  # it may end with `run`
        os.kill(question["pid"], signal.SIGKILL)
    wait_for(lambda: not approvals(served), "the question to end")
    gone = served.agentmon("approve", question["id"], "--json")
    assert json.loads(gone.stdout)["state"] == "ended"
    assert "who asked has ended" in gone.stderr
    running.communicate()

    unknown = served.agentmon("deny", "a-999", "--json")
    assert (unknown.returncode, json.loads(unknown.stdout)["state"]) == (1, "unknown")
    assert "there is no approval `a-999`; `agentmon approvals` lists what waits" in unknown.stderr


def test_what_nobody_answers_is_denied_when_the_configuration_says(tmp_path: Path, sink: Sink) -> None:
    with Host(tmp_path) as host:
        with host.config.open("a") as config:
            config.write("expire_s = 3\n")  # of [hold]
        host.start()
        running = agent(host, host.policy(rule(sink)), CONNECT, sink.port)
        (question,) = asked(host)
        assert "1\n" in finish(running)[1]
        late = host.agentmon("approve", question["id"])
        assert f"`{question['id']}` was denied: nobody answered in 3 s; if the agent tries again" in late.stderr


def test_a_session_may_ask_as_much_as_the_configuration_says(tmp_path: Path, sink: Sink) -> None:
    with Host(tmp_path) as host:
        with host.config.open("a") as config:
            config.write("asked_per_minute = 1\n")  # of [hold]
        host.start()
        running = agent(host, host.policy(rule(sink)), CONNECT + CONNECT, sink.port)
        (question,) = asked(host)
        host.agentmon("approve", question["id"])
        said = finish(running)[1]
        assert "sent\n1\n" in said
        assert "asked for more than 1 approval in a minute" in said


def test_a_bot_hears_of_each_once(served: Host, sink: Sink) -> None:
    bot = served.spawn("approvals", "--follow", "--json", stdout=subprocess.PIPE)
    assert bot.stdout is not None
    try:
        seen = []
        for _ in range(2):
            running = agent(served, served.policy(rule(sink)), CONNECT, sink.port)
            seen.append(json.loads(bot.stdout.readline())["id"])
            served.agentmon("approve", seen[-1])
            assert "sent" in finish(running)[1]
        assert seen[0] != seen[1]
    finally:
        bot.kill()
        bot.communicate()


def test_a_bot_waits_until_something_is_held(served: Host, sink: Sink) -> None:
    bot = served.spawn("approvals", "--wait", "--json", stdout=subprocess.PIPE)
    running = agent(served, served.policy(rule(sink)), CONNECT, sink.port)
    out, _ = bot.communicate(timeout=PATIENCE_S)
    assert bot.returncode == 0
    served.agentmon("approve", json.loads(out)["id"])
    assert "sent" in finish(running)[1]
