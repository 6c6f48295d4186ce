# SPDX-License-Identifier: Apache-2.0
"""The stream and the inbox: bounded, filtered, paused; what was left out is counted."""

from __future__ import annotations

from agentmon.cli.live.inbox import Inbox
from agentmon.cli.live.stream import Stream
from agentmon.model.records import Record


def record(number: int = 0, *, path: str = "", session: str = "s-1", operation: str = "read") -> Record:
    return Record(
        number, "decision", session, 10, comm="cat", operation=operation, object=path or f"/f{number}", verdict="deny",
        rule="keys", reason="no",
    )  # fmt: skip


def objects(stream: Stream) -> list[str]:
    return [row.record.object for row in stream.shown]


def test_a_burst_keeps_the_last_rows_and_counts_the_rest() -> None:
    stream, inbox = Stream(kept=500), Inbox(waiting=2000)
    for number in range(20_000):
        inbox.record(record(number))
    batch = inbox.take()
    assert (len(batch.records), batch.missed) == (2000, 18_000)
    stream.add(batch.records)
    stream.miss(batch.missed)
    assert len(stream.rows) == len(stream.shown) == 500
    assert objects(stream)[-1] == "/f19999"
    assert stream.missed == 19_500
    assert not inbox.take()


def test_rows_that_could_be_looked_at_are_not_missed() -> None:
    stream = Stream(kept=10)
    for number in range(100):
        stream.add([record(number)])
    assert (len(stream.shown), stream.missed) == (10, 0)


def test_the_same_again_is_one_row_with_a_number() -> None:
    stream = Stream()
    stream.add([record(1, path="/x"), record(2, path="/x"), record(3, path="/y"), record(4, path="/x")])
    assert [(row.record.object, row.count) for row in stream.shown] == [("/x", 2), ("/y", 1), ("/x", 1)]
    assert (stream.shown[0].first_ns, stream.shown[0].record.time_ns) == (1, 2)


def test_filters_hold_for_what_is_there_and_what_comes() -> None:
    stream = Stream()
    stream.add([record(1), record(2, session="s-2"), record(3, operation="exec", path="/bin/Sudo")])
    stream.narrow(session="s-2")
    stream.add([record(4, session="s-2"), record(5)])
    assert objects(stream) == ["/f2", "/f4"]
    stream.clear()
    stream.narrow(text="sudo")
    assert objects(stream) == ["/bin/Sudo"]
    stream.clear()
    assert len(objects(stream)) == 5


def test_a_search_looks_at_what_people_see() -> None:
    stream = Stream()
    stream.add([record(1)])
    for text in ("keys", "NO", "cat", "s-1", "read", "deny", "/f1", "10"):
        stream.narrow(text=text)
        assert objects(stream) == ["/f1"], text
    stream.narrow(text="other")
    assert objects(stream) == []


def test_operations_are_gone_through_in_turn() -> None:
    stream = Stream()
    stream.add([record(1, operation="write"), record(2), record(3)])
    seen = []
    for _ in range(3):
        stream.next_operation()
        seen.append((stream.filter.operation, len(stream.shown)))
    assert seen == [("read", 2), ("write", 1), ("", 3)]


def test_paused_rows_stand_still_and_what_nobody_can_see_is_counted() -> None:
    stream = Stream(kept=3)
    stream.add([record(1), record(2)])
    stream.pause()
    stream.add([record(2)])  # would have been "x2"
    stream.add([record(number) for number in (3, 4, 5, 6)])
    assert objects(stream) == ["/f1", "/f2"]
    assert [row.count for row in stream.shown] == [1, 1]
    assert (stream.behind, len(stream.rows)) == (5, 3)
    assert stream.missed == 2  # the second /f2 and /f3 went while it stood still
    stream.narrow(text="f1")
    assert objects(stream) == ["/f1"]
    stream.clear()
    stream.pause()
    assert objects(stream) == ["/f4", "/f5", "/f6"]
    assert (stream.behind, stream.paused) == (0, False)


def test_a_row_is_found_by_its_number_or_the_next_that_is_kept() -> None:
    stream = Stream(kept=3)
    stream.add([record(number) for number in range(1, 6)])
    assert objects(stream) == ["/f3", "/f4", "/f5"]
    assert stream.index(stream.shown[1].number) == 1
    assert stream.index(1) == 0
    assert Stream().index(5) == 0
