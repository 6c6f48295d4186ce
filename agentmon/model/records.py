# SPDX-License-Identifier: Apache-2.0
"""What people are told: one record is one line of the audit log, of ``watch`` and of their JSON."""

from __future__ import annotations

from typing import Any, NamedTuple

#: Version of the record's fields, in every JSON object.
RECORD_VERSION = 1
#: The reason of a verdict that no rule gave.
BY_DEFAULT = "no rule matches: the default of the operation"
#: The reason, or the beginning of it, of a verdict on a directory for what is below it.
BY_CONTENTS = "moving it would change what may be done with what is below it"

#: Ends the reason of a verdict of the default that came only because a rule with a rate does not apply any more.
USED_UP = " used up"

#: Begins the flag of a decision that a rule or default which is only observed would have made.
WOULD = "would-"

#: Begins the flag of a decision by a policy that the session was put under later than its first.
GENERATION = "generation-"

#: The flag of a decision that the session's plan made, and not its policy.
BY_PLAN = "plan"

#: Begins the detail of a decision on an address that the session had asked for by a name.
BY_NAME = "name "


class Record(NamedTuple):
    """One thing that happened. A tuple, because tens of thousands a second are made and encoded.

    ``kind`` is ``decision``, ``process``, ``session``, ``step``, ``name``, ``mismatch`` or ``daemon``. ``object`` is a
    path (bytes that are not UTF-8 as surrogate escapes), ``address:port``, of a ``step`` its name, or of a ``name`` the
    host that was asked for; ``reason`` is what people read.
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

    @property
    def would(self) -> str:
        """The action that what is only observed would have taken; empty if none."""
        return next((flag[len(WOULD) :] for flag in self.flags.split(",") if flag.startswith(WOULD)), "")

    @property
    def host(self) -> str:
        """The name that the session had asked for the address by; empty if none."""
        return self.detail.removeprefix(BY_NAME) if self.detail.startswith(BY_NAME) else ""

    def as_json(self) -> dict[str, Any]:
        """The record as one JSON object, with the version of its fields."""
        return {"v": RECORD_VERSION, **self._asdict()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record:
        """The reverse of :meth:`as_json`; unknown fields are left out. Raises `KeyError` or `TypeError`."""
        return cls(**{name: data[name] for name in cls._fields if name in data})
