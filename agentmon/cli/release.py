# SPDX-License-Identifier: Apache-2.0
"""``agentmon release``."""

from __future__ import annotations

import argparse
from typing import Any

from agentmon.cli.common import UsageError, add_json, add_verb, connect, print_json


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "release",
        "take the fence away from a session",
        """
        End a session. Its processes run on, unfenced. Only root and members of the group
        `agentmon` may do this, and never a process inside a session.
        """,
        """
        sudo agentmon release s-7f3a
        sudo agentmon release --all
        """,
    )
    parser.add_argument("session", nargs="*", metavar="SESSION", help="its id, from `agentmon ps`")
    parser.add_argument("--all", action="store_true", help="every live session")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Release each."""
    if bool(args.session) == args.all:
        raise UsageError("give the id of a session, or --all")
    with connect(args) as client:
        sessions = [s["session"] for s in client.call("ps")["sessions"]] if args.all else args.session
        if not sessions and not args.json:
            print("no live sessions")
        for session in sessions:
            reply = client.call("release", session=session)
            if args.json:
                print_json({"session": reply["session"], "processes": reply["processes"]})
            else:
                print(f"{reply['session']} released, {reply['processes']} process(es) run on unfenced")
    return 0
