# SPDX-License-Identifier: Apache-2.0
"""``agentmon approvals``."""

from __future__ import annotations

import argparse
import time
from typing import Any

from agentmon.cli.common import add_json, add_verb, connect, print_json
from agentmon.model.text import clean

POLL_S = 0.5
#: By which `completion` knows what to offer.
HELD_HELP = "from `agentmon approvals`"


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "approvals",
        "what is held, and what agents ask: all that waits for your answer",
        """
        Actions that a rule with `action: hold` keeps waiting in the kernel, each until `agentmon approve` or
        `agentmon deny`, or until nobody has answered in time, which denies it; and the questions that agents
        asked with `agentmon ask` and that have no answer yet. Of your own sessions, as root of all. Nobody
        inside a session may see or answer them.
        """,
        """
        agentmon approvals
        agentmon approve a-3
        agentmon answer q-7f3a "yes, to main"
        agentmon approvals --wait --json | while read -r line; do …; done
        """,
    )
    parser.add_argument("--all", action="store_true", help="questions that have an answer too")
    parser.add_argument("--wait", action="store_true", help="wait until there is something")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Ask and show."""
    with connect(args) as client:
        while not ((reply := client.call("approvals", all=args.all))["approvals"] or reply["questions"]) and args.wait:
            time.sleep(POLL_S)
    held, questions = reply["approvals"], reply["questions"]
    if args.json:
        for item in [*held, *questions]:
            print_json(item)
        return 0
    from agentmon.cli import render

    for approval in held:
        print(_held(approval))
    if not questions:
        if not held:
            print("nothing is held, nothing is asked")
        return 0
    rows = [
        (
            q["question"], q["session"], q["policy"], _age(time.time() - q["asked_ns"] / 1e9),
            " ".join(q["text"].split()), " ".join((q["answer"] or "").split()),
        )
        for q in questions
    ]  # fmt: skip
    heads = ("QUESTION", "SESSION", "POLICY", "AGE", "TEXT", "ANSWER")
    kept = len(heads) if args.all else -1
    render.console().print(render.table(heads[:kept], [row[:kept] for row in rows]))
    return 0


def _held(approval: dict[str, Any]) -> str:
    left_s = max(0, approval["deadline_ns"] - time.time_ns()) / 1e9
    because = f": {approval['reason']}" if approval["reason"] else ""
    lines = [
        f"{approval['id']}  {approval['session']}  {approval['operation']} {approval['object']}",
        "  CHANGED while it was held: look again" if approval["changed"] else "",
        f"  rule {approval['rule'] or 'default'}{because}",
        f"  asked by {approval['pid']}: {' '.join(approval['command']) or approval['comm']}",
        f"  denied in {left_s:.0f} s, unless: agentmon approve {approval['id']} [--session | --for 10m | --always]",
    ]
    return "\n".join(clean(" ".join(line.split("\n"))) for line in lines if line)


def _age(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds < 60 else f"{seconds / 60:.0f}m" if seconds < 3600 else f"{seconds / 3600:.0f}h"
