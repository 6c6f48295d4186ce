# SPDX-License-Identifier: Apache-2.0
"""``agentmon policy``: output, JSON and exit codes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from agentmon.cli import policy as command

GOOD = "policy: good\ndefault: {exec: allow, read: allow, write: deny, create: deny, connect: deny}\n"
RULES = """rules:
  - {id: s, on: read, paths: /secret/**, except: {paths: /secret/open}, action: deny, reason: it is secret}
"""


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["policy", *words])
    code: int = args.func(args)
    return code


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD + RULES)
    path.chmod(0o644)
    return path


def test_check(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = ["--workspace", "/srv/w", "--home", "/srv/h"]
    assert run("check", str(good), *elsewhere) == 0
    assert capsys.readouterr().out.startswith("good: ok, 1 rules, ")
    bad = tmp_path / "bad.yaml"
    bad.write_text("policy: bad\nrulez: []")
    assert run("check", str(bad), str(good)) == 3
    captured = capsys.readouterr()
    assert captured.err == f"{bad}:2:1: unknown key `rulez`; did you mean `rules`?\n"
    assert "good: ok" in captured.out


def test_check_warns_of_what_is_probably_not_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "policy: p\ndefault: {read: allow, write: deny}\nrules:\n"
        "  - {id: all, on: read, action: deny}\n  - {id: lost, on: read, paths: /a, action: audit}\n"
        "  - {id: w, on: write, paths: '{workspace}/**', action: allow}\n"
    )
    path.chmod(0o666)
    assert run("check", str(path), "--workspace", str(tmp_path)) == 0
    errors = capsys.readouterr().err
    assert "no default for `exec`, `create`, `connect`, `send`" in errors
    assert "p.yaml:5:10: rule `lost` can never decide" in errors
    assert "its own agent" in errors
    assert "chmod go-w" in errors
    assert run("check", "--strict", str(path)) == 3


def test_explain_names_rule_place_and_reason(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "read", "/secret/x", "-p", str(good)) == 0
    out = capsys.readouterr().out
    assert "deny: read /secret/x" in out
    assert f"by rule s of good ({good}:4), which matched /secret/**" in out
    assert "why: it is secret" in out
    run("explain", "read", "/secret/open", "-p", str(good), "--json")
    said = json.loads(capsys.readouterr().out)
    assert (said["action"], said["rule"], said["excepted"][0]["id"]) == ("allow", None, "s")
    run("explain", "connect", "127.0.0.1:53", "--json")
    said = json.loads(capsys.readouterr().out)
    assert (said["action"], said["rule"]["id"]) == ("deny", "names")


def test_explain_follows_links(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "link"
    link.symlink_to("/secret/x")
    run("explain", "read", str(link), "-p", str(good))
    out = capsys.readouterr().out
    assert f"{link} is /secret/x" in out
    assert "deny" in out


@pytest.mark.parametrize(
    "words", [("raed", "/x"), ("connect", "host"), ("connect", "10.0.0.0/8:1"), ("connect", "1.2.3.4")]
)
def test_explain_refuses_nonsense(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", *words) == 64
    assert capsys.readouterr().err


def test_test(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = good.with_name("good.test.yaml")
    cases.write_text("cases:\n  - {op: read, object: /secret/x, expect: deny, rule: s}\n")
    assert run("test", str(good)) == 0
    assert capsys.readouterr().out == "1 cases, 0 failed\n"
    cases.write_text("cases:\n  - {op: read, object: /secret/open, expect: deny}\n")
    assert run("test", str(good)) == 2
    assert f"{cases}:2:5: FAILED: read /secret/open: expected deny, got allow by default" in capsys.readouterr().out
    cases.write_text("cases:\n  - {op: read, objct: /x, expect: deny}\n  - {op: reed, object: /x, expect: deny}\n")
    assert run("test", str(good)) == 3
    assert f"{cases}:2:16: unknown key `objct`; did you mean `object`?" in capsys.readouterr().err
    cases.write_text("cases:\n  - {op: reed, object: x, expect: deny, rule: t}\n")
    assert run("test", str(good)) == 3
    assert "did you mean `read`?" in capsys.readouterr().err


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--json") == 0
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert {"base", "coding-agent"} <= set(names)
    assert run("show", "coding-agent", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["default"]["send"] == "deny"
    assert {"keys", "workspace"} <= {r["id"] for r in shown["rules"]}
    assert run("show", "coding-agent") == 0
    assert "- id: keys" in capsys.readouterr().out


def test_a_policy_without_cases_is_no_success(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test", str(good)) == 3
    assert "good.test.yaml" in capsys.readouterr().err
    assert run("test", "nosuch") == 3
    assert "no policy `nosuch`" in capsys.readouterr().err


def test_explain_looks_for_a_program_as_a_shell_does(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "exec", "sh", "-p", str(good), "--exe", "env") == 0
    assert f"allow: exec {Path('/bin/sh').resolve()}" in capsys.readouterr().out
