# SPDX-License-Identifier: Apache-2.0
"""The command line without a kernel: help, usage, exit statuses, what is imported."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentmon.audit.store import AuditLog
from agentmon.cli import render
from agentmon.cli.child import target_user
from agentmon.cli.main import VERBS, main
from agentmon.errors import AgentmonError
from agentmon.model.records import Record
from tests.support.recorded import Log

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No daemon, no audit log, whatever this host runs."""
    config = tmp_path / "agentmon.toml"
    config.write_text(
        f'[daemon]\nsocket = "{tmp_path}/control.sock"\naudit = "{tmp_path}/audit.db"\nstate = "{tmp_path}"\n'
    )
    monkeypatch.setenv("AGENTMON_CONFIG", str(config))
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["ps", "--fly"], ["enroll"], ["enroll", "x"], ["completion", "fish"]]
)
def test_bad_usage_is_64(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 64
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["ps"], ["watch"], ["release", "s-1234"]])
def test_without_a_daemon_the_remedy_is_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no daemon answers" in err
    assert "systemctl start agentmon" in err


@pytest.mark.parametrize("verb", ["approve a-1", "ps", "release s-1"])
def test_within_a_session_it_is_said_who_may_ask_what(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTMON_SOCKET", "/run/elsewhere/control.sock")
    assert main(verb.split()) == 1
    err = capsys.readouterr().err
    assert ("inside a session" in err, "systemctl start" in err) == (True, False), err


@pytest.mark.parametrize("arguments", [["release"], ["release", "--all", "s-1"], ["run"], ["run", "--"]])
def test_what_argparse_cannot_see_is_64_too(arguments: list[str]) -> None:
    assert main(arguments) == 64


def test_a_workspace_that_is_no_directory_is_refused(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--workspace", str(nowhere / "none"), "--", "true"]) == 1
    assert "is no directory" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a log that belongs to somebody else")
@pytest.mark.parametrize("verb", ["log", "verify"])
def test_the_audit_log_of_another_user_asks_for_sudo(
    verb: str, nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nowhere / "audit.db").touch(mode=0o600)
    os.seteuid(65534)
    try:
        assert main(["audit", verb, "--file", str(nowhere / "audit.db")]) == 1
    finally:
        os.seteuid(0)
    assert "use sudo" in capsys.readouterr().err


def test_a_policy_that_cannot_be_read_is_3(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-p", str(nowhere / "none.yaml"), "--", "true"]) == 3
    assert "none.yaml" in capsys.readouterr().err


def test_a_bad_span_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="64"):
        main(["audit", "log", "--since", "yesterday"])
    assert "`yesterday`" in capsys.readouterr().err


def test_completion_is_valid_shell_and_knows_the_verbs(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    # what it asks of agentmon
    script += """
agentmon() {
  case "$*" in
  'policy list') printf 'base  the base\\ncoding-agent  more\\n' ;;
  'profile list --json') printf '{"v":1,"name":"mine","revision":1}\\n{"v":1,"name":"coding-agent"}\\n' ;;
  'ps --json') echo '{"sessions":[{"id":"s-7f3a"},{"id":"s-80b1"}]}' ;;
  'approvals --json') printf '{"v":1,"id":"a-3","session":"s-1"}\\n{"v":1,"question":"q-1"}\\n' ;;
  esac
}
"""

    def complete(*words: str) -> list[str]:
        typed = shlex.join(words)
        ask = f"{script}\nCOMP_WORDS=(agentmon {typed}); COMP_CWORD={len(words)}; _agentmon; echo ${{COMPREPLY[*]}}"
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True, cwd=nowhere)
        assert not done.stderr
        return done.stdout.split()

    for name in ("mine.yaml", "short.yml"):
        (nowhere / name).touch()
    (nowhere / "checks").mkdir()
    (nowhere / "other.txt").touch()
    assert complete("deny", "a") == ["a-3"]
    assert complete("answer", "q") == ["q-1"]
    assert {"a-3", "--always", "--yes"} <= set(complete("approve", ""))
    assert complete("r") == ["run", "reload", "release", "resume", "risk", "replay"]
    assert complete("run", "--wor") == ["--workspace"]
    assert complete("run", "--workspace", "") == []
    policies = ["mine.yaml", "short.yml", "checks", "base", "coding-agent"]
    assert complete("run", "-p", "") == complete("policy", "explain", "-p", "") == policies
    assert complete("reload", "s-7f3a", "-p", "") == complete("replay", "last", "--policy", "") == policies
    assert complete("run", "--policy", "co") == ["coding-agent"]
    assert complete("run", "--profile", "m") == complete("enroll", "--learn", "m") == ["mine"]
    assert {"mine", "coding-agent"} <= set(complete("profile", "show", ""))
    # both policies of a comparison
    for words in (["policy", "diff"], ["policy", "diff", "base"]):
        assert complete(*words, "m") == ["mine.yaml"]
        assert complete(*words, "c") == ["checks", "coding-agent"]
    assert complete("policy", "show", "m") == complete("policy", "test", "m") == ["mine.yaml"]
    assert complete("policy", "learn", "last", "--include", "") == ["base", "coding-agent"]
    assert complete("policy", "explain", "--risk", "") == ["normal", "elevated", "high"]
    assert complete("policy", "explain", "read", "--exe", "") == []  # so bash offers files
    # recorded sessions have two words for some of them, live ones have not
    recorded = ["last", "all", "s-7f3a", "s-80b1"]
    assert [w for w in complete("replay", "") if w[0] != "-"] == recorded
    assert [w for w in complete("policy", "learn", "s-7f3a", "") if w[0] != "-"] == recorded
    assert complete("policy", "diff", "--session", "") == complete("policy", "diff", "--sessions", "") == recorded
    assert "--skip" not in complete("doctor", "-")  # hidden from people
    assert complete("watch", "--session", "") == ["s-7f3a", "s-80b1"]
    assert complete("reload", "l") == complete("release", "a") == []
    assert complete("release", "s-") == complete("audit", "log", "--session", "") == ["s-7f3a", "s-80b1"]
    assert complete("policy", "ch") == complete("--config", "x", "policy", "ch") == ["check"]
    assert complete("policy", "explain", "co") == ["connect"]
    assert complete("policy", "check", "b") == ["base"]
    assert complete("risk", "s-7") == ["s-7f3a"]
    assert "high" in complete("risk", "s-7f3a", "")


def test_unknown_options_show_the_usage_of_their_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ps"], ["policy", "check"], ["audit", "log"]):
        with pytest.raises(SystemExit, match="64"):
            main([*words, "--nosuch"])
        err = capsys.readouterr().err
        verb = " ".join(words)
        assert err.startswith(f"usage: agentmon {verb} ")
        assert err.endswith(f"agentmon {verb}: unrecognized arguments: --nosuch; see `agentmon {verb} --help`\n")


def test_audit_log_of_one_session_and_the_last(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    for number in range(4):
        log.did("read", f"/f{number}")
    audit = AuditLog(nowhere / "audit.db")
    audit.append(log.records)
    audit.close()
    file = ["--file", str(audit.path)]
    assert main(["audit", "log", *file, "--session", "nosuch"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, "no record of a session `nosuch`" in captured.err) == ("", True)
    assert main(["audit", "log", *file, "--session", "s-1", "--blocked"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["audit", "log", *file, "--session", "s-1", "--last", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert ("read /f2" in first, "read /f3" in second) == (True, True)
    with pytest.raises(SystemExit, match="64"):
        main(["audit", "log", *file, "--last", "0"])


def test_errors_of_policy_verbs_say_who_speaks(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", str(nowhere / "none.yaml")]) == 3
    assert main(["policy", "explain", "raed", "/x"]) == 64
    assert main(["policy", "explain", "connect", "1.2.3.4"]) == 64
    lines = capsys.readouterr().err.splitlines()
    assert main(["policy", "check", "nosuch"]) == main(["policy", "test", "nosuch"]) == 3
    lines += capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("agentmon: ") for line in lines)
    bad = nowhere / "bad.yaml"
    bad.write_text("policy: bad\nrulez: []")
    assert main(["policy", "check", str(bad)]) == 3
    assert capsys.readouterr().err.startswith(f"{bad}:2:1: ")  # as compilers do, for editors


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_closed_streams_are_no_crash(closed: str, nowhere: Path) -> None:
    ask = f"{sys.executable} -m agentmon.cli.main policy list {closed}"
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_configuration_file_that_was_asked_for_must_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "/nonexistent/agentmon.toml", "ps"]) == 3
    assert "no configuration file" in capsys.readouterr().err


def test_run_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom agentmon.cli.main import build_parser\nbuild_parser('run')\n"
        "import agentmon.cli.child, agentmon.cli.embedded, agentmon.cli.supervise, agentmon.control.client\n"
        "print([m for m in ('pydantic', 'rich', 'yaml', 'psutil', 'asyncio', 'sqlite3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "[]\n"


def test_names_from_an_agent_cannot_steer_the_terminal() -> None:
    record = Record(
        1, "decision", "s-1", 5, comm="\x1b[2J", operation="read", object="/a\x1b]0;x\x07\n\udcff", verdict="deny"
    )
    line = render.record_line(record).plain
    assert line.isprintable()
    assert r"/a\x1b]0;x\x07\n" in line


def test_sudo_names_the_user_to_drop_to(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setenv("SUDO_UID", "65534")
    assert (target_user(None, as_root=False).uid, target_user(None, as_root=False).drop) == (65534, True)
    assert target_user(None, as_root=True).uid == 0
    assert target_user("nobody", as_root=False).name == "nobody"
    with pytest.raises(AgentmonError, match="no user `no-such-user`"):
        target_user("no-such-user", as_root=False)
    monkeypatch.setenv("SUDO_UID", "4000000000")
    with pytest.raises(AgentmonError, match="SUDO_UID"):
        target_user(None, as_root=False)


def test_a_closed_pipe_is_no_traceback() -> None:
    script = f"{sys.executable} -m agentmon.cli.main completion bash | true; echo ${{PIPESTATUS[0]}}"
    began = time.monotonic()
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 30
