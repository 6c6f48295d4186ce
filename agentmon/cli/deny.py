# SPDX-License-Identifier: Apache-2.0
"""``agentmon deny``."""

from __future__ import annotations

import argparse
from typing import Any

from agentmon.cli.approvals import HELD_HELP, answered
from agentmon.cli.common import add_json, add_verb, connect, print_json
from agentmon.model.text import clean


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "deny",
        "refuse what is held",
        """
        Deny a held action: it fails with EPERM, and the reason is recorded. A program that was
        stopped at its start, as most are without BPF LSM, is killed.
        """,
        """
        agentmon deny a-3
        agentmon deny a-3 --reason "not before the review"
        """,
    )
    parser.add_argument("id", metavar="ID", help=HELD_HELP)
    parser.add_argument("--reason", default="", metavar="TEXT", help="what is recorded, and told to the agent")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Tell the daemon."""
    with connect(args) as client:
        reply = client.call("deny", approval=args.id, reason=args.reason)
    if args.json:
        print_json(answered(reply))
    else:
        print(clean(f"{reply['approval']} of {reply['session']} denied: {reply['does']} {reply['object']}"))
    return 0
