# SPDX-License-Identifier: Apache-2.0
"""``agentmon replay``."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from agentmon.cli.common import add_json, add_verb, print_json, say
from agentmon.cli.recorded import SESSION_HELP, add_log, recorded
from agentmon.cli.variables import add_variables, variables

if TYPE_CHECKING:
    from agentmon.policy.recorded import RecordedSession
    from agentmon.policy.replay import Outcome

DEFAULT_POLICY = "coding-agent"


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "replay",
        "what another policy would have done with a recorded session",
        """
        Judge each action of a recorded session again, by another policy, and show what would
        be different. Nothing is run. It needs no daemon, only the audit log.

        The log has each distinct (operation, object, rule) that was allowed once a session, so
        counts are of distinct actions. Which program a process ran is derived from the session's
        own exec records; where a verdict hangs on a program that cannot be known it is `unknown`.
        An action that was blocked ended what would have followed: a session cannot show that.
        """,
        """
        sudo agentmon replay s-7f3a -p my-agent.yaml
        sudo agentmon replay last -p coding-agent --all
        sudo agentmon replay all -p new.yaml --json | jq -r 'select(.change == "newly blocked") | .object'
        agentmon replay s-7f3a -p new.yaml --file copy-of-audit.db --workspace /srv/w

        exit status: 0 nothing would newly be blocked, 2 something would, 3 the policy is invalid
        """,
    )
    parser.add_argument("sessions", nargs="+", metavar="SESSION", help=SESSION_HELP)
    parser.add_argument("-p", "--policy", default=DEFAULT_POLICY, help="name or file (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="show unchanged actions too")
    add_log(parser)
    add_variables(parser, recorded=True)
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Replay each session. 2 if anything would newly be blocked."""
    from agentmon.policy.bind import bind_policy
    from agentmon.policy.load import load
    from agentmon.policy.replay import Change, Replay

    policy = load(args.policy)
    code = 0
    for session in recorded(args, args.sessions):
        outcomes = Replay(bind_policy(policy, variables(args, session))).session(session)
        if any(outcome.change is Change.BLOCKED for outcome in outcomes):
            code = 2
        shown = [o for o in outcomes if args.all or o.change is not Change.SAME]
        show(session, policy.name, shown, outcomes, as_json=args.json)
    return code


def show(
    session: RecordedSession, policy: str, shown: list[Outcome], outcomes: list[Outcome], *, as_json: bool
) -> None:
    """Print outcomes, and the counts of all of them."""
    from agentmon.policy.replay import summary

    counts = summary(outcomes)
    if as_json:
        for outcome in shown:
            print_json({"session": session.id, "policy": policy, **outcome_json(outcome)})
        print_json({"session": session.id, "policy": policy, "summary": counts})
        return
    if shown:
        from agentmon.cli import render

        heads = ("CHANGE", "WAS", "WOULD BE", "OPERATION", "OBJECT", "BY", "RULE", "WHY")
        render.console().print(render.table(heads, [_row(o, render.styled) for o in shown]))
    words = ", ".join(f"{count} {change}" for change, count in counts.items())
    print(f"{session.id} under {policy}: {len(outcomes)} distinct actions: {words}", flush=True)
    if counts["unknown"]:
        say("unknown: add --json and see `why`; `agentmon replay --help` says what is derived")


def _row(outcome: Outcome, styled: Any) -> tuple[object, ...]:
    action, would = outcome.action, outcome.verdict
    return (
        outcome.change.value, styled(action.verdict.word), styled(would.word if would is not None else "?"),
        action.operation.word, action.object, os.fsdecode(action.exe) if action.exe else f"({action.comm})",
        outcome.rule or ("" if would is None else "default"), outcome.why,
    )  # fmt: skip


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """One outcome for ``--json``."""
    action, would = outcome.action, outcome.verdict
    return {
        "change": outcome.change.value,
        "operation": action.operation.word,
        "object": action.object,
        "comm": action.comm,
        "exe": os.fsdecode(action.exe) if action.exe else None,
        "records": outcome.records,
        "was": {"verdict": action.verdict.word, "rule": action.rule, "reason": action.reason},
        "would_be": {
            "verdict": would.word if would is not None else None,
            "rule": outcome.rule,
            "source": outcome.source,
            "why": outcome.why,
        },
    }
