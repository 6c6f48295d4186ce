# SPDX-License-Identifier: Apache-2.0
"""The audit log: complete, provable, never lost."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agentmon.audit import AuditLog, read, verify
from agentmon.audit.read import LATEST_RECORDS, latest
from agentmon.errors import AgentmonError
from agentmon.model.records import Record


def records(count: int, start: int = 0) -> list[Record]:
    return [Record(start + i, "decision", "s-1", i, object=f"/tmp/\udcff{i}", verdict="deny") for i in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "audit.db"


def write(path: Path, *batches: list[Record]) -> AuditLog:
    log = AuditLog(path)
    for batch in batches:
        log.append(batch)
    log.close()
    return log


def test_what_is_appended_is_read_again(path: Path) -> None:
    write(path, records(3), records(2, 10))
    write(path, records(1, 20))
    assert list(read(path)) == records(3) + records(2, 10) + records(1, 20)
    assert list(read(path, since_ns=20)) == records(1, 20)
    batches, count, _, problem = verify(path)
    assert (batches, count, problem) == (3, 6, None)


def test_flush_waits_for_the_disk(path: Path) -> None:
    log = AuditLog(path)
    log.append(records(5))
    assert log.flush()
    assert log.written == 5
    assert len(list(read(path))) == 5
    log.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE batches SET body = replace(body, 'deny', 'allow') WHERE seq = 2",
        "DELETE FROM batches WHERE seq = 2",
        "UPDATE batches SET count = 99 WHERE seq = 2",
    ],
)
def test_a_changed_log_does_not_verify(path: Path, change: str) -> None:
    write(path, records(2), records(2), records(2))
    database = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        database.execute(change)
    database.execute("DROP TRIGGER append_only_update")
    database.execute("DROP TRIGGER append_only_delete")
    database.execute(change)
    database.commit()
    database.close()
    batches, count, _, problem = verify(path)
    assert (batches, count) == (1, 2)
    assert problem is not None
    assert problem.batch == 2


def test_a_cut_end_changes_the_head(path: Path) -> None:
    write(path, records(2), records(2))
    _, _, head, _ = verify(path)
    database = sqlite3.connect(path)
    database.execute("DROP TRIGGER append_only_delete")
    database.execute("DELETE FROM batches WHERE seq = 2")
    database.commit()
    database.close()
    assert verify(path)[2] != head


@pytest.mark.parametrize("garbage", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_corrupt_log_is_kept_aside(path: Path, garbage: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(garbage)
    log = write(path, records(2))
    assert "was kept as" in log.notice
    (kept,) = path.parent.glob("audit.db.broken-*")
    assert kept.read_bytes() == garbage
    assert verify(path)[1] == 2


def test_a_log_of_another_schema_is_kept_aside(path: Path) -> None:
    write(path, records(2))
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(AgentmonError, match="schema version 99"):
        list(read(path))
    assert "schema version 99" in write(path, records(1)).notice


def test_a_missing_or_unwritable_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentmonError, match="there is no audit log"):
        list(read(tmp_path / "none.db"))
    (tmp_path / "file").write_text("")
    with pytest.raises(AgentmonError, match="cannot open the audit log"):
        AuditLog(tmp_path / "file" / "audit.db")


def test_sql_sees_one_row_a_record(path: Path) -> None:
    write(path, records(3))
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*), max(pid), min(verdict) FROM records").fetchone() == (3, 2, "deny")
    database.close()


def test_what_sessions_did_last_is_found_from_the_end(path: Path) -> None:
    def record(session: str, name: str, verdict: str = "deny", flags: str = "") -> Record:
        return Record(1, "decision", session, operation="read", object=name, verdict=verdict, flags=flags)

    with pytest.raises(AgentmonError, match="there is no audit log"):
        latest(path, ["s-1"])
    assert latest(path, []) == []
    log = AuditLog(path)
    log.append([record("s-1", "too early")])
    log.append([record("s-2", "other")] * (LATEST_RECORDS - 4))
    log.append([record("s-1", "a"), record("s-1", "expected", flags="pinned,quiet"), record("s-1", "b", "allow")])
    log.append([record("s-1", "c", "kill")])
    log.close()
    assert [r.object for r in latest(path, ["s-1", "s-3"])] == ["a", "expected", "b", "c"]
