# SPDX-License-Identifier: Apache-2.0
"""What a session remembers of what was blocked."""

from __future__ import annotations

from agentmon.engine.sessions import BOOKMARKS, DEEDS, LATEST_BLOCKED, SHOWN_DEEDS, Session, View
from agentmon.model.records import Record


def session() -> Session:
    return Session("s-0001", 1, "test", 1000, 1, View((), None))


def blocked(object_: str, time_ns: int = 1) -> Record:
    return Record(time_ns, "decision", "s-0001", operation="read", object=object_, verdict="deny", rule="r")


def objects(session: Session, number: int = -1, since_ns: int = 0) -> list[str]:
    return [denial.last.object for denial in session.since(number, since_ns)]


def test_the_latest_come_last_and_repeats_are_counted() -> None:
    found = session()
    for name in "abac":
        found.count_blocked(blocked(name))
    assert objects(found) == ["b", "a", "c"]
    assert [denial.times for denial in found.since(-1)] == [1, 2, 1]
    assert found.blocked_kinds[("read", "a", "r", "")] == 2


def test_one_kind_without_end_does_not_push_out_the_others() -> None:
    found = session()
    found.count_blocked(blocked("rare"))
    for _ in range(10 * LATEST_BLOCKED):
        found.count_blocked(blocked("often"))
    assert objects(found) == ["rare", "often"]


def test_so_many_are_remembered() -> None:
    found = session()
    for i in range(LATEST_BLOCKED + 5):
        found.count_blocked(blocked(str(i)))
    assert objects(found) == [str(i) for i in range(5, LATEST_BLOCKED + 5)]
    assert found.blocked == LATEST_BLOCKED + 5


def test_since_a_bookmark_a_number_or_a_moment() -> None:
    found = session()
    found.count_blocked(blocked("before", 10))
    found.bookmark("call")
    assert objects(found, found.bookmarks["call"]) == []
    found.count_blocked(blocked("after", 20))
    assert objects(found, found.bookmarks["call"]) == ["after"]
    found.count_blocked(blocked("before", 30))  # again
    assert objects(found, found.bookmarks["call"]) == ["after", "before"]
    assert objects(found, since_ns=30) == ["before"]


def test_bookmarks_are_bounded() -> None:
    found = session()
    for i in range(3 * BOOKMARKS):
        found.bookmark(str(i))
    found.bookmark(str(3 * BOOKMARKS - 1))
    assert len(found.bookmarks) == BOOKMARKS
    assert str(3 * BOOKMARKS - 1) in found.bookmarks


def test_what_was_blocked_before_a_restart_is_recalled_and_not_counted() -> None:
    found = session()
    found.recall(blocked("then"))
    assert found.blocked == 0
    assert objects(found) == ["then"]
    assert objects(found, 0) == []


def test_reading_a_lot_does_not_hide_what_else_it_did() -> None:
    found = session()
    for number in range(6):
        tell(found, did("connect", f"192.0.2.{number}:443"))
    for number in range(10 * DEEDS):
        tell(found, did("read", f"/w/{number}"))
    told = [deed["operation"] for deed in found.recent()]
    assert told == 3 * ["read"] + 5 * ["connect"]


def tell(found: Session, record: Record) -> None:
    found.decisions += 1
    found.did(record)


def did(operation: str, object_: str, verdict: str = "allow") -> Record:
    return Record(1, "decision", "s-0001", 7, comm="sh", operation=operation, object=object_, verdict=verdict)


def test_what_it_did_last_is_told_the_latest_first_and_each_once() -> None:
    found = session()
    for number in range(2 * SHOWN_DEEDS):
        tell(found, did("write", f"/w/{number}"))
    for _ in range(10 * DEEDS):
        tell(found, did("read", "/w/often"))
    told = [deed["object"] for deed in found.recent()]
    assert told[:3] == ["/w/often", f"/w/{2 * SHOWN_DEEDS - 1}", f"/w/{2 * SHOWN_DEEDS - 2}"]
    assert len(told) == len(set(told)) == SHOWN_DEEDS


def test_what_every_program_reads_is_not_told_unless_it_was_blocked() -> None:
    found = session()
    tell(found, did("read", "/usr/lib/libc.so.6"))
    tell(found, did("exec", "/usr/bin/curl"))
    tell(found, did("read", "/usr/share/secret", "deny"))
    assert [deed["object"] for deed in found.recent()] == ["/usr/share/secret", "/usr/bin/curl"]
