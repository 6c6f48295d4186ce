# SPDX-License-Identifier: Apache-2.0
"""``agentmon policy``: output, JSON and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmon.cli.main import main

GOOD = (
    "policy: good\n"
    "default: {exec: allow, read: allow, write: deny, create: deny, connect: deny, bind: deny, listen: deny,"
    " unix: deny}\n"
)
RULES = """rules:
  - {id: s, on: read, paths: /secret/**, except: {paths: /secret/open}, action: deny, reason: it is secret}
"""


def run(*words: str) -> int:
    return main(["policy", *words])


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
    assert "no default for `exec`, `create`, `connect`, `send`, `bind`, `listen`, `unix`" in errors
    assert "p.yaml:5:10: rule `lost` can never decide" in errors
    assert "its own agent" in errors
    assert "chmod go-w" in errors
    assert run("check", "--strict", str(path)) == 3


def test_check_warns_of_arguments_and_rates_that_say_less_than_they_seem_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "policy: p\ninclude: [base]\ndefault: {read: allow}\nrules:\n"
        "  - {id: own, on: exec, exe: '**/git', argv: [git, push, '**'], action: deny}\n"
        "  - {id: short, on: exec, exe: '**/git', argv: [push], action: deny}\n"
        "  - {id: often, on: listen, when: {rate: 3/min}, action: allow}\n"
        "  - {id: good, on: exec, exe: '**/git', argv: [gc, '**'], action: deny}\n"
        "  - {id: seldom, on: chroot, when: {rate: 3/min}, action: allow}\n"
    )
    assert run("check", str(path), "--workspace", "/srv/w", "--home", "/srv/h") == 0
    errors = capsys.readouterr().err
    assert "p.yaml:5:47: rule `own`: the first argument is `git`, as the program" in errors
    assert "p.yaml:6:49: rule `short` blocks these arguments and nothing longer" in errors
    assert "p.yaml:7:42: rule `often`: when the rate is used up, the default allows `listen` all the same" in errors
    assert "`good`" not in errors
    assert "`seldom`" not in errors


def test_check_warns_of_held_scripts_that_change_after_the_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w").mkdir()
    for name in ("free", "kept", "asked"):
        (tmp_path / "w" / name).write_text("#!/bin/sh\n")
    (tmp_path / "w" / "program").write_bytes(b"\x7fELF")
    path = tmp_path / "p.yaml"
    held = "".join(
        f"  - {{id: {name}, on: exec, paths: '{{workspace}}/{name}', action: hold}}\n"
        for name in ("free", "kept", "asked", "program", "absent")
    )
    path.write_text(
        f"policy: p\ndefault: {{exec: allow, write: allow}}\nrules:\n{held}"
        "  - {id: stays, on: write, paths: '{workspace}/kept', action: deny}\n"
        "  - {id: seen, on: write, paths: '{workspace}/asked', action: hold}\n"
    )
    assert run("check", str(path), "--workspace", str(tmp_path / "w"), "--home", "/srv/h") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "holds the start of" in line]
    assert len(told) == 1
    assert (
        f"p.yaml:4:10: rule `free` holds the start of `{tmp_path}/w/free`, a script that the agent may write" in told[0]
    )


def test_check_warns_of_links_and_scripts_of_this_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to("real")
    script = real / "wrapper"
    script.write_text("#!/usr/bin/env python3\n")
    path = tmp_path / "p.yaml"
    path.write_text(
        "policy: p\ninclude: [base]\ndefault: {read: allow}\nrules:\n"
        f"  - {{id: linked, on: read, paths: {tmp_path}/link/*, action: deny}}\n"
        f"  - {{id: both, on: read, paths: '{tmp_path}/{{link,real}}/x', action: deny}}\n"
        f"  - {{id: wrapped, on: write, paths: /srv/x, parent: {script}, action: allow}}\n"
    )
    assert run("check", str(path), "--workspace", "/srv/w", "--home", "/srv/h") == 0
    errors = capsys.readouterr().err
    assert f"rule `linked`: `{tmp_path}/link` is `{real}` on this host" in errors
    assert f"rule `wrapped`: `{script}` is a script: the process that runs it is of `/usr/bin/env`" in errors
    assert "`both`" not in errors


def test_explain_judges_as_the_sessions_user_unless_told_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "policy: p\ninclude: [base]\ndefault: {read: allow}\nrules:\n"
        "  - {id: mine, on: create, paths: ~/y, user: '{user}', action: allow}\n"
        "  - {id: curl, on: connect, cidrs: [192.0.2.9], exe: /usr/bin/curl, action: allow}\n"
        "  - {id: late, on: create, paths: ~/z, when: {risk: high}, action: allow, marks: [seen]}\n"
    )
    where = ["-p", str(path), "--home", "/home/me", "--user", "root"]

    def said(*words: str) -> str:
        assert run("explain", *words, *where) == 0
        return capsys.readouterr().out

    assert "allow: create /home/me/y" in said("create", "~/y")
    assert "deny: create /home/me/y" in said("create", "~/y", "--as", "65534")
    assert "needs user {user}" in said("create", "~/y", "--as", "65534")
    assert "needs exe /usr/bin/curl" in said("connect", "192.0.2.9:80")
    assert "needs risk high" in said("create", "~/z", "--mark", "seen")
    assert run("explain", "create", "~/z", "--mark", "sen", *where) == 64
    assert "no rule sets the mark `sen`; did you mean `seen`?" in capsys.readouterr().err
    assert run("explain", "create", "~/y", "--as", "nonesuch", *where) == 64
    assert "this host has no user `nonesuch`" in capsys.readouterr().err


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


def test_port_53_is_the_resolvers(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "names.yaml"
    path.write_text(
        GOOD + RULES + "  - {id: dns, on: [connect, send, bind], ports: 53, action: deny}\n"
        "  - {id: n, on: connect, hosts: 'a.example.com:443', action: allow}\n"
    )
    for words in (("connect", "127.0.0.1:53"), ("send", "[2001:db8::1]:53"), ("connect", "a.example.com:53")):
        assert run("explain", *words, "-p", str(path)) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"allow: {' '.join(words)}\n  no rule counts: "), out
        assert "the session's own resolver gets it" in out
        assert "dns" not in out
    run("explain", "send", "127.0.0.1:53", "--json", "-p", str(path))
    said = json.loads(capsys.readouterr().out)
    assert (said["action"], said["rule"]) == ("allow", None)
    assert "resolver" in said["resolver"]
    run("explain", "bind", "0.0.0.0:53", "-p", str(good))
    assert capsys.readouterr().out.startswith("deny: bind 0.0.0.0:53\n  no rule counts: names are asked for")
    path.with_name("names.test.yaml").write_text(
        "cases:\n  - {op: connect, object: '9.9.9.9:53', expect: allow}\n"
        "  - {op: bind, object: '127.0.0.1:53', expect: deny}\n  - {op: bind, object: '127.0.0.1:53', expect: allow}\n"
    )
    assert run("test", str(path)) == 2
    out = capsys.readouterr().out
    assert "expected allow, got deny as port 53 is the resolver's\n3 cases, 1 failed" in out


@pytest.mark.parametrize("text", ["localhost:80", "LOCALHOST.:80", "a.localhost:80"])
def test_localhost_is_no_name_for_an_object(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "connect", text) == 64
    assert f"`{text}` is this host; write `127.0.0.1:80` or `[::1]:80`" in capsys.readouterr().err


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
    cases.write_text("cases:\n  - {op: signal, expect: deny}\n")
    assert run("test", "-v", str(good)) == 0
    assert "ok: signal: deny by default" in capsys.readouterr().out
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
    assert {"base", "coding-agent", "read-only", "escape"} <= set(names)
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
