# SPDX-License-Identifier: Apache-2.0
"""Recorded sessions made by hand: the records that the daemon would have written."""

from __future__ import annotations

from agentmon.model.records import BY_DEFAULT, Record


class Log:
    """Writes the records of one session, one after the other."""

    def __init__(
        self, session: str = "s-1", workspace: str = "/srv/w", home: str = "/home/me", user: str = "me"
    ) -> None:
        self.session = session
        self.records: list[Record] = []
        detail = f"policy coding-agent, 1 processes, by uid 0, user {user}, home {home}"
        self.add("session", operation="enrolled", object=workspace, detail=detail)

    def add(self, kind: str, pid: int = 0, **fields: str) -> None:
        """Any record. A process is known by its PID: it started PID ns after the boot."""
        time_ns = len(self.records) + 1
        self.records.append(Record(time_ns, kind, self.session, pid, pid, 1000, **fields))

    def did(
        self, operation: str, object_: str, verdict: str = "allow", rule: str = "", pid: int = 10, **more: str
    ) -> None:
        """A decision."""
        reason = more.pop("reason", "" if rule else BY_DEFAULT)
        self.add(
            "decision", pid, operation=operation, object=object_, verdict=verdict, rule=rule, reason=reason, **more
        )

    def runs(self, program: str, pid: int = 10, comm: str = "", *, reported: bool = True) -> None:
        """An exec: its decision, unless the program was reported before, and then the event."""
        comm = comm or program.rpartition("/")[2][:15]
        if reported:
            self.did("exec", program, pid=pid, comm=comm)
        self.add("process", pid, operation="exec", comm=comm, detail="parent 1")

    def forks(self, child: int, parent: int = 10) -> None:
        """A fork."""
        self.add("process", child, operation="fork", detail=f"parent {parent}")

    def ends(self) -> None:
        """The end of the session."""
        self.add("session", operation="ended", detail="policy coding-agent, 9 decisions, 0 blocked")
