# SPDX-License-Identifier: Apache-2.0
"""``agentmon run``: a command that is fenced before its first instruction."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from agentmon.cli import watched
from agentmon.cli.common import (
    SOCKET_VARIABLE,
    UsageError,
    add_verb,
    connect,
    plan_reference,
    policy_reference,
    say,
    workspace_directory,
)
from agentmon.model.text import attempt, clean


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "run",
        "run a command inside a fence",
        """
        Run CMD with a policy in force before its first instruction, and for everything it
        starts. Input, output, signals, job control and the exit status are CMD's own. If no
        daemon answers, root gets one for as long as the session lives. With sudo, CMD runs
        as the user who called sudo. If `run` or the daemon dies, the fence stays. What CMD
        starts may ask `agentmon why`; AGENTMON_SOCKET in its environment leads there.
        """,
        """
        sudo agentmon run -- claude
        sudo agentmon run -p ./policy.yaml --workspace ~/src/app -- make test
        sudo agentmon run --plan release.yaml -- ./release.sh
        sudo agentmon run --user agent -- python3 bot.py
        sudo agentmon run --tell -- ./agent.sh    its model reads what it prints
        """,
    )
    parser.add_argument(
        "-p", "--policy", default="coding-agent", help="name of an installed policy, or a file (default: coding-agent)"
    )
    parser.add_argument("--plan", metavar="FILE", help="a plan that CMD follows besides; CMD itself is of no step")
    parser.add_argument("--workspace", metavar="DIR", help="what `{workspace}` means (default: the current directory)")
    watched.add_options(parser)
    parser.add_argument("--user", metavar="USER", help="run CMD as this user (root only)")
    parser.add_argument("--as-root", action="store_true", help="with sudo: stay root")
    parser.add_argument("--allow-blind", action="store_true", help="go on although a canary was not stopped")
    parser.add_argument(
        "--tell", action="store_true", help="say on standard error what is blocked, and what waits, as it happens"
    )
    parser.add_argument("--quiet", action="store_true", help="no summary of what was blocked")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD", help="the command and its arguments")
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Fence, release, wait, sum up."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("no command given; try `agentmon run -- CMD`")
    from agentmon.cli.aloud import Aloud
    from agentmon.cli.child import Child, target_user
    from agentmon.cli.embedded import connect_or_start
    from agentmon.cli.supervise import SIGNALS, supervise
    from agentmon.errors import AgentmonError

    target = target_user(args.user, as_root=args.as_root)
    workspace = workspace_directory(args.workspace)
    _warn_of_own_code(workspace)
    policy = policy_reference(args.policy)
    watching = watched.fields(args, command[0])
    plan = plan_reference(args.plan) if args.plan else None
    client = connect_or_start(args)
    import signal

    # Blocked from here on, so that none is lost between the fork and the wait.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = Child(command, target, mask, {SOCKET_VARIABLE: str(client.path.absolute())})
    try:
        reply = client.call(
            "enroll", pid=child.pid, policy=policy, workspace=workspace, uid=target.uid, waiting=True,
            command=" ".join(command)[:1000], **({"plan": plan} if plan else {}), **watching,
        )  # fmt: skip
        if not reply["enforcing"]:
            message = "this host does not enforce everything; see `agentmon doctor`"
            if not args.allow_blind:
                raise AgentmonError(f"{message} (to run all the same: --allow-blind)")
            say(f"warning: {message}")
        if reply["unheld"]:
            say(f"note: this host cannot hold all that the policy holds, and denies it: {', '.join(reply['unheld'])}")
        for note in reply["notes"]:
            say(f"note: {note}")
        close = {finding["fd"]: finding for finding in reply["findings"] if finding["fd"] is not None}
        for fd, finding in sorted(close.items()):
            if fd <= 2:
                kept = f"`{finding['object']}` stays open as descriptor {fd}"
                say(f"note: {kept}, although the policy denies its {finding['operation']}")
            else:
                say(f"closed inherited descriptor {fd}, `{finding['object']}`: {finding['reason']}")
    except BaseException:
        child.kill()
        raise
    failure = child.release([fd for fd in close if fd > 2], unjudged=reply["tier"] != "lsm")
    aloud = Aloud(client.path, reply["session"]) if args.tell else None
    if aloud:
        aloud.start()
    status = supervise(child.pid, failure)
    if aloud:
        aloud.stop()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return _finish(client, reply["session"], child.pid, command[0], status, child.failure(failure), quiet=args.quiet)


def _warn_of_own_code(workspace: str) -> None:
    """An agent that may write agentmon's own program decides what root runs next."""
    import agentmon

    code = os.path.dirname(os.path.realpath(agentmon.__file__))
    if os.geteuid() == 0 and os.path.commonpath([workspace, code]) == workspace:
        say(
            f"warning: the workspace `{workspace}` contains agentmon itself, so the agent can change what root runs"
            " next; cd to the project it should work on, or give --workspace"
        )


def _finish(
    client: Any, session: str, pid: int, name: str, status: int, failed: tuple[int, str] | None, *, quiet: bool
) -> int:
    from agentmon.errors import AgentmonError

    try:
        summary = client.call("summary", session=session)
    except AgentmonError as error:
        say(f"{error} (the fence of session `{session}` stayed in force)")
        summary = {"blocked": 0, "blocked_kinds": [], "last_blocked_exec": None, "live": False}
    code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    last = summary["last_blocked_exec"]
    denied = last is not None and last["pid"] == pid
    if failed is not None:
        import errno

        number, path = failed
        code = 127 if number == errno.ENOENT else 126
        why = os.strerror(number).lower()
        if denied and number == errno.EPERM:
            why = f"denied by {_rule(last)}"
        elif code == 127:
            why = "not found"
        say(f"cannot run `{path or name}`: {why}")
    elif denied and last["first"] and os.WIFSIGNALED(status):
        code = 126
        say(f"cannot run `{name}`: denied by {_rule(last)}")
    if not quiet:
        _sum_up(summary, session)
    return code


def _rule(last: dict[str, Any]) -> str:
    return f"rule `{last['rule']}`: {last['reason']}" if last["rule"] else f"the policy ({last['reason']})"


def _sum_up(summary: dict[str, Any], session: str) -> None:
    if summary["live"]:
        count = summary.get("process_count", 0)
        say(f"session `{session}` goes on with {count} process(es) in the background, fenced")
    if rose := summary.get("rose"):
        say(f"session `{session}`: its risk rose: {rose['detail']}: {rose['reason']}")
    if summary.get("observed"):
        say(
            f"session `{session}`: {summary['observed']} operation(s) would have been blocked; see `agentmon audit log`"
        )
    if not summary["blocked_kinds"]:
        return
    total = sum(kind["count"] for kind in summary["blocked_kinds"])
    say(f"session `{session}`: {total} operation(s) blocked")
    for kind in summary["blocked_kinds"][:20]:
        rule = kind["rule"] or ("the plan" if kind["operation"] == "refused" else "default")
        times = f"{kind['count']}x " if kind["count"] > 1 else ""
        reason = f" ({kind['reason']})" if kind["reason"] else ""
        print(clean(f"  {times}{attempt(kind['operation'], kind['object'])}: {rule}{reason}"), file=sys.stderr)
    if len(summary["blocked_kinds"]) > 20:
        print("  … and more: agentmon audit log", file=sys.stderr)


__all__ = ["connect", "handle", "register"]
