# SPDX-License-Identifier: Apache-2.0
"""How things look in a terminal. The only place that knows rich; it honours NO_COLOR."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentmon.model.records import Record
from agentmon.model.text import clean

_STYLE = {
    "prevents": "green", "stops": "green", "detects": "yellow", "blind": "bold red", "attached": "green",
    "deny": "bold red", "kill": "bold red", "audit": "yellow", "allow": "dim", "mismatch": "bold magenta",
    "ok": "green", "bad": "bold red", "warn": "yellow",
}  # fmt: skip


def console() -> Console:
    """Standard output: as wide as the terminal, unlimited when it is not one."""
    out = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if not sys.stdout.isatty():
        out.width = 10_000
    return out


def styled(word: str) -> Text:
    """A word of ours in its usual colour."""
    return Text(word, style=_STYLE.get(word, ""))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table without borders; cells are text, or already styled."""
    result = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for head in heads:
        result.add_column(head, overflow="fold")
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else Text(clean(str(cell))) for cell in row))
    return result


def postures(posture: dict[str, Any]) -> Table:
    """The posture per operation, with its honest note."""
    return table(
        ("OPERATION", "POSTURE", "HOLD", "NOTE"),
        [(word, styled(value["posture"]), value["hold"], value["note"]) for word, value in posture.items()],
    )


def record_line(record: Record) -> Text:
    """One record as one line of `watch` and of `audit log`."""
    moment = dt.datetime.fromtimestamp(record.time_ns / 1e9).astimezone()
    line = Text(f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d} ", style="dim")
    line.append(f"{record.session or '-':7} ", style="cyan")
    if record.kind == "decision":
        line.append(f"{clean(record.comm)}[{record.pid}] ")
        if record.would:
            line.append(f"would {record.would} ", style="yellow")
        else:
            line.append(f"{record.verdict} ", style=_STYLE.get(record.verdict, ""))
        line.append(record.operation, style="bold")
        line.append(" " * bool(record.object) + clean(record.object))
        line.append(f"  {record.rule or 'default'}", style="cyan")
        if record.reason:
            line.append(f": {clean(record.reason)}")
        if record.flags:
            line.append(f" [{record.flags}]", style="dim")
        if record.detail:
            line.append(f" ({clean(record.detail)})", style="dim")
    elif record.kind == "mismatch":
        line.append(f"MISMATCH {clean(record.detail)}", style=_STYLE["mismatch"])
    else:
        who = f"{clean(record.comm)}[{record.pid}] " if record.pid else ""
        line.append(f"{record.kind} {record.operation} ", style="bold")
        said = [who.strip(), clean(record.object), clean(record.detail), clean(record.reason)]
        line.append(" ".join(filter(None, said)), style="dim")
    return line
