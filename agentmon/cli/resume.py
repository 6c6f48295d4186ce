# SPDX-License-Identifier: Apache-2.0
"""``agentmon resume``."""

from __future__ import annotations

import argparse
from typing import Any

from agentmon.cli.common import add_json, add_verb, connect, print_json


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "resume",
        "let a session go on that its plan has paused",
        """
        A step with `on-violation: pause` stops the whole session when something is against the
        plan. This lets it go on: what was denied stays denied. Its owner may, and root; never a
        process inside a session.
        """,
        """
        agentmon resume s-7f3a
        """,
    )
    parser.add_argument("session", metavar="SESSION", help="its id, from `agentmon ps`")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Let it go on."""
    with connect(args) as client:
        reply = client.call("resume", session=args.session)
    if args.json:
        print_json({"session": reply["session"], "processes": reply["processes"]})
    else:
        print(f"{reply['session']} goes on, {reply['processes']} process(es)")
    return 0
