# SPDX-License-Identifier: Apache-2.0
"""Each verb that takes ``--json`` says its errors as one JSON object on standard output, with the right exit status."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from agentmon.audit.store import AuditLog
from agentmon.cli.main import build_parser, main
from agentmon.control.protocol import RefusedError
from tests.support.recorded import Log

#: Words of a verb, its exit status, and part of the message. `LOG` is a log of session s-1, `BAD` an invalid policy.
CASES = [
    ("ps", 1, "no daemon answers"),
    ("ps --fly", 64, "unrecognized arguments: --fly; see `agentmon ps --help`"),
    ("watch", 1, "no daemon answers"),
    ("watch --session", 64, "expected one argument"),
    ("enroll OWN -p BAD", 1, "no daemon answers"),
    ("enroll OWN -p none.yaml", 3, "none.yaml"),
    ("enroll 4194305", 1, "there is no process `4194305`"),
    ("enroll x", 64, "invalid int value"),
    ("release s-1", 1, "no daemon answers"),
    ("release", 64, "give the id of a session, or --all"),
    ("reload s-1", 1, "no daemon answers"),
    ("reload s-1 --all", 64, "give the id of a session, or --all"),
    ("risk s-1 high", 1, "no daemon answers"),
    ("risk s-1 huge", 64, "invalid choice"),
    ("why", 1, "no daemon answers"),
    ("why --last many", 64, "many"),
    ("ask hello", 1, "no daemon answers"),
    ("step begin fetch", 1, "no daemon answers"),
    ("resume s-1", 1, "no daemon answers"),
    ("step pause fetch", 64, "pause"),
    ("approvals", 1, "no daemon answers"),
    ("approve a-1", 1, "no daemon answers"),
    ("approve a-1 --for long", 64, "`long` is no span of time"),
    ("approve a-1 --yes", 64, "--yes belongs to --always"),
    ("approve a-1 --always", 64, "run it on a terminal, or give --yes"),
    ("approve a-1 --always --yes", 1, "no daemon answers"),
    ("deny a-1", 1, "no daemon answers"),
    ("deny", 64, "the following arguments are required"),
    ("answer q-1", 64, "the following arguments are required"),
    ("answer q-1 yes", 1, "no daemon answers"),
    ("plan check none.yaml", 3, "cannot read plan `none.yaml`"),
    ("plan show none.yaml", 3, "cannot read plan `none.yaml`"),
    ("plan show none.yaml --svg --dot", 64, "not allowed with argument"),
    ("plan infer", 64, "give files, or recorded sessions by --session"),
    ("plan infer none.sh", 3, "cannot read input `none.sh`"),
    ("plan infer --session s-9 --file LOG", 1, "there is no session `s-9`"),
    ("replay last -p nosuch --file LOG", 3, "no policy `nosuch`"),
    ("replay last -p BAD --file LOG", 3, "unknown key `rulez`"),
    ("replay nosuch --file LOG", 1, "no session `nosuch`"),
    ("replay last", 1, "audit.db"),
    ("audit log --session nosuch --file LOG", 1, "no record of a session `nosuch`"),
    ("audit log", 1, "audit.db"),
    ("audit log --since yesterday", 64, "`yesterday`"),
    ("audit verify", 1, "audit.db"),
    ("policy check nosuch", 3, "no policy `nosuch`"),
    ("policy check BAD", 3, "unknown key `rulez`"),
    ("policy check --workspace", 64, "expected one argument"),
    ("policy test nosuch", 3, "no policy `nosuch`"),
    ("policy test BAD", 3, "BAD"),
    ("policy test none.test.yaml", 3, "none.test.yaml"),
    ("policy explain read /x -p nosuch", 3, "no policy `nosuch`"),
    ("policy explain raed /x", 64, "unknown operation `raed`"),
    ("policy explain read", 64, "`read` needs an object"),
    ("policy explain connect nowhere", 64, "nowhere"),
    ("policy explain read /x --risk huge", 64, "unknown risk `huge`"),
    ("policy list --fly", 64, "unrecognized arguments: --fly"),
    ("policy show nosuch", 3, "no policy `nosuch`"),
    ("policy show BAD", 3, "unknown key `rulez`"),
    ("policy diff base nosuch", 3, "no policy `nosuch`"),
    ("policy diff BAD base", 3, "unknown key `rulez`"),
    ("policy diff base", 64, "the following arguments are required: NEW"),
    ("policy diff base base --session nosuch --file LOG", 1, "no session `nosuch`"),
    ("policy learn nosuch --file LOG", 1, "no session `nosuch`"),
    ("policy learn last --file LOG --include nosuch", 3, "no pack `nosuch`"),
    ("policy learn last --file LOG -o BAD", 1, "exists already"),
    ("profile train work nosuch --file LOG --directory .", 1, "no session `nosuch`"),
    ("profile train work last --file LOG --directory .", 1, "too few to learn from"),
    ("profile train Work last --file LOG --directory .", 1, "no name of a baseline"),
    ("profile train work last --add --file LOG --directory .", 1, "no baseline `work`"),
    ("profile score work last --file LOG --directory .", 1, "no baseline `work`"),
    ("profile score work last --rate 2", 64, "`2` is no rate"),
    ("profile show work --directory .", 1, "no baseline `work`"),
    ("profile list --fly", 64, "unrecognized arguments: --fly"),
    ("profile export work x.json --directory .", 1, "no baseline `work`"),
    ("profile import none.json --directory .", 1, "there is no baseline at `none.json`"),
    ("profile import BAD --directory .", 1, "it is not JSON"),
    ("--config /nonexistent.toml ps", 3, "no configuration file"),
]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the words in capitals stand for; and no daemon, whatever this host runs."""
    config = tmp_path / "agentmon.toml"
    config.write_text(
        f'[daemon]\nsocket = "{tmp_path}/control.sock"\naudit = "{tmp_path}/audit.db"\nstate = "{tmp_path}"\n'
    )
    monkeypatch.setenv("AGENTMON_CONFIG", str(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agentmon.cli.embedded.os.geteuid", lambda: 1000)  # else a daemon is started
    log = Log()
    log.did("read", "/f")
    audit = AuditLog(tmp_path / "log.db")
    audit.append(log.records)
    audit.close()
    bad = tmp_path / "BAD.yaml"
    bad.write_text("policy: bad\nrulez: []\nrules: [{id: 1}]\n")
    return {"LOG": str(audit.path), "BAD": str(bad), "OWN": str(os.getpid())}


def verbs_with_json() -> Iterator[str]:
    def visit(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for verb, sub in action.choices.items():
                    yield from visit(sub, f"{name} {verb}".lstrip())
            elif "--json" in action.option_strings:
                yield name

    return visit(build_parser(), "")


def test_each_verb_is_tried() -> None:
    tried = [words.partition("--config /nonexistent.toml ")[2] or words for words, _, _ in CASES]
    for verb in verbs_with_json():
        if verb != "doctor":  # its report is the answer, whatever it says
            assert any(f"{words} ".startswith(f"{verb} ") for words in tried), verb


def run(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.parametrize(("words", "code", "message"), CASES, ids=[words for words, _, _ in CASES])
def test_an_error_is_one_object(
    words: str, code: int, message: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*(files.get(word, word) for word in words.split()), "--json"]) == code
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    said = json.loads(line)
    assert said["v"] == 1
    assert said["exit"] == code
    assert message in said["error"]
    # people are told the same
    assert said["error"].splitlines()[0] in err
    assert run([files.get(word, word) for word in words.split()]) == code
    assert capsys.readouterr().out == ""


def test_all_errors_of_a_policy_are_in_it(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", files["BAD"], "nosuch", "--json"]) == 3
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["policy"], second["policy"]) == (files["BAD"], "nosuch")
    assert [line.rpartition("BAD.yaml:")[2][:2] for line in first["error"].splitlines()] == ["2:", "3:"]


def test_what_the_daemon_refuses_is_told_with_its_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files: dict[str, str]
) -> None:
    class Refusing:
        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> Self:
            return self

        __exit__ = close = __init__

        def call(self, verb: str, **_: Any) -> dict[str, Any]:
            if verb in ("ping", "ps"):
                return {"sessions": [{"session": "s-1", "policy": "base"}, {"session": "s-2", "policy": "base"}]}
            finding = {"id": "5:fd7", "operation": "read", "object": "/x", "what": "open", "rule": "", "reason": "no"}
            raise RefusedError(f"no {verb}", "denied", {"id": 1, "ok": False, "findings": [finding]})

    monkeypatch.setattr("agentmon.control.client.Client", Refusing)
    assert main(["enroll", files["OWN"], "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert (said["error"], said["exit"], said["findings"][0]["id"]) == ("no enroll", 2, "5:fd7")
    # each session that stays as it was
    assert main(["reload", "--all", "--json"]) == 2
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(t["session"], t["error"], t["exit"]) for t in told] == [("s-1", "no reload", 2), ("s-2", "no reload", 2)]
