# SPDX-License-Identifier: Apache-2.0
"""What an agent is told of its own session, what it asks, and that it learns and changes nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.host import process
from agentmon.model.operations import Tier
from tests.support.held import asked
from tests.support.hosts import PATIENCE_S, Host, wait_for

NOBODY = 65534

#: Agents do as they are told: a line in is a command of a shell; a line out is what came of it, as JSON.
AGENT = """
import json, subprocess, sys
for line in sys.stdin:
    done = subprocess.run(json.loads(line), shell=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)
"""


class Agent:
    """Something that runs in a session of its own, under `agentmon run`, and does what a test says."""

    def __init__(self, host: Host, policy: str | Path, *options: str) -> None:
        workspace = host.directory / "workspace"
        workspace.mkdir(exist_ok=True)
        workspace.chmod(0o777)
        before = self._sessions(host)
        self.host = host
        words = ["run", "--quiet", "-p", policy, "--workspace", workspace, *options, "--", sys.executable, "-c", AGENT]
        self._run = host.spawn(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.does("true")[0] == 0
        (self.session,) = self._sessions(host) - before

    @staticmethod
    def _sessions(host: Host) -> set[str]:
        with contextlib.suppress(Exception), host.client() as client:
            return {s["session"] for s in client.call("ps")["sessions"]}
        return set()

    def does(self, command: str) -> tuple[int, str, str]:
        """Status, output and errors of a command of the agent's."""
        assert self._run.stdin is not None
        assert self._run.stdout is not None
        self._run.stdin.write(json.dumps(command) + "\n")
        self._run.stdin.flush()
        code, out, err = json.loads(self._run.stdout.readline())
        return code, out, err

    def agentmon(self, *words: str, given: str = "") -> tuple[int, str, str]:
        """The command line, as the agent types it: without --config, for the agent does not know it."""
        command = shlex.join([sys.executable, "-m", "agentmon.cli.main", *words])
        return self.does(f"printf %s {shlex.quote(given)} | {command}" if given else command)

    def end(self) -> None:
        assert self._run.stdin is not None
        self._run.stdin.close()
        assert self._run.wait(PATIENCE_S) == 0
        assert self._run.stdout is not None
        self._run.stdout.close()


@contextlib.contextmanager
def agent(host: Host, policy: str | Path, *options: str) -> Iterator[Agent]:
    found = Agent(host, policy, *options)
    try:
        yield found
    finally:
        found.end()


@pytest.fixture
def policy(served: Host) -> Path:
    """Unix sockets are denied by default, and so is what is outside of the workspace."""
    path = served.directory / "closed.yaml"
    path.write_text(
        "policy: closed\n"
        "default: {exec: allow, read: allow, write: deny, create: deny, connect: deny, unix: deny,"
        " setid: allow, signal: allow}\n"
        "rules:\n"
        "  - {id: own, on: [write, create], paths: ['{workspace}/**', '/dev/null'], action: allow, reason: its work}\n"
        f"  - {{id: secret, on: read, paths: ['{served.directory}/secret*'], action: deny, reason: people's}}\n"
    )
    for name in ("secret", "secret2"):
        (served.directory / name).write_text("secret\n")
    return path


@pytest.fixture
def outside() -> Iterator[Path]:
    """A file to be made where even `coding-agent` lets nobody. In the react tier it is there, and empty."""
    path = Path(f"/etc/agentmon-test-{os.getpid()}")
    yield path
    path.unlink(missing_ok=True)


def objects(text: str) -> list[str]:
    return [json.loads(line)["object"] for line in text.splitlines()]


@pytest.mark.parametrize("pack", ["coding-agent", "closed"])
def test_an_agent_is_told_what_was_blocked_and_what_is_allowed_instead(
    served: Host, policy: Path, pack: str, tier: Tier, outside: Path
) -> None:
    with agent(served, policy if pack == "closed" else pack) as fenced:
        code, out, err = fenced.agentmon("why")
        assert (code, out) == (0, f"nothing was blocked in session {fenced.session} (policy {pack})\n"), err
        fenced.does(f"sh -c ': > {outside}'")
        code, out, err = fenced.agentmon("why")
        assert code == 0, err
        first, instead, *_ = out.splitlines()
        how = "blocked" if tier is Tier.LSM else "blocked, and the process killed"
        assert first == f"create {outside} by sh: {how} by the policy's default"
        assert instead.startswith(f"  allowed: create {served.directory}/workspace/**")
        code, out, _ = fenced.agentmon("why", "--json")
        denial = json.loads(out)
        assert (denial["session"], denial["operation"], denial["rule"]) == (fenced.session, "create", "")
        assert denial["instead"][0].startswith(f"create {served.directory}/workspace/**")


def test_a_rule_gives_its_reason(served: Host, policy: Path) -> None:
    with agent(served, policy) as fenced:
        for _ in range(3):
            fenced.does(f"cat {served.directory}/secret")
        _, out, _ = fenced.agentmon("why")
        assert "(3 times) by rule secret: people's\n  allowed: read: whatever no rule denies\n" in out


def test_an_agent_sees_its_own_session_only(served: Host, policy: Path) -> None:
    """Root and the same user, too: these are both."""
    with agent(served, policy) as one, agent(served, policy) as other:
        one.does(f"cat {served.directory}/secret")
        other.does(f"cat {served.directory}/secret2")
        _, id_, _ = one.agentmon("ask", "am I one?")
        assert objects(one.agentmon("why", "--json")[1]) == [f"{served.directory}/secret"]
        assert objects(other.agentmon("why", "--json")[1]) == [f"{served.directory}/secret2"]
        assert other.agentmon("ask")[:2] == (0, "no question was asked\n")
        code, out, err = other.agentmon("why", one.session)
        assert (code, out) == (1, "")
        assert "there is no session" in err
        assert "asked no question" in _says(other, "asked", question=id_.strip())
        listed = json.loads(_says(other, "ps"))
        assert [s["session"] for s in listed["sessions"]] == [other.session]
        assert "counters" not in listed
        assert json.loads(_says(other, "summary", session=one.session))["code"] == "failed"
        assert json.loads(_says(other, "summary", session=other.session))["blocked"] == 1


#: Says argv[2] to the socket argv[1] as process argv[3] (0: itself), and prints the answer.
SPEAK = """
import array, os, socket, struct, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    who = struct.pack("3i", int(sys.argv[3]) or os.getpid(), os.getuid(), os.getgid())
    s.sendmsg([sys.argv[2].encode() + b"\\n"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])
    s.settimeout(60)
    print(s.recv(1 << 20).decode())
"""


def _says(agent: Agent, verb: str, as_pid: int = 0, **fields: object) -> str:
    message = json.dumps({"v": 1, "id": 1, "verb": verb, **fields})
    words = [sys.executable, "-c", SPEAK, str(agent.host.socket), message, str(as_pid)]
    code, out, err = agent.does(shlex.join(words))
    assert code == 0, err
    return out


def test_root_in_a_session_cannot_pass_for_another_session(served: Host, policy: Path) -> None:
    with agent(served, policy) as one, agent(served, policy) as other:
        one.does(f"cat {served.directory}/secret")
        with served.client() as client:
            (found,) = [s for s in client.call("ps")["sessions"] if s["session"] == one.session]
        pid = found["processes"][0]["pid"]
        assert process.stat(pid)
        for verb, fields in (("why", {}), ("asked", {}), ("bookmark", {"name": "x"}), ("ask", {"text": "may I?"})):
            reply = json.loads(_says(other, verb, pid, **fields))
            assert (reply["ok"], reply["code"]) == (False, "forbidden")
            assert json.loads(_says(other, verb, **fields))["session"] == other.session  # as itself
        assert json.loads(_says(other, "ps", pid))["sessions"] == []


def test_the_owner_answers_and_the_agent_reads_it(served: Host, policy: Path) -> None:
    with agent(served, policy) as fenced:
        code, out, err = fenced.agentmon("ask", "may I push\nto main?\x1b[2J")
        assert code == 0, err
        id_ = out.strip()
        assert fenced.agentmon("ask", "may I push\nto main?\x1b[2J")[1].strip() == id_  # not filed twice
        assert fenced.agentmon("ask")[1] == f"{id_}: may I push\n  to main?\\x1b[2J\n  no answer yet\n"
        shown = served.agentmon("approvals").stdout
        assert id_ in shown
        assert "may I push to main?\\x1b[2J" in shown
        (line,) = served.agentmon("approvals", "--json").stdout.splitlines()
        assert json.loads(line)["id"] == id_
        assert served.json("answer", id_, "yes,\nonce")["by_uid"] == 0
        assert served.agentmon("approvals").stdout == "nothing is held, nothing is asked\n"
        assert "yes, once" in served.agentmon("approvals", "--all").stdout
        assert fenced.agentmon("ask")[1].endswith("  yes,\n  once\n")
        logged = served.agentmon("audit", "log", "--session", fenced.session).stdout
        assert f"session asked {id_}" in logged
        assert f"session answered {id_} yes,\\nonce by uid 0" in logged
    assert served.agentmon("answer", id_, "too late").returncode == 1


def test_an_agent_waits_for_an_answer(served: Host, policy: Path) -> None:
    with agent(served, policy) as fenced:
        answer = served.directory / "workspace" / "answer"
        command = shlex.join([sys.executable, "-m", "agentmon.cli.main", "ask", "--wait", "which branch?"])
        fenced.does(f"({command} > {answer}.new; mv {answer}.new {answer}) > /dev/null 2>&1 &")

        def question() -> list[dict[str, Any]]:
            with served.client() as client:
                return list(client.call("approvals")["questions"])

        wait_for(question, "the question")
        served.json("answer", question()[0]["question"], "devel")
        wait_for(answer.exists, "the answer to arrive")
        assert answer.read_text() == "devel\n"
        code, out, err = fenced.agentmon("ask", "--wait", "--timeout", "0.1", "and then?")
        assert (code, out) == (1, "")
        assert "it stays asked" in err


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_an_agent_answers_nothing_and_changes_nothing(served: Host, policy: Path, user: str) -> None:
    with agent(served, policy, "--user", user) as fenced, agent(served, policy) as other:
        id_ = other.agentmon("ask", "may I?")[1].strip()
        own = fenced.agentmon("ask", "and I?")[1].strip()
        session = other.session
        forbidden: list[tuple[str, dict[str, object]]] = [
            ("answer", {"question": id_, "text": "yes"}),
            ("answer", {"question": own, "text": "yes"}),
            ("approvals", {}),
            ("approve", {"approval": "a-1"}),
            ("approve", {"approval": "a-1", "scope": "session"}),
            ("deny", {"approval": "a-1"}),
            ("resume", {"session": session}),
            ("resume", {"session": fenced.session}),
            ("release", {"session": session}),
            ("release", {"session": fenced.session}),
            ("risk", {"session": fenced.session, "level": "normal"}),
            ("reload", {"session": fenced.session, "policy": {"name": "base"}}),
            ("enroll", {"pid": 2, "policy": {"name": "base"}, "workspace": "/"}),
            ("watch", {}),
            ("doctor", {}),
        ]
        for verb, fields in forbidden:
            assert json.loads(_says(fenced, verb, **fields))["code"] == "forbidden", verb
            if user == "root":
                assert json.loads(_says(fenced, verb, 1, **fields))["code"] == "forbidden", verb
        with served.client() as client:
            found = {q["question"]: q["answer"] for q in client.call("approvals", all=True)["questions"]}
        assert found == {id_: None, own: None}


def test_questions_are_limited(served: Host, policy: Path) -> None:
    with agent(served, policy) as fenced:
        replies = [json.loads(_says(fenced, "ask", text=f"{i}?")) for i in range(6)]
        assert [reply["ok"] for reply in replies] == [True] * 4 + [False] * 2
        assert "too many questions" in replies[-1]["error"]
        assert not json.loads(_says(fenced, "ask", text="x" * 2001))["ok"]
        with served.client() as client:
            assert len(client.call("approvals")["questions"]) == 4


def test_another_user_neither_sees_nor_answers(served: Host, policy: Path) -> None:
    with agent(served, policy) as fenced:
        id_ = fenced.agentmon("ask", "may I?")[1].strip()

        def asks(*words: str) -> subprocess.CompletedProcess[str]:
            return served.agentmon(*words, user=NOBODY, group=NOBODY, extra_groups=[])

        assert asks("approvals").stdout == "nothing is held, nothing is asked\n"
        assert "there is no question" in asks("answer", id_, "yes").stderr
        assert "there is no session" in asks("why", fenced.session).stderr
        assert asks("why").returncode == 64
        assert fenced.agentmon("ask")[1].endswith("no answer yet\n")
    with agent(served, policy, "--user", "nobody") as fenced:
        id_ = fenced.agentmon("ask", "may I?")[1].strip()
        assert id_ in asks("approvals").stdout
        assert asks("answer", id_, "yes").returncode == 0
        assert fenced.agentmon("ask")[1].endswith("  yes\n")


def test_claude_code_is_told_what_its_call_was_denied(served: Host, policy: Path) -> None:
    def hook(name: str, call: str) -> str:
        event = {"hook_event_name": name, "tool_name": "Bash", "tool_use_id": call}
        code, out, err = fenced.agentmon("hook", "claude-code", given=json.dumps(event))
        assert (code, err) == (0, "")
        return json.loads(out)["hookSpecificOutput"]["additionalContext"] if out else ""

    with agent(served, policy) as fenced:
        fenced.does(f"cat {served.directory}/secret")
        assert hook("PreToolUse", "toolu_1") == ""
        assert hook("PostToolUse", "toolu_1") == ""  # what was before is not of this call
        assert hook("PreToolUse", "toolu_2") == ""
        fenced.does(f"cat {served.directory}/secret2")
        told = hook("PostToolUseFailure", "toolu_2")
        assert f"read {served.directory}/secret2 by cat" in told
        assert "rule secret: people's" in told
        assert f"{served.directory}/secret by" not in told
        assert "secret by cat" in hook("PostToolUse", "toolu_3")  # whose beginning nobody told: the last seconds
        id_ = fenced.agentmon("ask", "may I?")[1].strip()
        served.json("answer", id_, "no")
        assert hook("PreToolUse", "toolu_4") == ""
        assert hook("PostToolUse", "toolu_4") == f"The owner answered (agentmon ask):\n{id_}: may I?\n  no"
        assert hook("PostToolUse", "toolu_4") == ""  # once


def test_mcp_tools_answer_inside_a_fence(served: Host, policy: Path) -> None:
    def request(number: int, method: str, **params: object) -> str:
        return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + "\n"

    with agent(served, policy) as fenced:
        fenced.does(f"cat {served.directory}/secret")
        given = (
            request(1, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={})
            + json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}) + "\n"
            + request(2, "tools/call", name="why", arguments={})
            + request(3, "tools/call", name="ask", arguments={"question": "may I?"})
        )  # fmt: skip
        code, out, err = fenced.agentmon("mcp", given=given)
        assert (code, err) == (0, "")
        hello, why, ask = map(json.loads, out.splitlines())
        assert hello["result"]["protocolVersion"] == "2025-06-18"
        assert "by rule secret: people's" in why["result"]["content"][0]["text"]
        with served.client() as client:
            (question,) = client.call("approvals")["questions"]
        assert question["question"] in ask["result"]["content"][0]["text"]
        assert (question["session"], question["text"]) == (fenced.session, "may I?")


def test_the_owner_follows_a_session_from_outside(served: Host, policy: Path) -> None:
    with agent(served, policy) as fenced:
        fenced.does(f"cat {served.directory}/secret")
        with served.spawn("why", "--follow", fenced.session, stdout=subprocess.PIPE) as following:
            assert following.stdout is not None
            assert f"read {served.directory}/secret " in following.stdout.readline()
            following.stdout.readline()  # what is allowed instead
            fenced.does(f"cat {served.directory}/secret2")
            assert f"read {served.directory}/secret2 " in following.stdout.readline()
            following.terminate()
            following.wait(PATIENCE_S)


def test_the_next_daemon_knows_what_was_blocked_and_asked(tmp_path: Path) -> None:
    with Host(tmp_path) as host:
        daemon = host.start()
        secret = host.directory / "secret"
        secret.write_text("secret")
        policy = host.policy(
            f"""  - {{id: secret, on: read, paths: ['{secret}'], action: deny, reason: people's}}
  - {{id: asks, on: connect, ports: 9, action: hold}}"""
        )
        with agent(host, policy) as fenced:
            fenced.does(f"cat {secret}")
            fenced.does("python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 9))' >&- 2>&- &")
            assert host.agentmon("deny", asked(host)[0]["id"], "--reason", "not today").returncode == 0
            id_ = fenced.agentmon("ask", "may I?")[1].strip()
            for what in (str(secret), "deny connect 127.0.0.1:9"):
                wait_for(lambda what=what: what in host.agentmon("audit", "log", "--blocked").stdout, "the record")  # type: ignore[misc]
            os.kill(daemon.pid, signal.SIGKILL)
            daemon.wait()
            host.start()
            code, out, err = fenced.agentmon("why")
            assert code == 0, err
            assert f"read {secret} by cat" in out
            assert "rule secret: people's" in out
            assert "connect 127.0.0.1:9 by python3: blocked by rule asks: denied by root (uid 0): not today" in out
            assert out.count("127.0.0.1:9") == 1  # the denied approval is no other operation
            assert fenced.agentmon("ask")[1] == f"{id_}: may I?\n  no answer yet\n"
            host.json("answer", id_, "yes")
            assert fenced.agentmon("ask")[1].endswith("  yes\n")


def test_a_session_of_its_own_daemon_finds_it(tmp_path: Path) -> None:
    """Without a daemon `run` brings its own, wherever that answers; the agent is told where."""
    with Host(tmp_path) as host:
        secret = host.directory / "secret"
        secret.touch()
        policy = host.policy(f"  - {{id: secret, on: read, paths: ['{secret}'], action: deny}}")
        words = [sys.executable, "-m", "agentmon.cli.main", "why"]
        script = f"echo $AGENTMON_SOCKET; cat {secret}; {shlex.join(words)}"
        done = host.agentmon("run", "-p", policy, "--", "sh", "-c", script)
        socket, told = done.stdout.splitlines()[:2]
        assert socket == str(host.socket)
        assert told.startswith(f"read {secret} by cat: blocked"), done.stderr
