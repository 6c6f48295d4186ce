# SPDX-License-Identifier: Apache-2.0
"""All that is known of one thing, as lines to read and to copy."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable
from typing import Any

from agentmon.cli import watched
from agentmon.cli.live.approvals import Approval
from agentmon.cli.live.lines import moment, verdict
from agentmon.cli.live.state import Item, State
from agentmon.cli.live.stream import Row
from agentmon.cli.live.words import tidy, width
from agentmon.cli.ps import steps

#: Lines, each with what stands before it and is indented when it is too long.
Text = list[tuple[str, str]]


def as_text(text: Text) -> str:
    """To be copied."""
    return "\n".join(f"{label}{said}".rstrip() for label, said in text)


def folded(text: Text, cells: int) -> list[str]:
    """To be read on a screen of that width."""
    found: list[str] = []
    for label, said in text:
        room = max(cells - len(label), 10)
        pieces = [piece for line in textwrap.wrap(said, room, break_on_hyphens=False) for piece in _split(line, room)]
        found += [(label if not place else " " * len(label)) + piece for place, piece in enumerate(pieces or [""])]
    return found


def _split(line: str, room: int) -> list[str]:
    """Wide characters take two cells, which textwrap does not know."""
    return [line] if width(line) <= room else textwrap.wrap(line, max(room // 2, 1), break_on_hyphens=False)


def _facts(facts: Iterable[tuple[str, object]]) -> Text:
    return [(f"{name:11}", tidy(value)) for name, value in facts if value not in ("", None)]


def _lines(*lines: str) -> Text:
    return [("", line) for line in lines]


def _plan(session: dict[str, Any]) -> str:
    """Its name, and which step is where."""
    if "plan" not in session:
        return ""
    return f"{session['plan']} ({steps(session['steps'])})" + (", PAUSED" if session.get("paused") else "")


def _when(time_ns: int) -> str:
    return f"{moment(time_ns):%Y-%m-%d %H:%M:%S.%f %z}" if time_ns else ""


def one_line(it: Row) -> str:
    """A row of the stream in full, as `watch` has it."""
    record = it.record
    why = (record.rule or "default") + (f": {record.reason}" if record.reason else "")
    if record.kind != "decision":
        why = " ".join(filter(None, (record.detail, record.reason)))
    parts = (
        _when(record.time_ns), record.session or "-", f"{record.comm}[{record.pid}]" if record.pid else "",
        verdict(record)[0] or record.kind, record.operation, record.object, why,
    )  # fmt: skip
    return "  ".join(tidy(part) for part in parts if part)


def of_row(it: Row, state: State) -> Text:
    """A blocked operation."""
    record = it.record
    session = state.session(record.session)
    what = f"would {record.would}" if record.would else record.verdict or record.kind
    said = _lines(f"{what} {record.operation} {tidy(record.object)}".rstrip(), "")
    said += _facts(
        (
            ("when", _when(record.time_ns)),
            ("repeated", f"{it.count} times since {_when(it.first_ns)}" if it.count > 1 else ""),
            ("rule", record.rule or ("default" if record.kind == "decision" else "")),
            ("reason", record.reason),
            ("session", record.session),
            ("policy", session["policy"] if session else ""),
            ("command", session["command"] if session else ""),
            ("process", f"{record.comm}[{record.pid}], uid {record.uid}" if record.pid else ""),
            ("under", " < ".join(f"{p['comm']}[{p['pid']}]" for p in state.ancestors(record.session, record.pid)[1:])),
            ("flags", record.flags),
            ("detail", record.detail),
        )
    )
    if record.kind == "decision":
        policy = shlex.quote(tidy(session["policy"])) if session else "POLICY"
        object_ = shlex.quote(tidy(record.object))
        said += _lines("", "More:", f"agentmon policy explain {record.operation} {object_} -p {policy}")
        said += _lines(f"agentmon audit log --session {shlex.quote(tidy(record.session))} --blocked")
    return said


def of_item(it: Item, state: State) -> Text:
    """A session, or a process of it."""
    session = it.session
    recorded, blocked = state.rates.of(session["session"])
    said: Text = []
    if it.process is not None:
        p = it.process
        above = state.ancestors(session["session"], p["pid"])[1:]
        said += _lines(f"process {p['pid']} {tidy(p['comm'])}", "")
        said += _facts(
            (
                ("uid", p["uid"]),
                ("blocked", p["blocked"]),
                ("under", " < ".join(f"{a['comm']}[{a['pid']}]" for a in above) or f"pid {p['ppid']}, outside"),
            )
        )
        said += _lines("")
    said += _lines(f"session {tidy(session['session'])}", "")
    said += _facts(
        (
            ("command", session["command"]),
            ("policy", session["policy"]),
            ("file", session.get("policy_file", "")),
            ("workspace", session["workspace"]),
            ("uid", session["uid"]),
            ("started", _when(session["started_ns"])),
            ("risk", session.get("risk", "")),
            *watched.facts(session.get("fingerprint")),
            ("plan", _plan(session)),
            ("processes", session["process_count"]),
            ("recorded", f"{session['decisions']} decisions, {recorded:.1f}/s"),
            ("blocked", f"{session['blocked']}, {blocked:.1f}/s"),
            ("observed", f"{session.get('observed', 0)} would have been blocked" if session.get("observed") else ""),
            ("tier", state.daemon.get("tier", "")),
        )
    )
    more = session["process_count"] - len(session["processes"])
    return said + _lines("", f"{more} more processes are not listed") if more > 0 else said


def of_postures(state: State) -> Text:
    """What is enforced on this host, operation by operation."""
    posture = state.daemon.get("posture", {})
    said = _lines(f"{tidy(state.daemon.get('tier', '?'))} tier, as canaries proved it (agentmon doctor)", "")
    return said + [(f"{tidy(op):11}{tidy(v['posture']):10}", tidy(v["note"])) for op, v in posture.items()]


def of_approval(it: Approval) -> Text:
    """A question."""
    said = _lines(f"{tidy(it.does)} {tidy(it.object)}", "")
    said += _facts(
        (
            ("changed", "while it was held: look again" if it.changed else ""),
            ("leads to", it.file),
            ("rule", it.rule),
            ("reason", it.reason),
            ("session", it.session),
            ("process", it.pid or ""),
            ("command", shlex.join(it.command)),
            ("starts it", it.starting),
            ("program", it.program),
            ("in", it.directory),
            ("processes", it.processes if it.processes > 1 else ""),
            ("asked", _when(it.asked_ns)),
            ("until", _when(it.deadline_ns)),
            ("scope", it.scope_help),
            ("id", it.id),
        )
    )
    for title, texts in (("Parents, the nearest first:", it.parents), ("Before, the latest first:", it.recent)):
        said += [*_lines("", title), *(("  ", tidy(text)) for text in texts)] if texts else []
    return said


def of_keys() -> Text:
    """Help."""
    return [(f"{keys:16}", what) for keys, what in _KEYS] + _lines(*_NOTES)


_KEYS = (
    ("tab, shift+tab", "the next pane; the one before"),
    ("up, down, j, k", "move; page up, page down, home (g), end (G): the newest is followed"),
    ("enter", "all that is known of the selected row"),
    ("space", "pause the stream; go on"),
    ("/", "search in all fields; enter keeps the search, escape ends it"),
    ("f", "only the session of the selected row; again: all"),
    ("o", "only the next of the operations seen; after the last: all"),
    ("x, escape", "no filter"),
    ("t", "processes of sessions: show, hide"),
    ("p", "posture of each operation on this host"),
    ("y", "copy the selected row, or what is open (OSC 52, also over ssh)"),
    ("a, s, d", "pending approval: approve once, for the session; deny"),
    ("q", "quit; the fence stays"),
)
_NOTES = (
    "",
    "RECS/S: decisions recorded. What was allowed before and comes again is not, but is part of decisions/s.",
    "BLK/S, BLOCKED: operations blocked, a second and in all.",
    "",
    '"never shown": the stream was too fast for this view; the audit log has everything.',
)
