# SPDX-License-Identifier: Apache-2.0
"""``agentmon enroll``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from agentmon.cli import watched
from agentmon.cli.common import add_json, add_verb, plan_reference, policy_reference, print_json, say


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "enroll",
        "fence a process that runs already, and all below it",
        """
        Put PID and all its descendants into a new session. They are marked in the kernel first,
        then stopped for a moment while what they hold already (open files, sockets, mappings,
        their program) is judged. If the policy would deny any of it, nothing is changed and
        exit status 2 says so: accept each by its name, or all. Processes that may have come
        from PID but cannot be attributed any more are listed. If no daemon answers, root gets
        one for as long as the session lives.

        An ordinary user's processes must have no_new_privs (see setpriv(1)).
        """,
        """
        sudo agentmon enroll 4711
        sudo agentmon enroll 4711 -p ./policy.yaml --accept 4711:fd7
        """,
    )
    parser.add_argument("pid", type=int, metavar="PID", help="the process")
    parser.add_argument(
        "-p", "--policy", default="coding-agent", help="name of an installed policy, or a file (default: coding-agent)"
    )
    parser.add_argument("--plan", metavar="FILE", help="a plan that it follows from now on; it is of no step yet")
    parser.add_argument(
        "--workspace", metavar="DIR", help="what `{workspace}` means (default: the process's directory)"
    )
    watched.add_options(parser)
    parser.add_argument(
        "--accept", action="append", default=[], metavar="ID", help="let it keep this (such as 4711:fd7), or `all`"
    )
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Enrol, and say what was found."""
    from agentmon.cli.embedded import connect_or_start
    from agentmon.control.protocol import RefusedError
    from agentmon.errors import AgentmonError

    try:
        uid = os.stat(f"/proc/{args.pid}").st_uid
        workspace = os.path.realpath(args.workspace or os.readlink(f"/proc/{args.pid}/cwd"))
    except FileNotFoundError:
        raise AgentmonError(f"there is no process `{args.pid}`; see `ps -e`") from None
    except PermissionError:
        if os.geteuid() == 0:
            raise AgentmonError(f"the directory of process `{args.pid}` cannot be read; give --workspace") from None
        raise AgentmonError(f"process `{args.pid}` is not yours; use sudo") from None
    policy = policy_reference(args.policy)
    plan = plan_reference(args.plan) if args.plan else None
    with connect_or_start(args) as client:
        try:
            reply = client.call(
                "enroll", pid=args.pid, policy=policy, workspace=workspace, accept=args.accept,
                uid=uid if os.geteuid() == 0 else None, **({"plan": plan} if plan else {}),
                **watched.fields(args, f"/proc/{args.pid}/exe"),
            )  # fmt: skip
        except RefusedError as error:
            for finding in error.reply.get("findings", []):
                say(f"{finding['id']}: {_finding(finding)}")
            raise
    if args.json:
        print_json({key: value for key, value in reply.items() if key not in ("id", "ok")})
    else:
        print(f"{reply['session']}  policy {reply['policy']}, {len(reply['processes'])} process(es)")
    for finding in reply["findings"]:
        say(f"accepted {finding['id']}: {_finding(finding)}")
    for note in reply["notes"]:
        say(f"note: {note}")
    for orphan in reply["orphans"]:
        say(
            f"note: process {orphan['pid']} (`{orphan['comm']}`, {orphan['why']}) may have come from it, "
            "but cannot be attributed: it is not fenced"
        )
    if reply["unheld"]:
        say(f"note: this host cannot hold all that the policy holds, and denies it: {', '.join(reply['unheld'])}")
    for pid in reply["unstoppable"]:
        say(f"note: process {pid} did not stop in time; what it holds may have changed while it was looked at")
    if not reply["enforcing"]:
        say("warning: this host does not enforce everything; see `agentmon doctor`")
    return 0


def _finding(finding: dict[str, Any]) -> str:
    rule = f"rule `{finding['rule']}`: " if finding["rule"] else ""
    return f"{finding['operation']} `{finding['object']}` ({finding['what']}): {rule}{finding['reason']}"
