# SPDX-License-Identifier: Apache-2.0
"""``agentmon approvals``."""

from __future__ import annotations

import argparse
import time
from typing import Any

from agentmon.cli.common import add_json, add_verb, connect, print_json


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "approvals",
        "what agents ask of you",
        """
        The questions that agents asked with `agentmon ask` and that have no answer yet: of your own
        sessions, as root of all. Nobody inside a session may see or answer them.
        """,
        """
        agentmon approvals
        agentmon answer q-7f3a "yes, to main"
        """,
    )
    parser.add_argument("--all", action="store_true", help="those that have an answer too")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Ask and show."""
    with connect(args) as client:
        questions = client.call("approvals", all=args.all)["questions"]
    if args.json:
        for question in questions:
            print_json(question)
        return 0
    from agentmon.cli import render

    if not questions:
        print("nothing is asked")
        return 0
    rows = [
        (
            q["question"], q["session"], q["policy"], _age(time.time() - q["asked_ns"] / 1e9),
            " ".join(q["text"].split()), " ".join((q["answer"] or "").split()),
        )
        for q in questions
    ]  # fmt: skip
    heads = ("QUESTION", "SESSION", "POLICY", "AGE", "TEXT", "ANSWER")
    kept = len(heads) if args.all else -1
    render.console().print(render.table(heads[:kept], [row[:kept] for row in rows]))
    return 0


def _age(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds < 60 else f"{seconds / 60:.0f}m" if seconds < 3600 else f"{seconds / 3600:.0f}h"
