# SPDX-License-Identifier: Apache-2.0
"""All that the screen shows, as plain state: batches in, answers to questions out. No clock, no socket, no terminal."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from agentmon.cli.live.approvals import Approvals
from agentmon.cli.live.inbox import Batch, Link, Status
from agentmon.cli.live.stream import Stream

#: Rates are taken over this many answers to `ps`.
SAMPLES = 6

_Counts = tuple[float, float]  # decisions, blocked


class Rates:
    """Decisions and blocked operations a second: of the whole (key `""`) and of each session."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, dict[str, _Counts]]] = deque(maxlen=SAMPLES)

    def sample(self, at_s: float, counts: dict[str, _Counts]) -> None:
        """Counts so far. A daemon that began anew counts anew."""
        if self._samples and any(
            now < before
            for key, was in self._samples[-1][1].items()
            for now, before in zip(counts.get(key, was), was, strict=True)
        ):
            self._samples.clear()
        self._samples.append((at_s, counts))

    def of(self, key: str = "") -> _Counts:
        """Of one session, since the oldest sample that knows it."""
        last_s, last = self._samples[-1] if self._samples else (0.0, {})
        for at_s, counts in self._samples:
            if key in counts and key in last and last_s > at_s:
                (a, b), (c, d) = counts[key], last[key]
                return (c - a) / (last_s - at_s), (d - b) / (last_s - at_s)
        return 0.0, 0.0


@dataclass(slots=True)
class Item:
    """A row of the sessions: a session, where its plan is, or one of its processes by its place in the tree."""

    session: dict[str, Any]
    process: dict[str, Any] | None = None
    branch: str = ""
    plan: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """What it stays the same by."""
        return self.session["session"], -1 if self.plan else self.process["pid"] if self.process else 0


@dataclass(slots=True)
class State:
    """One screen's."""

    only: str | None = None
    """The one session that is shown."""
    everything: bool = False
    """Whether the stream has allowed operations too."""
    stream: Stream = field(default_factory=Stream)
    approvals: Approvals = field(default_factory=Approvals)
    rates: Rates = field(default_factory=Rates)
    daemon: dict[str, Any] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    link: Link = field(default_factory=lambda: Link(up=True))
    tree: bool = True
    said: str = ""
    """The last thing to tell."""

    def take(self, batch: Batch, now_s: float) -> int:
        """What came. Returns how many approvals are new."""
        self.stream.add(batch.records)
        self.stream.miss(batch.missed)
        if batch.link is not None:
            self.link = batch.link
        if batch.status is not None:
            self._status(batch.status)
        for answer in batch.answers:
            self.said = answer.error or answer.said
            if answer.error:
                self.approvals.answered(answer.id)
        return 0 if batch.asked is None else self.approvals.update(batch.asked, now_s)

    def _status(self, status: Status) -> None:
        self.daemon = status.reply
        found = status.reply.get("sessions", [])
        self.sessions = [s for s in found if self.only is None or s["session"] == self.only]
        counts: dict[str, _Counts] = {s["session"]: (s["decisions"], s["blocked"]) for s in found}
        counters = status.reply.get("counters")
        if counters:  # every decision of the kernel; what is recorded is less
            counts[""] = (counters.get("decisions", 0), counters.get("blocked", 0))
        self.rates.sample(status.at_s, counts)
        self._arrange()

    def fold(self) -> None:
        """Show processes, or not."""
        self.tree = not self.tree
        self._arrange()

    def _arrange(self) -> None:
        self.items = []
        for session in self.sessions:
            self.items.append(Item(session))
            if "plan" in session:
                self.items.append(Item(session, plan=True))
            if self.tree:
                self.items += [Item(session, p, branch) for p, branch in tree(session["processes"])]

    def session(self, session_id: str) -> dict[str, Any] | None:
        """A live session."""
        return next((s for s in self.sessions if s["session"] == session_id), None)

    def ancestors(self, session_id: str, pid: int) -> list[dict[str, Any]]:
        """A process of a session, and those above it in that session."""
        session = self.session(session_id)
        by_pid = {p["pid"]: p for p in session["processes"]} if session else {}
        line: list[dict[str, Any]] = []
        while (process := by_pid.pop(pid, None)) is not None:  # pop: a loop ends
            line.append(process)
            pid = process["ppid"]
        return line

    def postures(self) -> Counter[str]:
        """How many operations have which posture."""
        return Counter(value["posture"] for value in self.daemon.get("posture", {}).values())

    def total(self, what: int) -> float:
        """A rate of all sessions: of decisions (0), of blocked operations (1)."""
        if "counters" in self.daemon:
            return self.rates.of()[what]
        return sum(self.rates.of(s["session"])[what] for s in self.sessions)


def tree(processes: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Processes, each after its parent, with the branch that leads to it. Those whose parent is elsewhere are roots."""
    known = {p["pid"] for p in processes}
    children: dict[int, list[dict[str, Any]]] = {}
    for process in processes:
        parent = process["ppid"]
        children.setdefault(parent if parent in known and parent != process["pid"] else 0, []).append(process)
    # no recursion: a chain of processes may be long
    waiting = [(process, "", last) for process, last in _with_last(children.pop(0, []))]
    done: set[int] = set()
    while waiting:
        process, stem, last = waiting.pop()
        done.add(process["pid"])
        yield process, stem + ("`- " if last else "|- ")
        below = _with_last(children.pop(process["pid"], []))
        waiting += [(child, stem + ("   " if last else "|  "), end) for child, end in below]
    for process in processes:  # a snapshot taken while PIDs were reused may have a loop
        if process["pid"] not in done:
            yield process, "?- "


def _with_last(processes: list[dict[str, Any]]) -> list[tuple[dict[str, Any], bool]]:
    """Reversed, to be popped in order."""
    return [(process, place == len(processes) - 1) for place, process in enumerate(processes)][::-1]
