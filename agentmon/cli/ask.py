# SPDX-License-Identifier: Apache-2.0
"""``agentmon ask``."""

from __future__ import annotations

import argparse
import time
from typing import Any

from agentmon.cli.common import USAGE, add_json, add_verb, connect_inside, print_json, say

#: How often `--wait` asks.
INTERVAL_S = 1.0


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "ask",
        "inside a fence: ask the owner something",
        """
        For agents: put a question to the owner of the session that you are in, who sees it in
        `agentmon approvals` and `agentmon watch`, and answers with text by `agentmon answer`. It
        changes nothing by itself. Prints the question's id. A session may ask a few at once, and
        then one each 15 seconds; 8 may be without an answer. Without a question: what was asked,
        and answered.
        """,
        """
        agentmon ask "may I have api.example.com:443? the tests of src/client.py need it"
        agentmon ask --wait --timeout 600 "which branch do I push to?"
        agentmon ask
        """,
    )
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="what to ask, at most 2,000 characters")
    parser.add_argument("--wait", action="store_true", help="wait for the answer and print it")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="with --wait: give up after that (exit 1)")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Ask, and wait if told to."""
    if args.question is None:
        if args.wait:
            say("there is nothing to wait for: give a question")
            return USAGE
        with connect_inside(args) as client:
            show(client.call("asked")["questions"], as_json=args.json)
        return 0
    with connect_inside(args) as client:
        question = client.call("ask", text=args.question)
    if args.wait:
        return _wait(args, question["question"])
    if args.json:
        print_json(_data(question))
    else:
        print(question["question"])
    return 0


def show(questions: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print questions with their answers."""
    from agentmon.cli import telling

    for question in questions:
        if as_json:
            print_json(_data(question))
        else:
            print("\n".join(telling.answer(question)))
    if not questions and not as_json:
        print("no question was asked")


def _wait(args: argparse.Namespace, question: str) -> int:
    from agentmon.control.protocol import UnreachableError
    from agentmon.model.text import clean

    began = time.monotonic()
    while args.timeout is None or time.monotonic() - began < args.timeout:
        try:
            with connect_inside(args) as client:
                (found,) = client.call("asked", question=question)["questions"]
        except UnreachableError:
            found = {"answer": None}  # a daemon that is started again knows the question
        if found["answer"] is not None:
            if args.json:
                print_json(_data(found))
            else:
                print("\n".join(clean(line) for line in found["answer"].splitlines()))
            return 0
        time.sleep(INTERVAL_S)
    say(f"no answer to `{question}` within {args.timeout:g} s; it stays asked: `agentmon ask` shows the answer")
    return 1


def _data(question: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in question.items() if key not in ("id", "ok")}
