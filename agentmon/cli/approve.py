# SPDX-License-Identifier: Apache-2.0
"""``agentmon approve``."""

from __future__ import annotations

import argparse
import math
from typing import Any

from agentmon.cli.approvals import HELD_HELP, answered
from agentmon.cli.common import UsageError, add_json, add_verb, connect, print_json
from agentmon.model.text import clean


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "approve",
        "let what is held go on",
        """
        Approve a held action: it goes on as if nothing had happened. The approval is for what was shown; if the file
        changed meanwhile, it is asked again.

        With --always, the policy is edited, too, so that sessions to come are not asked: a hole in the rule that
        holds, and a rule that allows this one operation on this one object. The edit is shown, and made once you
        agree. It is made only if it changes this verdict and no other, of all that the policy can be asked; else
        you are told what to edit. The file is the one that the session is under; for an installed policy NAME it
        is ~/.config/agentmon/policies/NAME-local.yaml, which includes NAME.
        """,
        """
        agentmon approve a-3
        agentmon approve a-3 --session
        agentmon approve a-3 --for 10m
        agentmon approve a-3 --always

        exit status: 0 approved; 1 failure, or --always found no edit or you did not agree (it still waits)
        """,
    )
    parser.add_argument("id", metavar="ID", help=HELD_HELP)
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--once", action="store_true", help="this one action (the default)")
    scope.add_argument(
        "--session", action="store_true", help="the same operation on the same object, until the session ends"
    )
    scope.add_argument("--for", dest="span", metavar="TIME", type=_span, help="the same, for so long: 90s, 10m, 2h, 1d")
    scope.add_argument("--always", action="store_true", help="for the session, and in its policy from now on")
    parser.add_argument("--yes", action="store_true", help="with --always: do not ask whether to write that")
    add_json(parser)
    parser.set_defaults(func=handle)


#: As the daemon has it.
LONGEST_S = 31 * 86400


def _span(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        seconds = math.nan
    if not 0 < seconds <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"`{text}` is no span of time: write 90s, 10m, 2h or 1d, at most 31d")
    return seconds


def handle(args: argparse.Namespace) -> int:
    """Tell the daemon."""
    if args.yes and not args.always:
        raise UsageError("--yes belongs to --always")
    more: dict[str, Any] = {}
    if args.always:
        from agentmon.cli import always

        written = always.write(args)
        if written is None:
            return 1
        more = written
    longer = args.session or args.span or args.always
    fields: dict[str, Any] = {"approval": args.id, "scope": "session" if longer else "once"}
    if args.span:
        fields["for_s"] = args.span
    with connect(args) as client:
        reply = client.call("approve", **fields)
    if args.json:
        print_json(answered(reply) | {"scope": reply["scope"], "for_s": reply["for_s"]} | more)
    else:
        span = f"for {args.span:g} s" if args.span else "for the session" if longer else "once"
        print(clean(f"{reply['approval']} of {reply['session']} approved {span}: {reply['does']} {reply['object']}"))
    return 0
