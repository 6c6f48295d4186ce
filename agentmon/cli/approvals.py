# SPDX-License-Identifier: Apache-2.0
"""``agentmon approvals``."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterator
from typing import Any

from agentmon.cli.common import add_json, add_verb, connect, print_json, say
from agentmon.control.protocol import UnreachableError
from agentmon.model.text import clean, plainly

RECONNECT_S = 0.5
#: By which `completion` knows what to offer.
HELD_HELP = "from `agentmon approvals`"
ASKED_HELP = "its id, from `agentmon approvals`"


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "approvals",
        "what is held, and what agents ask: all that waits for your answer",
        """
        Actions that a rule with `action: hold` keeps waiting in the kernel, each until `agentmon approve` or
        `agentmon deny`, or until nobody has answered in time, which denies it; and the questions that agents
        asked with `agentmon ask` and that have no answer yet. Of your own sessions, as root of all. Nobody
        inside a session may see or answer them.

        --follow tells each once, as it comes, and survives a restart of the daemon; --wait tells what waits as soon
        as something does, and ends.
        """,
        """
        agentmon approvals
        agentmon approve a-3
        agentmon answer q-7f3a "yes, to main"
        agentmon approvals --wait --json | jq -r .id
        agentmon approvals --follow --json | while read -r line; do …; done
        """,
    )
    parser.add_argument("--all", action="store_true", help="questions that have an answer too")
    until = parser.add_mutually_exclusive_group()
    until.add_argument("--wait", action="store_true", help="wait until there is something")
    until.add_argument("--follow", action="store_true", help="go on: each approval and question, once")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Ask and show."""
    if args.follow:
        return _follow(args)
    with connect(args) as client:
        reply = client.call("approvals", all=args.all)
        if args.wait and not (reply["approvals"] or reply["questions"]):
            for _ in _news(args):
                reply = client.call("approvals", all=args.all)
                if reply["approvals"] or reply["questions"]:
                    break
    _show(args, reply["approvals"], reply["questions"])
    return 0


def _follow(args: argparse.Namespace) -> int:
    """Until it is interrupted."""
    told: set[str] = set()
    connected = False
    while True:
        try:
            for _ in _news(args):
                connected = True
                with connect(args) as client:
                    reply = client.call("approvals", all=args.all)
                held = [a for a in reply["approvals"] if a["id"] not in told]
                questions = [q for q in reply["questions"] if q["question"] not in told]
                told = {*(a["id"] for a in reply["approvals"]), *(q["question"] for q in reply["questions"])}
                if held or questions:
                    _show(args, held, questions)
        except UnreachableError:
            if not connected:
                raise
        say("the daemon went away; waiting for the next")
        time.sleep(RECONNECT_S)


def _news(args: argparse.Namespace) -> Iterator[None]:
    """Now, and whenever something may have come. Ends with the daemon. Raises `UnreachableError`."""
    with connect(args) as client:
        for message in client.stream("watch"):
            event = message.get("event", {})
            asked = event.get("kind") == "approval" or event.get("operation") in ("asked", "answered")
            if message.get("ok") or "dropped" in message or asked:
                yield


def _show(args: argparse.Namespace, held: list[dict[str, Any]], questions: list[dict[str, Any]]) -> None:
    if args.json:
        for item in [*held, *({"id": asked["question"], **asked} for asked in questions)]:
            print_json(item)
        return
    from agentmon.cli import render

    for approval in held:
        print(_held(approval), flush=True)
    if not questions:
        if not held:
            print("nothing is held, nothing is asked")
        return
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


def _held(approval: dict[str, Any]) -> str:
    left_s = max(0, approval["deadline_ns"] - time.time_ns()) / 1e9
    because = f": {approval['reason']}" if approval["reason"] else ""
    now_ns, id_ = time.time_ns(), approval["id"]
    approve = f"agentmon approve {id_} [--session | --for 10m | --always]"
    lines = [
        f"{id_}  {approval['session']}  {approval['does']} {plainly(approval['object'], 5000)}",
        f"  which leads to {plainly(approval['file'], 5000)}" if approval.get("file") else "",
        "  CHANGED while it was held: look again" if approval["changed"] else "",
        f"  rule {approval['rule'] or 'default'}{because}",
        f"  asked by {_who(approval)}",
        f"  {starts}" if (starts := starting(approval)) else "",
        *(
            f"  and by {other['pid']}: {_words(other['command'])}"
            + (f"; {starts}" if (starts := starting(other)) else "")
            for other in approval.get("others", ())
        ),
        f"  and by {more} more" if (more := _more(approval)) else "",
        f"  under {' < '.join(approval['parents'])}" if approval["parents"] else "",
        *(f"  before, {_age((now_ns - deed['time_ns']) / 1e9)} ago: {deed_line(deed)}" for deed in approval["recent"]),
        f"  for the session means: {plainly(approval['scope_help'], 5000)}",
        f"  denied in {left_s:.0f} s, unless: {approve}; at once: agentmon deny {id_}",
    ]
    return "\n".join(clean(" ".join(line.split("\n"))) for line in lines if line)


def _words(command: list[str]) -> str:
    return plainly(shlex.join(command))


def _who(approval: dict[str, Any]) -> str:
    # what a process calls itself is its own choice; what it runs, and where, is not
    program, directory = (plainly(approval.get(name, "")) for name in ("program", "directory"))
    said = f"{approval['pid']}" + (f" ({program})" if program else "") + (f" in {directory}" if directory else "")
    return f"{said}: {_words(approval['command']) or approval['comm']}"


def starting(approval: dict[str, Any]) -> str:
    """What a program that was not started yet is to be started with; "" where its command line says it."""
    words = approval.get("arguments")
    if words is None:
        return ""
    return f"with the arguments: {_words(words) or 'none'} (as of now: you approve the program, with any)"


def _more(approval: dict[str, Any]) -> int:
    """Processes that wait for it too, and are not told of."""
    return int(approval.get("processes", 1)) - 1 - len(approval.get("others", ()))


def deed_line(deed: dict[str, Any]) -> str:
    """One thing that a session did, of an approval's `recent`."""
    verdict = "" if deed["verdict"] == "allow" else f"{deed['verdict']} "
    return plainly(f"{verdict}{deed['operation']} {deed['object']} by {deed['comm']}[{deed['pid']}]")


def answered(reply: dict[str, Any]) -> dict[str, Any]:
    """What the daemon took an answer for, as `--json` has it."""
    names = ("session", "answer", "operation", "does", "object")
    return {"id": reply["approval"]} | {name: reply[name] for name in names}


def _age(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds < 60 else f"{seconds / 60:.0f}m" if seconds < 3600 else f"{seconds / 3600:.0f}h"
