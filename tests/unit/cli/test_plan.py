# SPDX-License-Identifier: Apache-2.0
"""``agentmon plan``: output, JSON and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmon.audit.store import AuditLog
from agentmon.cli.main import main
from tests.support.recorded import Log

PLAN = """
plan: release
description: fetch and build
agent: {hosts: [api.example.com:443]}
steps:
  - {id: fetch, starts: {exe: "**/git", argv: [clone, "**"]}, max-write: 1MiB}
  - {id: build, needs: fetch, starts: {exe: "**/make"}, no-network: true}
"""


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "release.yaml"
    path.write_text(PLAN)
    return str(path)


def test_a_good_plan(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "check", plan]) == 0
    out, err = capsys.readouterr()
    assert out == "release: ok, 2 steps, 2 programs to start them, 0 rules\n"
    assert err == ""


def test_a_bad_plan_is_told_as_compilers_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("plan: p\nsteps:\n  - {id: a, starts: mark, needs: b}\n")
    assert main(["plan", "check", str(path), "--json"]) == 3
    out, err = capsys.readouterr()
    assert err == f"{path}:3:34: no step `b`; none is known, so leave it out\n"
    assert json.loads(out)["exit"] == 3
    assert main(["plan", "show", str(path)]) == 3
    assert main(["plan", "check", str(tmp_path / "none.yaml")]) == 3
    assert "cannot read plan" in capsys.readouterr().err


def test_warnings_count_if_one_is_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("plan: p\nsteps:\n  - {id: a, starts: mark, read-only: true}\n")
    assert main(["plan", "check", str(path)]) == 0
    assert "may reach no host" in capsys.readouterr().err
    assert main(["plan", "check", str(path), "--strict"]) == 3


def test_a_plan_is_drawn(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "show", plan]) == 0
    assert capsys.readouterr().out == (
        "release: fetch and build\n"
        "● fetch  **/git clone **  [max-write 1048576 B]\n"
        "● build  **/make  [no-network]\n"
        "outside of the steps: hosts api.example.com:443\n"
    )
    assert main(["plan", "show", plan, "--dot"]) == 0
    assert '"fetch" -> "build"' in capsys.readouterr().out
    assert main(["plan", "show", plan, "--svg"]) == 0
    assert capsys.readouterr().out.startswith("<svg ")
    assert main(["plan", "show", plan, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [step["needs"] for step in shown["steps"]] == [[], ["fetch"]]
    assert shown["steps"][0]["max_write_bytes"] == 1 << 20


def test_a_plan_of_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "build.sh"
    script.write_text("set -e\ngit clone https://git.example.com/x.git\nmake -C x\n")
    assert main(["plan", "infer", str(script)]) == 0
    out, err = capsys.readouterr()
    assert "plan: build\n" in out
    assert 'starts: {exe: "**/git", argv: [clone, "https://git.example.com/x.git"]}' in out
    assert "    needs: git-clone\n" in out
    assert "# not known: which files `make` changes" in out
    assert "agentmon: plan `build`: 2 steps; 4 things are not known, see its comments\n" in err
    path = tmp_path / "mine.yaml"
    assert main(["plan", "infer", str(script), "-o", str(path)]) == 0
    assert path.read_text().startswith("# Inferred by `agentmon plan infer` from build.sh.")
    assert main(["plan", "check", str(path)]) == 0
    assert main(["plan", "infer", str(script), "-o", str(path)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_plan_of_commands_and_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = tmp_path / "commands.txt"
    commands.write_text("cd sub\n# what comes next\n./run\n")
    assert main(["plan", "infer", "--as", "commands", "--shell", "one", str(commands), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(step["id"], step["from"]) for step in told["steps"]] == [("run", ["line 3: ./run"])]
    assert 'exe: "{workspace}/sub/run"' in told["text"]
    calls = tmp_path / "calls.jsonl"
    calls.write_text('{"type": "tool_use", "name": "Bash", "input": {"command": "ls /testbed/x"}}\n')
    assert main(["plan", "infer", str(calls), "--workspace", str(tmp_path)]) == 0
    assert "# call 1: ls /testbed/x" in capsys.readouterr().out


def test_a_plan_of_a_task_that_was_done_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name, text in (("one.sh", "git clone a\nmake all\n"), ("two.sh", "git clone b\nls\nmake test\n")):
        (tmp_path / name).write_text(text)
        files.append(str(tmp_path / name))
    assert main(["plan", "infer", "--together", "--fit", "order", *files, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(s["id"], s["after"]) for s in told["steps"]] == [
        ("git-clone", []), ("make-all", ["git-clone"]), ("ls", ["git-clone"]), ("make-test", ["ls"]), ("look", []),
    ]  # fmt: skip
    assert 'argv: [clone, "**"]' in told["text"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.sh", "echo hi\n", "nothing in a.sh starts a program"),
        ("a.json", "[", "a.json:1:2: not JSON: expecting value"),
        ("a.json", "[]", "there is no tool call and no command in it"),
    ],
)
def test_what_gives_no_plan(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert main(["plan", "infer", str(path)]) == 3
    assert said in capsys.readouterr().err
    assert main(["plan", "infer"]) == 64
    assert main(["plan", "infer", str(tmp_path / "none.sh")]) == 3


def test_a_plan_of_recorded_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = AuditLog(tmp_path / "audit.db")
    session = Log()
    session.runs("/opt/agent")
    session.forks(11)
    session.runs("/usr/bin/make", 11)
    session.did("create", "/srv/w/out", pid=11)
    session.add("process", 11, operation="exit", detail="status 0")
    session.ends()
    audit.append(session.records)
    audit.close()
    assert main(["plan", "infer", "--session", "last", "--file", str(audit.path)]) == 0
    out = capsys.readouterr().out
    assert "from recorded session s-1." in out
    assert "starts: {exe: /usr/bin/make}" in out
    assert '"{workspace}/out"' in out
    assert main(["plan", "infer", "--session", "s-9", "--file", str(audit.path)]) == 1
