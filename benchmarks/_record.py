# SPDX-License-Identifier: Apache-2.0
"""Inside a guest: replays sessions, and tells the records that agentmon makes of each; one JSON line a session.

``python3 -m benchmarks._record CASES SECONDS``. All is allowed: an action that is to be noticed has to happen.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agentmon.model.events import Decision, ProcessEvent, What
from agentmon.model.operations import OPERATIONS, PART_OF_WRITE
from agentmon.model.records import Record
from benchmarks import _sandbox
from benchmarks._replay import SLACK_S, Fence, _end, furnish, say

_ALLOWED = ", ".join(f"{o.word}: allow" for o in (*OPERATIONS, *PART_OF_WRITE))
#: What is recorded under. The file's place is the guest's, which nobody else sees.
POLICY = f"policy: recording\ndefault: {{{', '.join(dict.fromkeys(_ALLOWED.split(', ')))}}}\n"


def main() -> int:
    """Replays; sessions are told as they end."""
    cases = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    tokens = furnish()
    with tempfile.TemporaryDirectory() as name:
        policy = Path(name) / "recording.yaml"
        policy.write_text(POLICY)
        recorder = Recorder(str(policy))
        start = time.monotonic()
        try:
            for case in cases:
                if time.monotonic() - start > float(sys.argv[2]):
                    break
                say({"begin": case["id"]})
                clock, began = time.time(), time.monotonic()
                found = record(case, tokens, recorder)
                time.clock_settime(time.CLOCK_REALTIME, clock + time.monotonic() - began)  # some cases set it
                say({"id": case["id"], **found})
        finally:
            recorder.close()
    return 0


class Recorder(Fence):
    """The programs, and what they report as records."""

    def records(self, session: str) -> list[Record]:
        """What was reported of the session since this was asked last."""
        return [r for event in self.monitor.read(1_000_000) if (r := as_record(event, session, self._slot)) is not None]


def as_record(event: object, session: str, slot: int) -> Record | None:
    """A record as the daemon's engine makes it, as far as the fingerprint reads it."""
    if isinstance(event, Decision) and event.session == slot:
        what = event.object
        text = (
            what.decode("utf-8", "surrogateescape")
            if isinstance(what, bytes)
            else ""
            if event.operation.is_bare
            else str(what)
        )
        return Record(
            event.time_ns, "decision", session, event.process.pid, event.process.start_ns, event.uid, event.comm,
            event.operation.word, text, event.verdict.word,
        )  # fmt: skip
    if isinstance(event, ProcessEvent) and event.session == slot and event.what is not What.FORK_LOST:
        detail = f"parent {event.ppid}"
        if event.what is What.EXIT:
            code = event.exit_code
            detail = f"signal {os.WTERMSIG(code)}" if os.WIFSIGNALED(code) else f"status {os.WEXITSTATUS(code)}"
        return Record(
            event.time_ns, "process", session, event.process.pid, event.process.start_ns, event.uid, event.comm,
            event.what.name.lower(), detail=detail,
        )  # fmt: skip
    return None


def record(case: dict[str, Any], tokens: Any, recorder: Recorder) -> dict[str, Any]:
    """One session: its records, and how many there were at the end of each step."""
    session = case["id"]
    started = _sandbox.start(case, tokens)
    records = [
        Record(
            0,
            "session",
            session,
            operation="enrolled",
            object=_sandbox.WORKSPACE,
            detail="policy recording, user root, home /root",
        )
    ]
    marks: list[int] = []
    statuses: list[int | None] = []
    failed = ""
    effects: list[str] = []
    try:
        recorder.enroll(started.driver)
        os.write(started.go, b"!")
        started.link.settimeout(float(case["seconds"]) * max(1, len(case["steps"])) + SLACK_S)
        while True:
            data = started.link.recv(1 << 20)
            message: dict[str, Any] = json.loads(data) if data else {"failed": "the guest ended"}
            records += recorder.records(session)
            if "step" not in message:
                effects, failed = message.get("effects", []), message.get("failed", "")
                break
            marks.append(len(records))
            statuses.append(message["step"][1])
    except (OSError, RuntimeError) as error:
        failed = repr(error)
    finally:
        os.close(started.go)
        with contextlib.suppress(OSError):
            _end(started)
        records += recorder.records(session)
        recorder.release()
    return {
        "records": [list(r) for r in records], "marks": marks, "statuses": statuses, "effects": effects[:50],
        "failed": failed,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
