# SPDX-License-Identifier: Apache-2.0
"""``agentmon watch``."""

from __future__ import annotations

import argparse
import time
from typing import Any

from agentmon.cli.common import add_json, add_verb, connect, print_json, say

RECONNECT_S = 0.5


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "watch",
        "see what is blocked, as it happens",
        """
        One line per blocked operation: time, session, process, operation, object, rule and
        reason; also sessions that begin and end, steps of plans, what is held and answered, and
        a risk that rises. A restart of the daemon is survived. If you do not keep up, records are
        dropped and the number is told; the audit log has them.
        """,
        """
        agentmon watch
        agentmon watch --all --session s-7f3a
        agentmon watch --json | jq -r .object
        """,
    )
    parser.add_argument("--all", action="store_true", help="allowed operations and processes too")
    parser.add_argument("--session", metavar="SESSION", help="only this session")
    parser.add_argument("--once", action="store_true", help="end when the daemon ends, instead of waiting for the next")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Follow until interrupted."""
    from agentmon.control.protocol import UnreachableError

    shown = _Json() if args.json else _Lines()
    connected = waiting = False
    while True:
        try:
            with connect(args) as client:
                for message in client.stream("watch", all=args.all, session=args.session):
                    if message.get("ok"):
                        say("the daemon is back" if connected else "watching")
                        connected, waiting = True, False
                    elif "dropped" in message:
                        shown.dropped(message["dropped"])
                    elif "event" in message:
                        shown.event(message["event"])
        except UnreachableError:
            if not connected:
                raise
        if args.once:
            return 0
        if not waiting:
            say("the daemon went away; waiting for the next (the fence stays)")
            waiting = True
        time.sleep(RECONNECT_S)


class _Json:
    def event(self, event: dict[str, Any]) -> None:
        print_json(event)

    def dropped(self, count: int) -> None:
        print_json({"kind": "dropped", "count": count})


class _Lines:
    def __init__(self) -> None:
        from agentmon.cli import render

        self._render = render
        self._console = render.console()

    def event(self, event: dict[str, Any]) -> None:
        from agentmon.model.records import Record

        self._console.print(self._render.record_line(Record.from_json(event)))

    def dropped(self, count: int) -> None:
        say(f"{count} records were not shown; see `agentmon audit log`")
