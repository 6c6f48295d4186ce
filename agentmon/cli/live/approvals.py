# SPDX-License-Identifier: Apache-2.0
"""Pending approvals, and which of them a key would answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentmon.cli.approvals import deed_line, starting

#: A key pressed sooner after another approval came under the cursor was meant for the one before.
ARM_S = 0.5


@dataclass(frozen=True, slots=True)
class Approval:
    """One question of the daemon's."""

    id: str
    session: str = ""
    pid: int = 0
    does: str = ""
    object: str = ""
    file: str = ""
    rule: str = ""
    reason: str = ""
    asked_ns: int = 0
    deadline_ns: int = 0
    command: tuple[str, ...] = ()
    starting: str = ""
    program: str = ""
    directory: str = ""
    processes: int = 1
    parents: tuple[str, ...] = ()
    recent: tuple[str, ...] = ()
    scope_help: str = ""
    changed: bool = False  # since it was asked first

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Approval:
        """As the daemon sent it; fields that are not known here are left out."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if data.get(name) is not None}
        for name in ("command", "parents"):
            known[name] = tuple(map(str, known.get(name, ())))
        known["recent"] = tuple(
            deed_line(deed) if isinstance(deed, dict) else str(deed) for deed in known.get("recent", ())
        )
        known["starting"] = starting(data)
        return cls(**{**known, "id": str(known.get("id", ""))})


class Approvals:
    """The list, a cursor that keeps to its approval, and the answers under way."""

    def __init__(self) -> None:
        #: Whether the daemon knows approvals at all.
        self.known = False
        self.items: list[Approval] = []
        self._selected = ""
        self._place = 0
        self._since_s = 0.0
        self._answering: set[str] = set()

    def update(self, asked: list[dict[str, Any]] | bool, now_s: float) -> int:
        """What the daemon has now. Returns how many are new."""
        self.known = asked is not False
        before = {item.id for item in self.items} | self._answering
        found = [Approval.from_json(data) for data in asked] if isinstance(asked, list) else []
        self._answering &= {item.id for item in found}
        self.items = [item for item in found if item.id not in self._answering]
        self._settle(now_s)
        return sum(item.id not in before for item in found)

    @property
    def index(self) -> int:
        """Where the cursor is."""
        return self._place

    @property
    def selected(self) -> Approval | None:
        """The approval under the cursor."""
        return self.items[self._place] if self.items else None

    def select(self, index: int, now_s: float) -> None:
        """Move the cursor."""
        self._place = max(0, min(index, len(self.items) - 1))
        self._hold(now_s)

    def answer(self, now_s: float) -> Approval | None:
        """Take the selected approval out to be answered; None if there is none, or it only just came there."""
        item = self.selected
        if item is None:
            return None
        if now_s - self._since_s < ARM_S:
            self._since_s = now_s  # a key that repeats answers one
            return None
        self._answering.add(item.id)
        self.items.remove(item)
        self._settle(now_s)
        return item

    def answered(self, approval_id: str) -> None:
        """The daemon refused the answer: it is shown again, if it is still asked."""
        self._answering.discard(approval_id)

    def _settle(self, now_s: float) -> None:
        for place, item in enumerate(self.items):
            if item.id == self._selected:
                self._place = place
                return
        self.select(self._place, now_s)

    def _hold(self, now_s: float) -> None:
        item = self.selected
        now = item.id if item else ""
        if now != self._selected:
            self._selected, self._since_s = now, now_s
