# SPDX-License-Identifier: Apache-2.0
"""``agentmon policy diff``: output, JSON and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmon.audit.store import AuditLog
from agentmon.cli.main import main
from tests.support.recorded import Log

POLICY = """policy: p
default: {exec: allow, read: allow, write: deny, create: deny, connect: deny}
rules:
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A policy, and one with a reason more and a rule more."""
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(POLICY + "  - {id: a, on: read, paths: [/a], action: deny}\n")
    new.write_text(
        POLICY + "  - {id: a, on: read, paths: [/a], action: deny, reason: said}\n"
        '  - {id: w, on: write, paths: ["{workspace}/**"], action: allow}\n'
    )
    return str(old), str(new)


def test_rules_and_verdicts(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "diff", *files, "--workspace", "/srv/w"]) == 2
    out = capsys.readouterr().out
    assert "changed rule a of p\n  reason: (none) → said\n" in out
    assert "added rule w of p: allow write" in out
    assert out.splitlines()[-1].split() == ["write", "/srv/w", "deny", "allow", "default", "w"]


def test_other_words_are_no_other_verdicts(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    old, new = files
    text = Path(new).read_text()
    Path(new).write_text(text.replace("{workspace}/**", "{workspace}/x").replace("allow}\n", "deny}\n"))
    assert main(["policy", "diff", old, new]) == 0
    assert capsys.readouterr().out.endswith("the same verdict on every object\n")
    Path(new).write_text("policy: p\nrulez: []")
    assert main(["policy", "diff", old, new]) == 3


def test_json_and_sessions(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = AuditLog(tmp_path / "audit.db")
    log = Log(workspace="/srv/other")
    log.did("write", "/srv/other/x", "deny")
    log.did("write", "/srv/w/x", "deny")
    audit.append(log.records)
    audit.close()
    words = ["--json", "--session", "s-1", "--file", str(audit.path), "--workspace", "/srv/w"]
    assert main(["policy", "diff", *files, *words]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == ["rule", "rule", "verdict", "recorded", "session"]
    assert lines[2]["new"] == {"verdict": "allow", "rule": "w"}
    assert (lines[3]["object"], lines[4]["different"], lines[4]["actions"]) == ("/srv/w/x", 1, 2)
    assert main(["policy", "diff", *files, *words[:-2]]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[3]["object"] == "/srv/other/x"  # else the session's own workspace counts


@pytest.mark.parametrize("verb", ["diff", "learn"])
def test_help_has_examples_and_exit_status(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["policy", verb, "--help"])
    out = capsys.readouterr().out
    assert "examples:" in out
    assert "exit status:" in out


def test_modes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = "  - {id: a, on: read, paths: [/a], action: deny}\n"
    texts = {"none": "  []\n", "rule": rule, "observed": rule.replace("}", ", mode: observe}")}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(POLICY + text)
    (tmp_path / "all.yaml").write_text((POLICY + rule).replace("default:", "mode: observe\ndefault:"))

    def diff(old: str, new: str, *words: str) -> tuple[int, str]:
        return main(["policy", "diff", str(tmp_path / old), str(tmp_path / new), *words]), capsys.readouterr().out

    code, out = diff("none.yaml", "observed.yaml")
    assert code == 0
    assert "added rule a of p: deny read, only observed\nthe same verdict on every object (what is only" in out
    code, out = diff("rule.yaml", "observed.yaml")
    assert code == 2
    assert "changed rule a of p\n  mode: enforce → observe\n" in out
    code, out = diff("rule.yaml", "all.yaml")
    assert code == 2
    assert out.startswith("mode of the policy: enforce → observe\nOPERATION")
    first, *_ = diff("rule.yaml", "all.yaml", "--json")[1].splitlines()
    assert json.loads(first) == {"v": 1, "kind": "mode", "old": "enforce", "new": "observe"}
