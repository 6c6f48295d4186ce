# SPDX-License-Identifier: Apache-2.0
"""`agentmon approve --always`, before a daemon that the test plays: which file is written, and when not."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.cli import always
from agentmon.cli.main import main
from agentmon.control.protocol import Peer
from agentmon.control.server import Connection
from agentmon.errors import AgentmonError
from agentmon.policy import load
from tests.support.served import Loop

TEXT = """\
policy: p
default: {exec: allow, read: allow, write: deny, create: deny, connect: allow, bind: deny, listen: deny, unix: allow}
rules:
  - {id: out, on: connect, cidrs: [192.0.2.7], action: hold} # ask
"""


class Daemon:
    """One approval waits; what it is told is in ``told``."""

    def __init__(self, policy: str) -> None:
        self.told: list[dict[str, Any]] = []
        self.policy = policy

    def handle(self, _: Connection, __: Peer, verb: str, fields: dict[str, Any]) -> dict[str, Any]:
        if verb == "approvals":
            held = {
                "id": "a-1",
                "session": "s-1",
                "operation": "connect",
                "does": "connect",
                "also_read": False,
                "object": "192.0.2.7:22",
                "rule": "out",
            }
            where = {"workspace": "/w", "home": "/home/me", "user": "me", "policy_file": self.policy}
            return {"ok": True, "questions": [], "approvals": [held | where]}
        self.told.append({"verb": verb, **fields})
        done = {"approval": "a-1", "session": "s-1", "answer": "approved", "operation": "connect", "does": "connect"}
        return {"ok": True, **done, "object": "192.0.2.7:22", "scope": fields.get("scope"), "for_s": None}


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text(TEXT)
    path.chmod(0o640)
    return path


@pytest.fixture
def daemon(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    config = tmp_path / "agentmon.toml"
    config.write_text(f'[daemon]\nsocket = "{tmp_path}/control.sock"\n')
    monkeypatch.setenv("AGENTMON_CONFIG", str(config))
    monkeypatch.setenv("SUDO_USER", "ann")
    daemon = Daemon(str(policy))
    loop = Loop(tmp_path / "control.sock", daemon.handle)
    yield daemon
    loop.stop()


def test_the_policy_of_the_session_is_edited_and_the_session_approved(
    daemon: Daemon, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["approve", "a-1", "--always", "--yes"]) == 0
    shown = capsys.readouterr().out
    assert f"--- {policy}" in shown
    assert (
        '+  - {id: out, on: connect, cidrs: [192.0.2.7], action: hold, except: {cidrs: ["192.0.2.7:22"]}} # ask'
        in shown
    )
    assert f"to {policy}" in shown
    assert daemon.told == [{"verb": "approve", "approval": "a-1", "scope": "session"}]
    assert policy.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in policy.parent.glob(".*")] == []
    rules = {rule.id: rule for rule in load.load(str(policy)).rules}
    (name,) = rules.keys() - {"out"}
    assert name.startswith("approved-20")
    if os.geteuid() == 0:
        assert rules[name].reason.startswith("approved by ann on 20")


def test_as_json_it_is_one_object(daemon: Daemon, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["approve", "a-1", "--always", "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["file"], told["answer"]) == (str(policy), "approved")
    assert told["diff"].startswith("--- ")
    assert told["rule"] in policy.read_text()


def test_where_no_edit_is_found_nothing_is_written_or_approved(
    daemon: Daemon, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TEXT.replace("cidrs: [192.0.2.7]", "hosts: [h.example]")
    policy.write_text(text)
    assert main(["approve", "a-1", "--always", "--yes"]) == 1
    assert "names `hosts`" in capsys.readouterr().err
    assert policy.read_text() == text
    assert daemon.told == []


@pytest.mark.parametrize("kind", ["link", "directory", "gone", "invalid"])
def test_what_is_no_plain_policy_is_left_alone(
    daemon: Daemon, policy: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = policy.with_name("other.yaml")
    policy.rename(other)
    if kind == "link":
        policy.symlink_to(other)
    elif kind == "directory":
        policy.mkdir()
    elif kind == "invalid":
        policy.write_text("policy: p\nrulez: []\n")
    assert main(["approve", "a-1", "--always", "--yes"]) == (3 if kind == "invalid" else 1)
    assert str(policy) in capsys.readouterr().err
    assert other.read_text() == TEXT
    assert daemon.told == []


def test_what_changed_since_it_was_shown_is_not_overwritten(policy: Path) -> None:
    with pytest.raises(AgentmonError, match="changed meanwhile"):
        always.replace(str(policy), "other", "new")
    with pytest.raises(AgentmonError, match="changed meanwhile"):
        always.replace(str(policy), None, "new")
    assert policy.read_text() == TEXT
    assert [p.name for p in policy.parent.glob(".*")] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="root may write what others own")
def test_a_file_keeps_its_owner(policy: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(policy, nobody.pw_uid, nobody.pw_gid)
    always.replace(str(policy), TEXT, "new")
    status = policy.stat()
    assert (policy.read_text(), status.st_uid, status.st_mode & 0o777) == ("new", nobody.pw_uid, 0o640)


def test_an_installed_policy_gets_a_local_file_and_then_keeps_it(
    daemon: Daemon, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "OPERATOR_DIRECTORY", tmp_path)
    account = pwd.getpwuid(os.geteuid())
    home = pwd.struct_passwd((*account[:5], str(tmp_path / "home"), account[6]))
    monkeypatch.setattr("agentmon.cli.always.pwd.getpwuid", lambda _: home)
    daemon.policy = "p"
    assert main(["approve", "a-1", "--always", "--yes"]) == 0
    local = tmp_path / "home/.config/agentmon/policies/p-local.yaml"
    shown = capsys.readouterr().out
    assert f"--- /dev/null\n+++ {local}" in shown
    assert f"use it with -p {local}" in shown
    assert policy.read_text() == TEXT
    assert {rule.id for rule in load.load(str(local)).rules} > {"out"}
    # the same again: it holds there no longer
    assert main(["approve", "a-1", "--always", "--yes"]) == 1
    assert "no rule `out` that holds this (any more)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1d", 86400), ("31d", 31 * 86400)]
)
def test_it_is_approved_for_so_long(daemon: Daemon, text: str, seconds: float) -> None:
    assert main(["approve", "a-1", "--for", text]) == 0
    assert daemon.told == [{"verb": "approve", "approval": "a-1", "scope": "session", "for_s": seconds}]


@pytest.mark.parametrize("text", ["10", "m", "-5m", "0s", "nanm", "infh", "32d", "10 minutes"])
def test_what_is_no_span_of_time_is_said(daemon: Daemon, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["approve", "a-1", f"--for={text}"])
    assert ended.value.code == 64
    assert f"`{text}` is no span of time: write 90s, 10m, 2h or 1d" in capsys.readouterr().err
    assert daemon.told == []


def test_an_answer_says_what_it_was_for(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["approve", "a-1"]) == 0
    assert main(["deny", "a-1"]) == 0
    assert capsys.readouterr().out == (
        "a-1 of s-1 approved once: connect 192.0.2.7:22\na-1 of s-1 denied: connect 192.0.2.7:22\n"
    )
