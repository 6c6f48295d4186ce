# SPDX-License-Identifier: Apache-2.0
"""Made-up agents: records as the daemon would write them, with the variety that a real agent has."""

from __future__ import annotations

import random

from agentmon.model.records import Record

_TEXT = ("cat", "grep", "sed", "head", "wc", "sort")
_CODE = ("main", "util", "parse", "model", "app", "store", "net", "cli")


class MadeSession:
    """Writes the records of one session of a coding agent. Workspace and home differ from machine to machine."""

    def __init__(self, seed: int, workspace: str = "/srv/project", home: str = "/home/me") -> None:
        self.random = random.Random(seed)
        self.id = f"s-{seed:04x}"
        self.workspace, self.home = workspace, home
        self.records: list[Record] = []
        self._time = 1_700_000_000 * 10**9 + seed * 10**13
        self._pid = 100
        self._add(
            "session", 1, operation="enrolled", object=workspace, detail=f"policy p, 1 processes, user me, home {home}"
        )

    def _add(self, kind: str, pid: int, comm: str = "agent", **fields: str) -> None:
        self._time += self.random.randrange(10**6, 10**9)
        self.records.append(Record(self._time, kind, self.id, pid, pid, 1000, comm, **fields))

    def did(
        self, operation: str, object_: str, comm: str = "agent", verdict: str = "allow", pid: int = 1, detail: str = ""
    ) -> None:
        """A decision."""
        self._add("decision", pid, comm, operation=operation, object=object_, verdict=verdict, detail=detail)

    def runs(self, program: str, *acts: tuple[str, str], status: int = 0) -> None:
        """A program from its fork to its exit, with what it does."""
        self._pid += 1
        pid, comm = self._pid, program.rpartition("/")[2]
        self._add("process", pid, operation="fork", detail="parent 1")
        self.did("exec", program, pid=pid)
        self._add("process", pid, comm, operation="exec", detail="parent 1")
        for operation, object_ in acts:
            self.did(operation, object_, comm, pid=pid)
        self._add("process", pid, comm, operation="exit", detail=f"status {status}")

    def works(self, tasks: int) -> MadeSession:
        """So many tasks of ordinary work."""
        for _ in range(tasks):
            self.task()
        return self

    def task(self) -> None:
        """Look around, change something, test it, maybe commit."""
        r, w = self.random, self.workspace
        name = f"{w}/src/{r.choice(_CODE)}{r.randrange(9)}.py"
        for _ in range(r.randrange(1, 4)):
            self.runs(f"/usr/bin/{r.choice(_TEXT)}", ("read", name), ("read", f"{w}/README.md"))
        if r.random() < 0.3:
            self.runs("/usr/bin/ls", ("read", w), ("read", "/etc/ld.so.cache"))
        self.did("connect", "203.0.113.9:443", detail="name api.model.example")
        self.did("read", name)
        self.did("write", name)
        if r.random() < 0.4:
            self.did("create", f"{w}/src/new{r.randrange(99)}.py")
        failed = r.random() < 0.3
        self.runs(
            "/usr/bin/python3.11", ("read", f"{w}/tests/test_{r.choice(_CODE)}.py"), ("read", name),
            ("create", f"{w}/.pytest_cache/v"), ("read", "/usr/lib/python3.11/os.py"), ("write", "/tmp/out"),
            status=int(failed),
        )  # fmt: skip
        if r.random() < 0.5:
            self.runs(
                "/usr/bin/git",
                ("read", f"{w}/.git/index"),
                ("write", f"{w}/.git/index"),
                ("read", f"{self.home}/.gitconfig"),
            )
        if r.random() < 0.1:
            self.runs("/usr/bin/pip3", ("connect", "203.0.113.20:443"), ("create", f"{w}/.venv/lib/x.py"))

    def steals(self) -> None:
        """What a hijacked agent does: reads a key and sends it away."""
        self.runs("/usr/bin/cat", ("read", f"{self.home}/.ssh/id_rsa"))
        self.runs("/usr/bin/curl", ("connect", "198.51.100.66:4444"))


def made(seed: int, *, tasks: int | None = None) -> MadeSession:
    """One ordinary session, of another length and on another machine than the next."""
    session = MadeSession(seed, f"/srv/w{seed % 7}", f"/home/u{seed % 5}")
    return session.works(tasks if tasks is not None else session.random.randrange(8, 25))
