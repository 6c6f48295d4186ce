# SPDX-License-Identifier: Apache-2.0
"""``agentmon answer``."""

from __future__ import annotations

import argparse
from typing import Any

from agentmon.cli.approvals import ASKED_HELP
from agentmon.cli.common import add_json, add_verb, connect, print_json


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "answer",
        "answer a question of an agent",
        """
        The agent reads the text with `agentmon ask`, or is shown it by its adapter. It allows nothing:
        to allow something, change the policy and `agentmon reload`.
        """,
        """
        agentmon answer q-7f3a "no; use the test server on port 8080"
        """,
    )
    parser.add_argument("question", metavar="QUESTION", help=ASKED_HELP)
    parser.add_argument("text", metavar="TEXT", help="what to answer, at most 2,000 characters")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Tell the daemon."""
    with connect(args) as client:
        question = client.call("answer", question=args.question, text=args.text)
    if args.json:
        print_json({key: value for key, value in question.items() if key not in ("id", "ok")})
    else:
        print(f"{question['question']}: answered, for session {question['session']}")
    return 0
