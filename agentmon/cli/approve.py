# SPDX-License-Identifier: Apache-2.0
"""``agentmon approve``."""

from __future__ import annotations

import argparse
from typing import Any

from agentmon.cli.common import add_json, add_verb, connect, print_json


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "approve",
        "let what is held go on",
        """
        Approve a held action: it goes on as if nothing had happened. The approval is for what was shown; if the file
        changed meanwhile, it is asked again.
        """,
        """
        agentmon approve a-3
        agentmon approve a-3 --session
        agentmon approve a-3 --for 10m
        """,
    )
    parser.add_argument("id", metavar="ID", help="from `agentmon approvals`")
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--once", action="store_true", help="this one action (the default)")
    scope.add_argument(
        "--session", action="store_true", help="the same operation on the same object, until the session ends"
    )
    scope.add_argument("--for", dest="span", metavar="TIME", type=_span, help="the same, for so long: 90s, 10m, 2h")
    add_json(parser)
    parser.set_defaults(func=handle)


def _span(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"`{text}` is no span of time: write 90s, 10m or 2h") from None


def handle(args: argparse.Namespace) -> int:
    """Tell the daemon."""
    fields: dict[str, Any] = {"approval": args.id, "scope": "session" if args.session or args.span else "once"}
    if args.span:
        fields["for_s"] = args.span
    with connect(args) as client:
        reply = client.call("approve", **fields)
    if args.json:
        print_json({"id": reply["approval"], "session": reply["session"], "answer": reply["answer"]})
    else:
        print(f"{reply['id']} of {reply['session']} approved")
    return 0
