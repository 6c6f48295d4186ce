# SPDX-License-Identifier: Apache-2.0
"""What came from the daemon and was not looked at yet: filled by the feed's threads, emptied by the screen."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from agentmon.model.records import Record

#: Records that wait for the screen. At 1,000 a second, ten seconds in which it does nothing.
WAITING = 10_000


@dataclass(frozen=True, slots=True)
class Status:
    """The daemon's answer to `ps`, and when it came (monotonic)."""

    reply: dict[str, Any]
    at_s: float


@dataclass(frozen=True, slots=True)
class Link:
    """Whether the daemon is there; if not, what is said of that."""

    up: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an answer to an approval. ``error`` is empty when the daemon took it."""

    id: str
    said: str
    error: str = ""


@dataclass(slots=True)
class Batch:
    """All that waited. ``asked`` is what `approvals` returned: a list, or that the daemon does not know the verb."""

    records: list[Record] = field(default_factory=list)
    missed: int = 0
    status: Status | None = None
    link: Link | None = None
    asked: list[dict[str, Any]] | bool | None = None
    answers: list[Answer] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.records or self.missed or self.status or self.link or self.answers) or self.asked is not None


class Inbox:
    """Bounded: of status, link and approvals only the last counts; the oldest records go, and are counted."""

    def __init__(self, waiting: int = WAITING) -> None:
        self._lock = threading.Lock()
        self._records: deque[Record] = deque(maxlen=waiting)
        self._rest = Batch()

    def record(self, record: Record) -> None:
        """One record."""
        with self._lock:
            self._rest.missed += len(self._records) == self._records.maxlen
            self._records.append(record)

    def missed(self, count: int) -> None:
        """Records that the daemon did not send, because we did not keep up."""
        with self._lock:
            self._rest.missed += count

    def put(self, item: Status | Link | Answer) -> None:
        """Anything else."""
        with self._lock:
            match item:
                case Status():
                    self._rest.status = item
                case Link():
                    self._rest.link = item
                case Answer():
                    self._rest.answers.append(item)

    def asked(self, approvals: list[dict[str, Any]] | bool) -> None:
        """The pending approvals; False: the daemon knows none."""
        with self._lock:
            self._rest.asked = approvals

    def take(self) -> Batch:
        """All of it."""
        with self._lock:
            batch, self._rest = self._rest, Batch()
            batch.records = list(self._records)
            self._records.clear()
        return batch
