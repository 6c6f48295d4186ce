# SPDX-License-Identifier: Apache-2.0
"""The screen's lines as text with the names of styles. Text that somebody else chose is made fit to be shown here."""

from __future__ import annotations

import datetime as dt
import shlex
from typing import Any

from agentmon.cli import watched
from agentmon.cli.live.approvals import Approval, Approvals
from agentmon.cli.live.state import Item, State
from agentmon.cli.live.stream import Row
from agentmon.cli.live.words import Line, head, left, middle, number, right, span, tidy, width
from agentmon.cli.ps import LOSSES, steps
from agentmon.model.records import Record
from agentmon.model.text import plainly

SESSION_HEAD = "SESSION  POLICY           UID   AGE PROCS RECS/S BLK/S BLOCKED COMMAND"
_POSTURES = ("prevents", "stops", "detects", "blind")
_WHICH = "  (p: which)"


# ---- the daemon


def top(state: State, cells: int, now: dt.datetime) -> list[Line]:
    """Two lines on the daemon and its host; a third if something was lost."""
    daemon = state.daemon
    clock = f"{now:%H:%M:%S}"
    if state.link.up:
        word = ("enforcing", "good") if daemon.get("enforcing") else ("NOT ENFORCING (agentmon doctor)", "bad")
        kind = "embedded daemon" if daemon.get("embedded") else "daemon"
        first: Line = [("agentmon  ", "bold"), word]
        first.append((f"  {tidy(daemon.get('tier', '?'))} tier  {kind} {tidy(daemon.get('version', '?'))}", ""))
        first.append((f" pid {daemon.get('pid', '?')}", ""))
    else:
        first = [("agentmon  ", "bold"), (f" {head(tidy(state.link.why), cells - 21)} ", "alarm")]
    used = sum(len(text) for text, _ in first)
    if cells > used + len(clock):
        first.append((right(clock, cells - used), ""))
    counts = state.postures()
    posture = "  ".join(f"{word} {counts[word]}" for word in _POSTURES if counts[word])
    unit = "decisions/s" if "counters" in daemon else "recorded/s"
    room = max(cells - 38, 0)
    if len(posture + _WHICH) <= room:  # the numbers go before the hint
        posture += _WHICH
    rates = [number(state.total(what)) if state.link.up else "-" for what in (0, 1)]
    second: Line = [
        (left(posture, room), ""),
        (right(rates[0], 6) + f" {unit:11}  ", ""),
        (right(rates[1], 6) + " blocked/s", "bad" if rates[1] not in ("0", "-") else ""),
    ]
    lost = {name: n for name in LOSSES if (n := daemon.get("counters", {}).get(name, 0))}
    third: Line = [(head("lost or uncertain: " + ", ".join(f"{name} {n}" for name, n in lost.items()), cells), "warn")]
    return [first, second, third] if lost else [first, second]


# ---- sessions


def item(state: State, it: Item, cells: int, now_ns: int) -> Line:
    """A session, its plan, or a process."""
    if it.plan:
        return _plan(it.session, cells)
    if it.process is not None:
        p = it.process
        foreign = p["uid"] not in (it.session["uid"], -1)  # -1: a daemon that took over has not seen it act yet
        name = f"{it.branch}{p['pid']} {tidy(p['comm'])}"
        blocked = p["blocked"]
        return [
            (left(f"  {name}", 56), ""), (right(number(blocked) if blocked else "", 7), "bad"), (" ", ""),
            (head(f"uid {p['uid']}" if foreign else "", cells - 64), "warn"),
        ]  # fmt: skip
    s = it.session
    recorded, blocked = state.rates.of(s["session"])
    age = span((now_ns - s["started_ns"]) / 1e9)
    risk = s.get("risk", "normal")
    line: Line = [
        (left(tidy(s["session"]), 8) + " ", "name"),
        (left(middle(tidy(s["policy"]), 14), 14), ""),
        (f" {right(str(s['uid']), 5)} {right(age, 5)} {right(str(s['process_count']), 5)}", ""),
        (f" {right(number(recorded), 6)} ", ""),
        (right(number(blocked), 5) + " ", "bad" if blocked else ""),
        (right(number(s["blocked"]), 7) + " ", "bad" if s["blocked"] else ""),
    ]
    if risk != "normal":
        line.append((f"risk {tidy(risk)} ", "warn"))
    found = s.get("fingerprint") or {}
    if score := watched.score(found):
        line.append((f"{score} " if "to_go" in found else f"score {score} ", "warn" if "↑" in score else ""))
    used = sum(len(text) for text, _ in line)
    return [*line, (head(tidy(s["command"]), cells - used), "bold")]


def _plan(session: dict[str, Any], cells: int) -> Line:
    """Which step is where. What is going on and what may come next has the room before what was done."""
    stopped = f"PAUSED: {tidy(session['paused'])}  " if session.get("paused") else ""
    name = f"   plan {middle(tidy(session['plan']), 20)}  "
    return [
        (name, ""), (head(stopped, cells - width(name)), "alarm"),
        (head(tidy(steps(session["steps"])), cells - width(name) - width(stopped)), "name"),
    ]  # fmt: skip


# ---- the stream


def stream_title(state: State) -> Line:
    """What is shown of what came, and what is not."""
    stream = state.stream
    name = "EVERYTHING" if state.everything else "BLOCKED, AND NEWS"
    line: Line = [(f"{name}  {len(stream.shown)}", "")]
    if stream.filter:
        chosen = stream.filter
        said = [chosen.session, chosen.operation, f'"{tidy(chosen.text)}"' if chosen.text else ""]
        line[0] = (f"{name}  {len(stream.shown)} of {len(stream.rows)}", "")
        line.append((f"  only {', '.join(filter(None, said))} (x: all)", ""))
    if stream.paused:
        line.append((f"  PAUSED, {stream.behind} behind", ""))
    if stream.missed:
        line.append((f"  {stream.missed} never shown", ""))
    return line


def moment(time_ns: int) -> dt.datetime:
    """Here and now of a record."""
    return dt.datetime.fromtimestamp(time_ns / 1e9).astimezone()


def verdict(record: Record) -> tuple[str, str]:
    """The word for what happened, and its style."""
    if record.would:
        return "would", "warn"
    return record.verdict, {"deny": "bad", "kill": "bad", "audit": "warn"}.get(record.verdict, "dim")


def row(it: Row, cells: int) -> Line:
    """One row of the stream: what was tried on what, by which rule, and why."""
    record = it.record
    line: Line = [(f"{moment(record.time_ns):%H:%M:%S} ", "dim"), (left(tidy(record.session) or "-", 7), "name")]
    if record.kind != "decision":
        said = f"{record.kind} {record.operation} "
        parts = (record.comm, record.object, record.detail, record.reason)
        rest = " ".join(tidy(part) for part in parts if part)
        style = "alarm" if record.kind == "mismatch" else "dim"
        return [*line, (said, "bold"), (head(rest, cells - 16 - len(said)), style)]
    word, style = verdict(record)
    line += [(left(word, 6), style), (left(record.operation, 8), "bold")]
    room = cells - 30
    if room >= 66:
        line.append((left(f"{head(tidy(record.comm), 15)}[{record.pid}]", 19) + " ", ""))
        room -= 20
    often = f" x{it.count}" if it.count > 1 else ""
    for_object = room * 3 // 5  # a column of its own, however short the names are
    shown = middle(tidy(record.object), for_object - len(often))
    line += [(shown, ""), (often, "warn"), (" " * (for_object - width(shown) - len(often) + 2), "")]
    return [*line, (head(_why(record), room - for_object - 2), "name")]


def _why(record: Record) -> str:
    return (tidy(record.rule) or "default") + (f": {tidy(record.reason)}" if record.reason else "")


def full(it: Row, cells: int) -> list[Line]:
    """A row again, with what its columns have no room for."""
    record = it.record
    if record.kind != "decision":
        parts = (record.comm, record.object, record.detail, record.reason)
        return [[(f"{record.kind} {record.operation}", "bold")], [(" ".join(tidy(p) for p in parts if p), "")]]
    word, style = verdict(record)
    who = f"{tidy(record.comm)}[{record.pid}] "
    what = middle(tidy(record.object), cells - len(who) - len(word) - len(record.operation) - 2)
    return [
        [(who, ""), (word, style), (f" {record.operation} ", "bold"), (what, "")],
        [(head(_why(record), cells), "name")],
    ]


# ---- approvals


def approvals_title(approvals: Approvals) -> Line:
    """How many, and the keys."""
    return [(f"APPROVALS  {len(approvals.items)} pending   a once   s for the session   d deny", "")]


def waits(it: Approval, now_ns: int) -> str:
    """How long it still waits."""
    if not it.deadline_ns:
        return ""
    seconds = (it.deadline_ns - now_ns) / 1e9
    return span(seconds) if seconds > 0 else "late"


def approval(it: Approval, cells: int, now_ns: int) -> Line:
    """One of the list."""
    what = f"{it.does} {middle(tidy(it.object), max((cells - 15) * 3 // 5, 10))}"
    return [
        (right(waits(it, now_ns), 4) + " ", "warn"), (left(tidy(it.session), 7), "name"), (what + "  ", "bold"),
        (head(tidy(it.rule), max(cells - 14 - width(what), 0)), "name"),
    ]  # fmt: skip


#: Lines of it.
CONTEXT = 5


def context(it: Approval, cells: int) -> list[Line]:
    """What one needs to decide on it, in `CONTEXT` lines."""
    command = plainly(shlex.join(it.command))
    parents = " < ".join(map(tidy, it.parents))
    recent = "; ".join(map(tidy, it.recent))
    leads = "CHANGED while it was held; " if it.changed else ""
    leads += f"leads to {tidy(it.file)}; " if it.file else ""
    leads += f"{tidy(it.starting)}; " if it.starting else ""
    said = (
        ("why: ", leads + tidy(it.rule) + (f": {tidy(it.reason)}" if it.reason else "")),
        (f"by {it.pid}{f' and {it.processes - 1} more' if it.processes > 1 else ''}: ", command),
        ("under: ", parents),
        ("before: ", recent),
        ("s means: ", tidy(it.scope_help)),
    )
    return [[(label, "dim"), (head(text or "-", cells - len(label)), "")] for label, text in said]
