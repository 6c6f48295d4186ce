# SPDX-License-Identifier: Apache-2.0
"""The benchmark's recorded sessions: attacks are put in whole, and judged by baselines that never saw them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentmon.model.events import Address, Decision, Flag, ProcessEvent, ProcessKey, What
from agentmon.model.operations import Action, Operation, Reason, Tier
from agentmon.policy.load import load_text
from benchmarks import _record, _sessions
from benchmarks._common import Report
from tests.support.behaviour import made


def case(name: str, *words: str) -> dict[str, Any]:
    return {"id": name, "category": name, "steps": [[word] for word in words], "seconds": 5}


def test_an_attack_is_inserted_whole_and_marked() -> None:
    benign, attack = case("b", "one", "two"), {**case("a", "evil", "worse"), "files": {"/app/x": "y"}}
    places = set()
    for seed in range(30):
        both = _sessions.with_attack(benign, attack, seed)
        begin, end = both["attack"]
        assert both["steps"][begin:end] == [["evil"], ["worse"]]
        assert [*both["steps"][:begin], *both["steps"][end:]] == [["one"], ["two"]]
        assert both["files"] == {"/app/x": "y"}
        places.add(begin)
    assert places == {0, 1, 2}
    assert _sessions.with_attack(benign, attack, 1) == _sessions.with_attack(benign, attack, 1)


def test_all_is_allowed_while_recording() -> None:
    policy = load_text(_record.POLICY, "recording.yaml")
    assert set(policy.defaults.values()) == {Action.ALLOW}


def test_events_of_another_session_are_no_records() -> None:
    key = ProcessKey(7, 9)
    decision = Decision(
        1, key, 7, 1, 0, "cat", 3, 0, Operation.READ, Action.ALLOW, Tier.LSM, Flag(0), 0, Reason.DEFAULT, 0, (0, 0, 0),
        b"/etc/hosts",
    )  # fmt: skip
    found = _record.as_record(decision, "s", 3)
    assert found is not None
    assert (found.operation, found.object, found.verdict, found.comm) == ("read", "/etc/hosts", "allow", "cat")
    assert _record.as_record(decision, "s", 4) is None
    ended = _record.as_record(ProcessEvent(1, key, What.EXIT, 3, 1, 0, 0, 256, "cat"), "s", 3)
    assert ended is not None
    assert ended.detail == "status 1"
    assert str(Address(2, bytes(10) + b"\xff\xff\x7f\0\0\x01", 80)) == "127.0.0.1:80"


def test_judging_counts_alerts_detections_and_delays_on_other_tasks(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    rows = []
    for number in range(48):
        session = made(number, tasks=6)
        marks, attack = [len(session.records)], None
        if number % 3 == 2:
            session.steals()
            marks.append(len(session.records))
            session.works(2)
            attack = [1, 2]
        marks.append(len(session.records))
        rows.append(
            {
                "id": session.id, "task": f"t{number % 8}", "attack": attack, "failed": "", "marks": marks,
                "records": [list(r) for r in session.records],
            }
        )  # fmt: skip
    (tmp_path / _sessions.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = Report("x")
    _sessions.judge(report, tmp_path)
    found = report.results["recorded sessions"]
    assert (found["benign"], found["with an attack"], found["noticed"]) == (32, 16, 16)
    assert found["false alerts"] <= 6
    assert found["delay, events"]["p50"] <= 3


def test_without_recordings_the_figures_are_missing_not_good(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no sessions"):
        _sessions.judge(Report("x"), tmp_path)
