# SPDX-License-Identifier: Apache-2.0
"""``agentmon top``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from agentmon.cli.common import add_verb, connect
from agentmon.errors import AgentmonError

#: Terminals that cannot place the cursor, or are none.
_DUMB = ("", "dumb", "unknown")
#: Terminals that are known to have no colours.
_MONOCHROME = ("vt100", "vt102", "vt220", "vt320", "ansi-m", "xterm-mono", "linux-m", "screen-m")


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "top",
        "a live view: sessions, what is blocked, what waits for approval",
        """
        Sessions with their processes and rates, the stream of blocked operations, and pending
        approvals, on one screen of 80 by 24 or more. The key `?` lists the keys. A restart of the
        daemon is survived. It needs a terminal; `watch` and `ps` (--json) do without one.
        NO_COLOR is honoured.
        """,
        """
        agentmon top
        agentmon top --session s-7f3a --all
        ssh -t HOST sudo agentmon top
        """,
    )
    parser.add_argument("--all", action="store_true", help="allowed operations and processes too")
    parser.add_argument("--session", metavar="SESSION", help="only this session")
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Show until the user quits."""
    _check_terminal()
    with connect(args) as client:  # says what is wrong before the screen is taken
        next(client.stream("watch", all=False, session=args.session))
    from agentmon.cli.live.app import Top
    from agentmon.cli.live.feed import Feed
    from agentmon.cli.live.inbox import Inbox
    from agentmon.cli.live.state import State

    inbox = Inbox()
    feed = Feed(lambda: connect(args), inbox, everything=args.all, session=args.session)
    app = Top(State(args.session, args.all), inbox, feed, terminal=sys.stdin.fileno())
    app.run(mouse=False)  # the terminal's own selection goes on working
    return app.return_code or 0


def _check_terminal() -> None:
    """Raises `AgentmonError` where no screen can be drawn."""
    remedy = "use `agentmon watch`, which needs none"
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise AgentmonError(f"`top` needs a terminal for its input, output and errors; {remedy}, or `ssh -t`")
    term = os.environ.get("TERM", "")
    if term in _DUMB:
        raise AgentmonError(f"`top` cannot draw on a terminal of the kind `{term}` (TERM); {remedy}")
    if term in _MONOCHROME:
        os.environ["NO_COLOR"] = "1"
