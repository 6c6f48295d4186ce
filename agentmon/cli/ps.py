# SPDX-License-Identifier: Apache-2.0
"""``agentmon ps``."""

from __future__ import annotations

import argparse
import time
from typing import Any

from agentmon.cli import watched
from agentmon.cli.common import add_json, add_verb, connect, print_json

#: Counters that mean that something was lost, or could not be told.
LOSSES = (
    "ring_lost", "fork_lost", "malformed", "mismatches", "unattributed", "audit_lost", "watch_dropped", "no_state",
    "scratch_exhausted", "path_unstable", "signal_failed", "read_failed", "fork_refused", "program_missed",
    "unjudged",
)  # fmt: skip


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "ps",
        "list sessions, their processes, and what is enforced",
        """
        Show live sessions with their processes, where their plans are, how far they are from their
        baselines, the posture per operation (proven by canaries), and every counter of something
        lost. Ordinary users see their own sessions.
        """,
        """
        agentmon ps
        agentmon ps --json | jq .sessions
        """,
    )
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Ask and show."""
    with connect(args) as client:
        reply = client.call("ps")
    if args.json:
        print_json({key: value for key, value in reply.items() if key not in ("id", "ok")})
        return 0
    from agentmon.cli import render

    out = render.console()
    word = "enforcing" if reply["enforcing"] else "NOT ENFORCING (see `agentmon doctor`)"
    kind = "embedded daemon" if reply["embedded"] else "daemon"
    out.print(f"{word}, {reply['tier']} tier, {kind} {reply['version']}, pid {reply['pid']}")
    out.print(render.postures(reply["posture"]))
    rows: list[tuple[object, ...]] = []
    for session in reply["sessions"]:
        age = time.time() - session["started_ns"] / 1e9
        rows.append(
            (
                session["session"],
                session["policy"],
                session["uid"],
                _age(age),
                session["blocked"],
                _risk(session),
                session["command"],
            )
        )
        if "plan" in session:
            rows.append(("", f"  plan {session['plan']}", "", "", "", "", f"  {steps(session['steps'])}"))
        if session.get("paused"):
            rows.append(("", "  PAUSED", "", "", "", "", f"  {session['paused']}; see `agentmon resume`"))
        rows += [("", f"  {p['pid']}", p["uid"], "", p["blocked"], "", f"  {p['comm']}") for p in session["processes"]]
        if (more := session["process_count"] - len(session["processes"])) > 0:
            rows.append(("", f"  and {more} more", "", "", "", "", ""))
    out.print()
    if rows:
        out.print(render.table(("SESSION", "POLICY / PID", "UID", "AGE", "BLOCKED", "RISK", "COMMAND"), rows))
    else:
        out.print("no live sessions")
    for session in reply["sessions"]:
        for line in watched.lines(session):
            out.print(line, style="yellow")
    losses = {name: n for name in LOSSES if (n := reply.get("counters", {}).get(name, 0))}
    if losses:
        out.print("lost or uncertain: " + ", ".join(f"{name} {n}" for name, n in losses.items()), style="yellow")
    return 0


def _risk(session: dict[str, Any]) -> str:
    return " ".join(filter(None, (session["risk"], watched.score(session.get("fingerprint")))))


def steps(found: list[dict[str, Any]]) -> str:
    """The steps of a plan by where they are, in words."""
    by_state: dict[str, list[str]] = {}
    for step in found:
        by_state.setdefault(step["state"], []).append(step["step"])
    order = ("active", "enabled", "done", "failed", "waiting")
    return "; ".join(f"{state}: {', '.join(by_state[state])}" for state in order if state in by_state)


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f}s"
    if seconds < 3600:
        return f"{seconds / 60:.0f}m"
    return f"{seconds / 3600:.0f}h"
