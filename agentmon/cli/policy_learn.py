# SPDX-License-Identifier: Apache-2.0
"""``agentmon policy learn``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmon.cli.common import add_json, add_verb, print_json, say
from agentmon.cli.recorded import SESSION_HELP, add_log, recorded
from agentmon.cli.variables import add_variables, variables
from agentmon.errors import AgentmonError
from agentmon.model.text import attempt, clean

if TYPE_CHECKING:
    from agentmon.policy.learn import KeptOut, Learnt


def register(verbs: Any) -> None:
    """Add the verb to those of ``agentmon policy``."""
    parser = add_verb(
        verbs,
        "learn",
        "write a policy from recorded sessions",
        """
        Write a policy that lets recorded sessions do again what they did: it includes a pack, and
        has rules for what they did beyond it. Paths are generalised (workspace, home and temporary
        directory; versions, hashes and numbers; several siblings to their directory), addresses
        are exact. A comment says from how many distinct actions each rule comes.

        Never learnt: what a blocking rule of the pack forbids; files whose names look like keys,
        tokens or credentials; and, without --blocked, what was blocked when it was recorded. They
        are listed at the end of the policy, and what it would still deny of the same sessions is
        said on standard error. Read the result before you rely on it: what an agent did once is
        not by that what it ought to do.
        """,
        """
        sudo agentmon policy learn s-7f3a > my-agent.yaml
        sudo agentmon policy learn s-7f3a s-80b1 --include coding-agent -o my-agent.yaml --name my-agent
        sudo agentmon policy learn last --strict | less
        agentmon policy check my-agent.yaml && sudo agentmon replay all -p my-agent.yaml

        exit status: 0 written, 1 no such session or FILE exists, 3 the pack is invalid
        """,
    )
    parser.add_argument("sessions", nargs="+", metavar="SESSION", help=SESSION_HELP)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="a new file (default: standard output)")
    parser.add_argument("--name", default=None, help="the policy's name (default: that of FILE, or `learnt`)")
    parser.add_argument(
        "--include", action="append", metavar="PACK", help="a pack to build on; may be repeated (default: base)"
    )
    parser.add_argument(
        "--strict", action="store_true", help="deny by default everywhere: learn programs and files read, too"
    )
    parser.add_argument(
        "--blocked", action="store_true", help="learn what was blocked by a default or another rule, too"
    )
    add_log(parser)
    add_variables(parser, recorded=True)
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Learn, write, and say what would still be denied."""
    from agentmon.policy.bind import bind_policy
    from agentmon.policy.compile import compile_policy
    from agentmon.policy.learn import learn
    from agentmon.policy.load import load_text

    if args.output and args.output.exists():
        raise AgentmonError(f"`{args.output}` exists already; give another name, or remove it")
    chosen = [(session, variables(args, session)) for session in recorded(args, args.sessions)]
    name = args.name or (args.output.name.partition(".")[0] if args.output else "learnt")
    learnt = learn(chosen, name=name, include=args.include or ["base"], strict=args.strict, blocked=args.blocked)
    for _, values in chosen:
        compile_policy(bind_policy(load_text(learnt.text, f"{name}.yaml"), values))  # too large is said now
    if args.output:
        try:
            with args.output.open("x", encoding="utf-8") as file:
                file.write(learnt.text)
        except OSError as error:
            raise AgentmonError(f"cannot write `{args.output}`: {(error.strerror or str(error)).lower()}") from error
    if args.json:
        print_json(_as_json(name, learnt))
    elif not args.output:
        sys.stdout.write(learnt.text)
        sys.stdout.flush()
    _report(name, learnt)
    return 0


def _report(name: str, learnt: Learnt) -> None:
    say(
        f"policy `{name}`: {len(learnt.rules)} rules from {learnt.learnt} distinct actions; {learnt.allowed} more were"
        f" allowed already, {len(learnt.kept_out)} kept out, {learnt.unknown} unknown"
    )
    for told in sorted(learnt.undecided):
        what = attempt(told.operation.word, clean(told.object))
        say(f"{what}: allowed, though it was also blocked ({told.why.partition(':')[0]}); write that rule again")
    for session, outcomes in learnt.denied.items():
        say(f"session `{session}`: it would still deny {len(outcomes)} of its actions")
        for o in outcomes:
            what = attempt(o.action.operation.word, clean(o.action.object))
            print(f"  {what}: {o.rule or 'default'}", file=sys.stderr)


def _as_json(name: str, learnt: Learnt) -> dict[str, Any]:
    return {
        "policy": name,
        "text": learnt.text,
        "learnt": learnt.learnt,
        "allowed": learnt.allowed,
        "unknown": learnt.unknown,
        "rules": [
            {
                "id": rule.id,
                "on": [o.word for o in rule.operations],
                "action": rule.action.word,
                "objects": [{"object": text, "actions": count} for text, count, _ in rule.objects],
            }
            for rule in learnt.rules
        ],
        "kept_out": list(map(_kept_out, learnt.kept_out)),
        "undecided": list(map(_kept_out, sorted(learnt.undecided))),
        "still_denied": [
            {"session": session, "operation": o.action.operation.word, "object": o.action.object, "rule": o.rule}
            for session, outcomes in learnt.denied.items()
            for o in outcomes
        ],
    }


def _kept_out(kept: KeptOut) -> dict[str, str]:
    return {"operation": kept.operation.word, "object": kept.object, "why": kept.why}
