# SPDX-License-Identifier: Apache-2.0
"""``agentmon replay``: output, JSON and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmon.audit.store import AuditLog
from agentmon.cli.main import main
from tests.support.recorded import Log

POLICY = """policy: mine
default: {exec: allow, read: allow, write: deny, create: deny, connect: deny}
rules:
  - {id: workspace, on: [write, create], paths: ["{workspace}/**"], action: allow}
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two sessions: one writes below its workspace, the other elsewhere."""
    audit = AuditLog(tmp_path / "audit.db")
    for name, path in (("s-1", "/srv/w/a"), ("s-2", "/etc/\x1b[2Jx")):
        session = Log(name)
        session.did("write", path)
        session.ends()
        audit.append(session.records)
    audit.close()
    (tmp_path / "mine.yaml").write_text(POLICY)
    return audit.path


def replay(log: Path, *words: str) -> int:
    return main(["replay", *words, "-p", str(log.with_name("mine.yaml")), "--file", str(log)])


def test_exit_status_says_whether_anything_would_be_blocked(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(log, "s-1") == 0
    assert capsys.readouterr().out == (
        "s-1 under mine: 1 distinct actions: 0 newly blocked, 0 no longer blocked,"
        " 0 otherwise different, 0 unknown, 1 unchanged\n"
    )
    assert replay(log, "last") == 2
    out = capsys.readouterr().out
    assert "newly blocked" in out
    assert r"/etc/\x1b[2Jx" in out
    assert "\x1b[2J" not in out
    assert replay(log, "all") == 2


def test_the_workspace_may_be_another(log: Path) -> None:
    assert replay(log, "s-1", "--workspace", "/srv/other") == 2


def test_json(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(log, "s-1", "--json", "--all") == 0
    change, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert (change["v"], change["change"], change["object"]) == (1, "unchanged", "/srv/w/a")
    assert (change["was"]["verdict"], change["would_be"]["rule"]) == ("allow", "workspace")
    assert summary["summary"]["unchanged"] == 1


def test_a_session_that_is_not_there(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(log, "s-3") == 1
    assert "there is no session `s-3`" in capsys.readouterr().err
    (log.with_name("mine.yaml")).write_text("policy: mine\nrulez: []\n")
    assert replay(log, "s-1") == 3
