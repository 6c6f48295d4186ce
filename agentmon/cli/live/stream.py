# SPDX-License-Identifier: Apache-2.0
"""The stream of blocked operations: bounded, filtered, paused. Nothing that was left out is left uncounted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace

from agentmon.model.records import Record

#: Rows that are kept to scroll through: some megabytes.
KEPT = 5_000


class Row:
    """A record, and how often the same came again at once after it."""

    __slots__ = ("count", "first_ns", "number", "record")

    def __init__(self, number: int, record: Record) -> None:
        self.number = number
        self.record = record
        self.first_ns = record.time_ns
        self.count = 1

    def again(self, record: Record) -> bool:
        """Count it here, if it differs in nothing but the time."""
        if record[1:] != self.record[1:]:
            return False
        self.record = record
        self.count += 1
        return True


@dataclass(frozen=True, slots=True)
class Filter:
    """What is shown; what is empty lets everything through."""

    session: str = ""
    operation: str = ""
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.session or self.operation or self.text)

    def matches(self, record: Record) -> bool:
        """Whether it is shown. Text: in any of the fields, whatever its case."""
        if self.session and record.session != self.session:
            return False
        if self.operation and record.operation != self.operation:
            return False
        if not self.text:
            return True
        wanted = self.text.lower()
        fields = (
            record.object, record.rule, record.reason, record.comm, record.session, record.operation, record.verdict,
            record.detail, str(record.pid),
        )  # fmt: skip
        return any(wanted in field.lower() for field in fields)


class Stream:
    """Rows in the order they came. ``shown`` are those that pass the filter; while paused, of those at that moment."""

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self.rows: list[Row] = []
        self.shown: list[Row] = []
        self.filter = Filter()
        self.frozen: list[Row] | None = None
        self.arrived = 0
        #: Records that nobody could have looked at.
        self.missed = 0
        self.behind = 0
        self.operations: set[str] = set()
        self._offered = 0  # the first row that was not on offer to be scrolled to yet

    @property
    def paused(self) -> bool:
        """Whether the rows stand still."""
        return self.frozen is not None

    def add(self, records: Iterable[Record]) -> None:
        """Records, in order."""
        for record in records:
            self.arrived += 1
            self.behind += self.paused
            if self._open() and self.rows[-1].again(record):
                continue
            row = Row(self.arrived, record)
            self.rows.append(row)
            if record.kind == "decision":
                self.operations.add(record.operation)
            if not self.paused and self.filter.matches(record):
                self.shown.append(row)
        self._trim()
        if not self.paused:
            self._offered = self.arrived + 1

    def _open(self) -> bool:
        """Whether the last row may change: what stands still may not."""
        return bool(self.rows) and not (self.paused and self.rows[-1].number < self._offered)

    def miss(self, count: int) -> None:
        """Records that were lost on the way here."""
        self.missed += count

    def _trim(self) -> None:
        excess = self.rows[: max(len(self.rows) - self.kept, 0)]
        del self.rows[: len(excess)]
        self.missed += sum(row.count for row in excess if row.number >= self._offered)
        if not self.paused and self.rows:
            del self.shown[: bisect_left(self.shown, self.rows[0].number, key=_number)]

    def pause(self) -> None:
        """Stand still, or go on."""
        if self.frozen is None:
            self.frozen = list(self.rows)
        else:
            self.frozen = None
            self._offered = self.arrived + 1
        self.behind = 0
        self._choose()

    def narrow(self, **fields: str) -> None:
        """Change the filter."""
        self.filter = replace(self.filter, **fields)
        self._choose()

    def next_operation(self) -> None:
        """The filter's next operation, of those seen so far; after the last, all."""
        words = ["", *sorted(self.operations)]
        now = words.index(self.filter.operation) if self.filter.operation in words else 0
        self.narrow(operation=words[(now + 1) % len(words)])

    def clear(self) -> None:
        """Show everything."""
        self.narrow(session="", operation="", text="")

    def _choose(self) -> None:
        rows = self.rows if self.frozen is None else self.frozen
        self.shown = [row for row in rows if self.filter.matches(row.record)]

    def index(self, number: int) -> int:
        """Where the row of this number is shown, or the next after it."""
        return min(bisect_left(self.shown, number, key=_number), max(len(self.shown) - 1, 0))


def _number(row: Row) -> int:
    return row.number
