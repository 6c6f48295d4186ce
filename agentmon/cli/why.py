# SPDX-License-Identifier: Apache-2.0
"""``agentmon why``."""

from __future__ import annotations

import argparse
import time
from typing import Any

from agentmon.cli import watched
from agentmon.cli.common import add_json, add_verb, connect_inside, print_json, say

#: How often `--follow` asks.
INTERVAL_S = 0.5


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "why",
        "inside a fence: what was blocked last, by which rule, and what is allowed instead",
        """
        For agents, and for what they run: what was blocked last in the session that you are in, with
        the rule, its reason, and what the policy allows instead. Nobody inside a session sees more
        than that session, root neither. From outside, name a session; of one that is watched by a
        baseline, it is also told why its risk rose.
        """,
        """
        agentmon why
        agentmon why --last 1 --json | jq -r .reason
        agentmon why --follow s-7f3a
        """,
    )
    parser.add_argument("session", nargs="?", metavar="SESSION", help="from outside: which (see `agentmon ps`)")
    parser.add_argument("--last", type=int, default=10, metavar="N", help="at most so many, 1 to 100 (default: 10)")
    parser.add_argument("--follow", action="store_true", help="go on: one line for each, until the session ends")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Ask and show."""
    number: int | None = None
    while True:
        # each time anew: a daemon that is started again meanwhile is found again
        with connect_inside(args) as client:
            reply = client.call("why", session=args.session, limit=args.last, after=number)
        show(reply, as_json=args.json, follow=args.follow)
        if not args.follow:
            return 0
        if number is not None and reply["number"] < number:
            say("the daemon was started anew")
        number = reply["number"]
        time.sleep(INTERVAL_S)


def show(reply: dict[str, Any], *, as_json: bool, follow: bool) -> None:
    """Print what was blocked, oldest first."""
    from agentmon.cli import telling

    if as_json:
        for denial in reply["denials"]:
            print_json({"session": reply["session"], "policy": reply["policy"], **denial})
        return
    if not follow:
        for line in watched.why(reply):
            print(line, flush=True)
    if reply["left_out"]:
        say(f"{reply['left_out']} earlier ones are not shown; see --last")
    for line in telling.denials(reply["denials"]):
        print(line, flush=True)
    if not reply["denials"] and not follow:
        print(f"nothing was blocked in session {reply['session']} (policy {reply['policy']})")
