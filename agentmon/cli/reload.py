# SPDX-License-Identifier: Apache-2.0
"""``agentmon reload``."""

from __future__ import annotations

import argparse
from typing import Any

from agentmon.cli.common import UsageError, add_json, add_verb, complain, connect, policy_reference, print_json, say
from agentmon.errors import AgentmonError, PolicyError


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "reload",
        "put a live session under another policy, or a changed one",
        """
        Read the policy of SESSION again, or another one, and put the session under it while its
        processes run. Each operation is judged by the old policy or by the new one, never by a
        mixture. What was answered for names of hosts stays reachable as far as the new policy
        names it. A plan, and where it is, stays. Files and connections that are open already stay
        open: release and enroll the processes again if those have to be judged.

        A policy that is invalid, too large, or does not fit into the kernel changes nothing: the
        one in force stays. Only root and members of the group `agentmon` may do this, and never a
        process inside a session. The audit log tells who put which policy in force.
        """,
        """
        sudo agentmon reload s-7f3a                        after its policy's file was edited
        sudo agentmon reload s-7f3a -p ./stricter.yaml
        sudo agentmon reload s-7f3a -p read-only --dry-run
        sudo agentmon reload --all

        exit status: 0 done, or nothing to do; 1 failure; 2 not allowed; 3 a policy is invalid
        """,
    )
    parser.add_argument("session", nargs="*", metavar="SESSION", help="its id, from `agentmon ps`")
    parser.add_argument("--all", action="store_true", help="every live session")
    parser.add_argument(
        "-p", "--policy", help="name of an installed policy, or a file (default: the session's own, read again)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would change, as `policy diff` does")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Each in turn; one that fails does not keep the others from it."""
    if bool(args.session) == args.all:
        raise UsageError("give the id of a session, or --all")
    worst = 0
    with connect(args) as client:
        # an ordinary user is told of no files, and refused by the daemon
        files = {s["session"]: s.get("policy_file", s["policy"]) for s in client.call("ps")["sessions"]}
        sessions = list(files) if args.all else args.session
        if not sessions and not args.json:
            print("no live sessions")
        for session in sessions:
            try:
                name = args.policy or files.get(session, "unknown")  # of no such session: the daemon says so
                if not name:
                    raise PolicyError(f"what policy session `{session}` is under was lost; give one with -p")
                reply = client.call("reload", session=session, policy=policy_reference(name), dry_run=args.dry_run)
            except AgentmonError as error:
                complain(args, error, session=session)
                if isinstance(error, PolicyError):  # found here, before the daemon was asked
                    say(f"session `{session}` stays under its policy, as it was")
                worst = max(worst, error.exit_code)
                continue
            _show(reply, as_json=args.json, dry_run=args.dry_run)
    return worst


def _show(reply: dict[str, Any], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json({key: value for key, value in reply.items() if key not in ("id", "ok")})
    elif not reply["changed"]:
        print(f"{reply['session']}  policy {reply['policy']}, unchanged")
    elif dry_run:
        _show_changes(reply)
    else:
        was = "changed" if reply["was"] == reply["policy"] else f"was {reply['was']}"
        print(f"{reply['session']}  policy {reply['policy']} ({was}), {reply['processes']} process(es)")


def _show_changes(reply: dict[str, Any]) -> None:
    from agentmon.cli.policy_diff import Output

    print(f"{reply['session']}  policy {reply['policy']}, not put in force:")
    Output(as_json=False).changes(reply["changes"])
    if reply["more"]:
        print(f"… and {reply['more']} more: agentmon policy diff")
    if not reply["comparable"]:
        say("the packs changed since the policy in force was compiled, by an earlier daemon: it cannot be compared")
    elif not reply["complete"]:
        say("the policies are too large to compare on every path: there may be more differences")
    elif not any(change["kind"] == "verdict" for change in reply["changes"]):
        print("the same verdict on every object")
