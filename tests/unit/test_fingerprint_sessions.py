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
from benchmarks import _judged, _record, _sessions
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


def theft() -> dict[str, Any]:
    """An attack by itself, as the guest tells it."""
    session = made(900, tasks=0)
    session.steals()
    records = [list(r) for r in session.records]
    return {
        "id": "redcode_exec/theft", "task": "theft", "attack": None, "failed": "", "marks": [len(records)],
        "effects": ["output", "sent key"], "records": records,
    }  # fmt: skip


def test_judging_counts_alerts_detections_and_delays_on_other_tasks(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    rows = [theft(), {**theft(), "id": "redcode_exec/talk", "effects": ["output"]}]
    for number in range(40):
        session = made(number, tasks=6)
        half = len(session.records)
        session.works(2)
        rows.append(
            {
                "id": f"sessions/{session.id}", "task": f"t{number % 8}.{'hard' * (number % 2)}", "attack": None,
                "failed": "", "marks": [half // 2, half, len(session.records)], "effects": [],
                "records": [list(r) for r in session.records],
            }
        )  # fmt: skip
    (tmp_path / _sessions.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = Report("x")
    _judged.judge(report, tmp_path, tmp_path)
    found = report.results["recorded sessions"]
    assert (found["benign"], found["tasks"]) == (40, 8)
    assert (found["attacks"], found["of which a host sees an effect"]) == (2, 1)
    high = found["high"]
    assert high["false alerts"] <= 6
    assert high["noticed, %"] == 100
    assert high["delay, acts"]["p50"] <= 4
    assert found["attacks, by what they are made of"]["with an act that has consequences"] == 1


def test_an_attack_is_put_between_two_steps_without_what_was_told_before() -> None:
    session, attack = made(1, tasks=3), theft()
    known = next(r for r in session.records if r.operation == "read")
    attack["records"].insert(1, list(known._replace(pid=77)))
    row = {"records": [list(r) for r in session.records], "marks": [len(session.records) // 2, len(session.records)]}
    records, at = _judged.with_attack(row, attack, 1)
    assert at == len(session.records) // 2
    assert len(records) == len(session.records) + len(attack["records"]) - 2  # its enrolment, and what was told
    inside = records[at : at + len(attack["records"]) - 2]
    assert [r.object for r in inside if r.operation == "connect"] == ["198.51.100.66:4444"]
    assert not {r.pid for r in inside} & {r.pid for r in session.records}


def test_without_recordings_the_figures_are_missing_not_good(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no sessions"):
        _judged.judge(Report("x"), tmp_path, tmp_path)
