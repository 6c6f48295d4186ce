# SPDX-License-Identifier: Apache-2.0
"""``agentmon policy learn``: output, files, JSON and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmon.audit.store import AuditLog
from agentmon.cli.main import main
from tests.support.recorded import Log


@pytest.fixture
def log(tmp_path: Path) -> str:
    """A session that built something, fetched something, and looked at a key."""
    audit = AuditLog(tmp_path / "audit.db")
    session = Log()
    for name in ("a", "b", "src/c"):
        session.did("create", f"/srv/w/{name}")
    session.did("connect", "192.0.2.7:443")
    session.did("read", "/home/me/.ssh/id_rsa", "deny", "keys")
    session.ends()
    audit.append(session.records)
    audit.close()
    return str(audit.path)


def test_the_policy_is_on_standard_output_and_the_rest_beside_it(
    log: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["policy", "learn", "s-1", "--file", log]) == 0
    out, err = capsys.readouterr()
    assert '- "{workspace}/**"  # 3, such as /srv/w/src/c' in out
    assert "# not allowed: read /home/me/.ssh/id_rsa" in out
    assert "2 rules from 4 distinct actions" in err
    assert "it would still deny 1 of its actions\n  read /home/me/.ssh/id_rsa: keys\n" in err
    path = tmp_path / "again.yaml"
    path.write_text(out)
    path.chmod(0o644)
    assert main(["policy", "check", str(path)]) == 0
    assert main(["replay", "s-1", "-p", str(path), "--file", log]) == 0


def test_a_file_is_written_once_and_gives_the_name(
    log: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["policy", "learn", "last", "--file", log, "-o", str(tmp_path / "mine.yaml"), "--include", "coding-agent"]
    assert main(words) == 0
    assert capsys.readouterr().out == ""
    text = (tmp_path / "mine.yaml").read_text()
    assert "policy: mine\ninclude: [coding-agent]\n" in text
    assert "{workspace}" not in text  # the pack allows it
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words[:-4], "--include", "no-such-pack"]) == 3


def test_json(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "learn", "s-1", "--file", log, "--json", "--name", "x"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["v"] == 1
    assert said["text"].splitlines()[3] == "policy: x"
    assert said["rules"][0]["objects"] == [{"object": "{workspace}/**", "actions": 3}]
    assert said["kept_out"][0]["object"] == said["still_denied"][0]["object"] == "/home/me/.ssh/id_rsa"
