# SPDX-License-Identifier: Apache-2.0
"""``agentmon plan infer``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmon.cli.common import UsageError, add_json, add_verb, audit_path, print_json, say
from agentmon.cli.recorded import SESSION_HELP, add_log, recorded
from agentmon.cli.variables import add_variables, variables
from agentmon.errors import AgentmonError, ConfigError

if TYPE_CHECKING:
    from agentmon.plan.infer.draft import Drafts
    from agentmon.plan.plan import Plan

#: Programs that start the steps of a script, where systems have them.
_SHELLS = "/{bin,usr/bin,usr/local/bin}/{sh,bash,dash,zsh}"


def register(verbs: Any) -> None:
    """Add the verb to those of ``agentmon plan``."""
    parser = add_verb(
        verbs,
        "infer",
        "write a plan from a script, commands, tool calls or recorded sessions",
        """
        Write a plan of what somebody means to do: a shell script, a list of commands, tool calls
        as OpenAI, Anthropic or MCP write them (JSON, or a value a line), or recorded sessions.

        Each program becomes a step with its arguments, files and hosts, as far as the text says;
        its order is that of the text. No model is asked and nothing is guessed: what cannot be
        known is said in a comment, `not known`, and is closed, or as narrow as the text allows.
        Read the result before you rely on it.
        """,
        """
        agentmon plan infer build.sh > build.yaml
        agentmon plan infer calls.json -o task.yaml
        agentmon plan infer --as commands - < commands.txt
        sudo agentmon plan infer --session s-7f3a --session s-80b1 -o task.yaml
        agentmon plan show build.yaml

        exit status: 0 written, 1 failure, 3 the input cannot be read or gives no plan
        """,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="what is meant to be done; `-`: standard input")
    parser.add_argument(
        "--as", dest="kind", choices=("script", "commands", "calls"),
        help="what FILE is: one script, a command a line, or JSON (default: by its name and beginning)",
    )  # fmt: skip
    parser.add_argument("--session", action="append", default=[], metavar="SESSION", dest="sessions", help=SESSION_HELP)
    parser.add_argument(
        "--shell", choices=("one", "each"),
        help="whether one shell runs all commands or calls, or each has its own (default: not known, so that after a"
        " `cd` nobody knows where the next is run)",
    )  # fmt: skip
    parser.add_argument(
        "--shell-tool", action="append", default=[], metavar="NAME",
        help="a tool whose `command` a shell runs, beside those known; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--together",
        action="store_true",
        help="each FILE is the same task, done once more: one plan that fits them all",
    )
    parser.add_argument(
        "--fit", choices=("exact", "order", "task"), default="exact",
        help="how closely the plan follows: the arguments, files and order of the text (default); its programs and"
        " hosts in their order, in the workspace, and looking around; or the same in any order, for an agent that does"
        " the task its own way",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="a new file (default: standard output)")
    parser.add_argument("--name", help="the plan's name (default: that of the output or input, or `inferred`)")
    add_log(parser)
    add_variables(parser, recorded=True)
    add_json(parser)
    parser.set_defaults(func=handle, as_compiler=True)


def handle(args: argparse.Namespace) -> int:
    """Infer, check that it is a plan, write."""
    from agentmon.plan.infer.write import to_yaml
    from agentmon.plan.load import load_text

    if bool(args.files) == bool(args.sessions):
        raise UsageError("give files, or recorded sessions by --session; see `agentmon plan infer --help`")
    if args.output and args.output.exists():
        raise AgentmonError(f"`{args.output}` exists already; give another name, or remove it")
    if args.sessions and args.fit != "exact":
        raise UsageError("--fit is for text; of recorded sessions, programs are followed with any arguments")
    if args.sessions:
        drafts, source = _of_sessions(args)
    else:
        drafts, source = (
            _of_files(args),
            ", ".join(Path(name).name if name != "-" else "standard input" for name in args.files),
        )
    if not drafts.steps:
        raise ConfigError(f"nothing in {source} starts a program, so there is no step to make a plan of")
    text = to_yaml(drafts, name=_name(args), source=source)
    plan = load_text(text, str(args.output or "the inferred plan"))
    if args.output:
        try:
            with args.output.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise AgentmonError(f"cannot write `{args.output}`: {(error.strerror or str(error)).lower()}") from error
    if args.json:
        print_json(_as_json(plan, drafts, text))
    elif not args.output:
        sys.stdout.write(text)
        sys.stdout.flush()
    holes = sum(len(step.holes) for step in drafts.steps) + len(drafts.holes)
    steps = f"{len(plan.steps)} step{'' if len(plan.steps) == 1 else 's'}"
    say(f"plan `{plan.name}`: {steps}; {holes} things are not known, see its comments")
    return 0


def _name(args: argparse.Namespace) -> str:
    import re

    given = (
        args.name or (args.output or Path(next((f for f in args.files if f != "-"), "inferred"))).name.partition(".")[0]
    )
    if args.name:
        return str(given)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", given).strip("-._")[:64] or "inferred"


def _of_files(args: argparse.Namespace) -> Drafts:
    from agentmon.plan.infer.several import Fit, fitted

    several = [[name] for name in args.files] if args.together else [args.files]
    return fitted([_drafts(args, names) for names in several], Fit(args.fit))


def _drafts(args: argparse.Namespace, names: Sequence[str]) -> Drafts:
    """Of files that were one task."""
    from agentmon.plan.infer.calls import Calls, read_json
    from agentmon.plan.infer.shell import Shell
    from agentmon.policy.text import decode, read_text

    each = {"one": False, "each": True, None: None}[args.shell]
    shell = Shell(each=each, workspace=args.workspace or "", home=args.home or "")
    shell.drafts.shells.append(_SHELLS)
    calls = Calls(shell, args.shell_tool)
    for name in names:
        text = decode(sys.stdin.buffer.read(), "-") if name == "-" else read_text(name, "input")
        label = f"{Path(name).name}, " if len(args.files) > 1 else ""
        kind = args.kind or _kind(name, text)
        if kind == "calls":
            calls.follow(read_json(text, name), label)
        elif kind == "commands":
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip() and not line.lstrip().startswith("#"):
                    shell.read(line, f"{label}line {number}")
        else:
            shell.begin()
            shell.read(text, f"{label}line {{line}}")
    return shell.drafts


def _kind(name: str, text: str) -> str:
    """JSON by its name or first character; else a script."""
    if name.endswith((".json", ".jsonl", ".ndjson")):
        return "calls"
    start = text.lstrip()
    if start.startswith(("[{", '["', '{"')) or (start[:1] in "[{" and start[1:].lstrip()[:1] in ('"', "{")):
        return "calls"
    return "script"


def _of_sessions(args: argparse.Namespace) -> tuple[Drafts, str]:
    from agentmon.audit.read import read
    from agentmon.plan.infer.sessions import Sessions, read_sessions

    chosen = recorded(args, args.sessions)
    records = read_sessions(read(args.file or audit_path(args)), [session.id for session in chosen])
    sessions = Sessions()
    for session in chosen:
        sessions.read(session.id, records[session.id], variables(args, session))
    names = ", ".join(session.id for session in chosen)
    return sessions.drafts(), f"recorded session{'' if len(chosen) == 1 else 's'} {names}"


def _as_json(plan: Plan, drafts: Drafts, text: str) -> dict[str, Any]:
    from agentmon.plan.infer.draft import fit, names

    fitted = fit(drafts)
    ids = names(fitted.steps)
    return {
        "plan": plan.name,
        "text": text,
        "not_known": fitted.holes,
        "steps": [
            {
                "id": name,
                "from": step.told,
                "needs": [ids[n] for n in sorted(step.needs)],
                "after": [ids[n] for n in sorted(step.after - step.needs)],
                "takes": [{"what": what, "from": ids[who]} for who, what in step.data],
                "reads": step.reads,
                "writes": step.writes,
                "hosts": [*step.hosts, *step.addresses],
                "not_known": step.holes,
            }
            for name, step in zip(ids, fitted.steps, strict=True)
        ],
    }
