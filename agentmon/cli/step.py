# SPDX-License-Identifier: Apache-2.0
"""``agentmon step``."""

from __future__ import annotations

import argparse
from typing import Any

from agentmon.cli.common import add_json, add_verb, connect_inside, print_json


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "step",
        "inside a fence: begin or end a step of the plan",
        """
        For agents that do a step themselves, in one process: the process that runs this command
        (a shell) is in the step from `begin` to `end`, with all that it starts meanwhile. Only a
        step that `starts` with `mark`, and only in its turn; the kernel decides. What the step
        forbids is forbidden from then on, running `agentmon` included: the step ends with the
        process in any case. Exit status 2: it may not, and standard error says why.
        """,
        """
        agentmon step begin fetch && curl -O "$URL"; agentmon step end fetch --status $?
        """,
    )
    parser.add_argument("what", choices=("begin", "end"), help="begin it, or end it")
    parser.add_argument("name", metavar="NAME", help="the step's id in the plan")
    parser.add_argument(
        "--status", type=int, default=0, metavar="N", help="with end: its exit status, 0 to 255 (default: 0)"
    )
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Ask the daemon to mark our parent."""
    with connect_inside(args) as client:
        reply = client.call("step", name=args.name, ends=args.what == "end", status=args.status, parent=True)
    if args.json:
        print_json({"session": reply["session"], "step": reply["step"], "ends": reply["ends"]})
    return 0
