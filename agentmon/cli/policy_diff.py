# SPDX-License-Identifier: Apache-2.0
"""``agentmon policy diff``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from agentmon.cli.common import add_json, add_verb, print_json, say
from agentmon.cli.recorded import SESSION_HELP, add_log, recorded
from agentmon.cli.variables import add_variables, variables
from agentmon.model.text import clean

if TYPE_CHECKING:
    from agentmon.policy.diff import Side
    from agentmon.policy.recorded import RecordedAction

SAME, DIFFERENT = 0, 2


def register(verbs: Any) -> None:
    """Add the verb to those of ``agentmon policy``."""
    parser = add_verb(
        verbs,
        "diff",
        "show what changes in verdicts from one policy to another",
        """
        Show what changes from OLD to NEW: rules and defaults as written, with their packs merged,
        and then verdicts. Verdicts are compared on one example of every class of paths, and of
        every range of addresses and ports, and of every class of names at those, that either
        policy tells apart, and for every set of programs that `exe` conditions tell apart. So no
        difference means none, for any object. What is only observed is no verdict.
        Each line of verdicts is one example; `exe` is a program that it takes.

        With --session, the actions of recorded sessions are judged by both, too.
        """,
        """
        agentmon policy diff coding-agent my-agent.yaml
        agentmon policy diff old.yaml new.yaml --workspace /srv/w --home /home/me
        sudo agentmon policy diff old.yaml new.yaml --session all
        agentmon policy diff old.yaml new.yaml --json | jq -r 'select(.kind == "verdict") | .object'

        exit status: 0 the same verdicts, 2 differences (or too large to see all), 3 a policy is invalid
        """,
    )
    parser.add_argument("old", metavar="OLD", help="name or file")
    parser.add_argument("new", metavar="NEW", help="name or file")
    parser.add_argument("--session", "--sessions", action="append", default=[], metavar="SESSION", help=SESSION_HELP)
    add_log(parser)
    add_variables(parser)
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Compare. 2 when any verdict differs."""
    from agentmon.policy import diff
    from agentmon.policy.bind import bind_policy
    from agentmon.policy.changes import changes
    from agentmon.policy.load import load

    policies = load(args.old), load(args.new)
    old, new = (bind_policy(policy, variables(args)) for policy in policies)
    sessions = recorded(args, args.session) if args.session else ()
    out = Output(args.json)
    found, complete = changes(old, new)
    out.changes(found)
    differ = any(change["kind"] == "verdict" for change in found)
    code = DIFFERENT if differ or not complete else SAME
    if not complete:
        say("the policies are too large to compare on every path: there may be more differences")
    elif not differ and not args.json:
        observing = " (what is only observed is no verdict)" if old.observed or new.observed else ""
        print(f"the same verdict on every object{observing}")
    for session in sessions:
        old, new = (bind_policy(policy, variables(args, session)) for policy in policies)
        actions = diff.on_session(old, new, session)
        out.session(session.id, len(session.actions), actions)
        if actions:
            code = DIFFERENT
    return code


class Output:
    """Lines for people, or JSON."""

    def __init__(self, as_json: bool) -> None:
        self.json = as_json

    def changes(self, changes: Iterable[dict[str, Any]]) -> None:
        """What `agentmon.policy.changes` found."""
        rows = []
        for change in changes:
            if self.json:
                print_json(change)
            elif change["kind"] == "mode":
                print(f"mode of the policy: {change['old']} → {change['new']}")
            elif change["kind"] == "rule":
                self._rule(change)
            elif change["kind"] == "default":
                print(f"default of {change['operation']}: {change['old']} → {change['new']}")
            else:
                who = " ".join(filter(None, [change["exe"], change["when"] and f"({change['when']})"]))
                rows.append((change["operation"], change["object"], who, *_cells(change["old"], change["new"])))
        self._table(rows)

    def _rule(self, change: dict[str, Any]) -> None:
        what = f": {change['action']} {', '.join(change['operations'])}" if change["change"] != "changed" else ""
        what += ", only observed" if what and change["mode"] == "observe" else ""
        print(f"{change['change']} rule {change['rule']} of {change['pack']}{what}")
        for key, words in change["fields"].items():
            print(f"  {key}: {clean(words['old']) or '(none)'} → {clean(words['new']) or '(none)'}")

    def session(
        self, name: str, total: int, actions: Iterable[tuple[RecordedAction, Side | None, Side | None]]
    ) -> None:
        from agentmon.policy.changes import side

        rows = []
        for action, old, new in actions:
            exe = os.fsdecode(action.exe) if action.exe else ""
            if self.json:
                object_ = {"operation": action.operation.word, "object": action.object, "exe": exe or None}
                print_json({"kind": "recorded", "session": name, **object_, "old": side(old), "new": side(new)})
            rows.append((action.operation.word, action.object, exe, *_cells(side(old), side(new))))
        if self.json:
            print_json({"kind": "session", "session": name, "actions": total, "different": len(rows)})
            return
        self._table(rows)
        print(f"{name}: {len(rows)} of {total} distinct actions judged differently", flush=True)

    def _table(self, rows: Sequence[tuple[str, ...]]) -> None:
        if rows and not self.json:
            from agentmon.cli import render

            heads = ("OPERATION", "OBJECT", "EXE", "OLD", "NEW", "OLD RULE", "NEW RULE")
            cells = [(*row[:3], render.styled(row[3]), render.styled(row[4]), *row[5:]) for row in rows]
            render.console().print(render.table(heads, cells))


def _cells(old: dict[str, str | None], new: dict[str, str | None]) -> tuple[str, str, str, str]:
    sides = old, new
    verdicts = [said["verdict"] or "?" for said in sides]
    rules = [(said["rule"] or "default") if said["verdict"] else "" for said in sides]
    return verdicts[0], verdicts[1], rules[0], rules[1]
