# SPDX-License-Identifier: Apache-2.0
"""What people are told: one record is one line of the audit log, of ``watch`` and of their JSON."""

from __future__ import annotations

from typing import Any, NamedTuple

#: Version of the record's fields, in every JSON object.
RECORD_VERSION = 1


class Record(NamedTuple):
    """One thing that happened. A tuple, because tens of thousands a second are made and encoded.

    ``kind`` is ``decision``, ``process``, ``session``, ``mismatch`` or ``daemon``. ``object`` is a path
    (bytes that are not UTF-8 as surrogate escapes) or ``address:port``; ``reason`` is what people read.
    """

    time_ns: int  # wall clock
    kind: str
    session: str = ""
    pid: int = 0
    start_ns: int = 0  # of the process, since boot
    uid: int = -1
    comm: str = ""
    operation: str = ""
    object: str = ""
    verdict: str = ""
    rule: str = ""
    reason: str = ""
    flags: str = ""
    detail: str = ""

    @property
    def blocked(self) -> bool:
        """Whether the operation was denied or its process killed."""
        return self.verdict in ("deny", "kill")

    def as_json(self) -> dict[str, Any]:
        """The record as one JSON object, with the version of its fields."""
        return {"v": RECORD_VERSION, **self._asdict()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record:
        """The reverse of :meth:`as_json`; unknown fields are left out. Raises `KeyError` or `TypeError`."""
        return cls(**{name: data[name] for name in cls._fields if name in data})
