# SPDX-License-Identifier: Apache-2.0
"""``agentmon hook``: what an agent program runs around its tool calls, so that its model reads what was blocked."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agentmon.cli.common import SOCKET_VARIABLE, add_verb, connect_inside, say

if TYPE_CHECKING:
    from agentmon.control.client import Client

#: Blocked that long ago counts for a tool call whose beginning nobody told us.
RECENT_S = 30.0
#: What a model is shown at once.
MOST_DENIALS = 10
#: More input than this is no hook's.
MOST_BYTES = 64 << 20

#: What is matched of a call, by tool: a field of its input.
ARGUMENTS: Final = {
    "Bash": "command", "Edit": "file_path", "MultiEdit": "file_path", "NotebookEdit": "notebook_path",
    "Read": "file_path", "WebFetch": "url", "WebSearch": "query", "Write": "file_path",
}  # fmt: skip
#: After these events no tool call is under way that its hooks will tell of.
OVER: Final = frozenset({"Stop", "StopFailure", "UserPromptSubmit", "SessionEnd"})


@dataclass(frozen=True, slots=True)
class StepOf:
    """Tool calls that are a step: `Bash(pytest *)=test`. ``argument`` None: whatever it is called with."""

    tool: str
    argument: str | None
    step: str

    @classmethod
    def parse(cls, text: str) -> StepOf:
        """Raises `ArgumentTypeError` that says what is wrong."""
        call, equals, step = text.rpartition("=")
        tool, bracket, rest = call.partition("(")
        if not (equals and step.strip() and tool.strip()) or (bracket and not rest.endswith(")")):
            raise argparse.ArgumentTypeError(
                f"`{text}` is no TOOL=STEP or TOOL(PATTERN)=STEP, such as `Bash(pytest *)=test`"
            )
        if bracket and tool.strip() not in ARGUMENTS:
            known = ", ".join(ARGUMENTS)
            raise argparse.ArgumentTypeError(
                f"`{text}`: what `{tool.strip()}` is called with is not known, only of {known}; leave the brackets out"
            )
        return cls(tool.strip(), rest[:-1] if bracket else None, step.strip())

    def matches(self, event: dict[str, Any]) -> bool:
        """`pytest *` is `pytest` alone too."""
        tool, given = event.get("tool_name"), event.get("tool_input")
        if not isinstance(tool, str) or not fnmatch.fnmatchcase(tool, self.tool):
            return False
        if self.argument is None:
            return True
        value = given.get(ARGUMENTS[self.tool]) if isinstance(given, dict) else None
        if not isinstance(value, str):
            return False
        return fnmatch.fnmatchcase(value.strip() + " ", self.argument) or fnmatch.fnmatchcase(
            value.strip(), self.argument
        )


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "hook",
        "tell an agent program's model what was blocked, and why",
        """
        A hook for agent programs, to be named in their settings (docs/agents.md). It reads the
        event as JSON on standard input. After a tool call it prints what was blocked meanwhile, with
        the rule, its reason and what is allowed instead, and answers to questions. Outside of a
        session it is silent. With --step, tool calls are steps of the session's plan: the agent
        program is in the step while the call lasts, with all that it starts. A step that may not
        begin forbids the call; nothing else does, that is for the kernel.

        claude-code: PreToolUse, PostToolUse and PostToolUseFailure of Claude Code, with --step
        also Stop, UserPromptSubmit and SessionEnd.
        """,
        """
        agentmon hook claude-code < event.json
        agentmon hook claude-code --step 'Bash(pytest *)=test' --step 'Edit=edit'

        exit status: 0, or 1 with the reason on standard error, which stops no agent
        """,
    )
    parser.add_argument("kind", choices=sorted(HOOKS), help="whose hook this is")
    parser.add_argument(
        "--step",
        action="append",
        type=StepOf.parse,
        default=[],
        metavar="CALL=STEP",
        dest="steps",
        help="calls of a tool (`Edit`, `mcp__git__*`), or those with such an argument (`Bash(pytest *)`), are a step of"
        " the plan that starts with a mark; of several that fit, the first",
    )
    parser.add_argument(
        "--agent",
        metavar="NAME",
        help="with --step: what the agent program is called (default: who runs this hook, shells with -c left out)",
    )
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Read the event, say what there is to say. Only ever 0 or 1: 2 would forbid any call."""
    from agentmon.control.protocol import RefusedError, UnreachableError
    from agentmon.errors import AgentmonError

    try:
        event = read_event(sys.stdin.buffer.read(MOST_BYTES + 1))
        reply = HOOKS[args.kind](args, event)
    except RefusedError as error:
        if error.code == "usage":
            return 0  # in no session: whoever works unfenced with the same settings is not bothered
        say(str(error))
        return 1
    except UnreachableError as error:
        if SOCKET_VARIABLE not in os.environ:
            return 0  # the same
        say(str(error))
        return 1
    except AgentmonError as error:
        say(str(error))
        return 1
    if reply is not None:
        print(json.dumps(reply), flush=True)
    return 0


def read_event(data: bytes) -> dict[str, Any]:
    """The event on standard input. Raises `AgentmonError` that says what is wrong with it."""
    from agentmon.errors import AgentmonError

    if len(data) > MOST_BYTES:
        raise AgentmonError(f"hook: the event is longer than {MOST_BYTES:,} bytes")
    try:
        event = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AgentmonError(
            f"hook: standard input is not JSON: {error}; an agent program writes its event there"
        ) from None
    if not isinstance(event, dict) or not isinstance(event.get("hook_event_name"), str):
        raise AgentmonError("hook: the event has no `hook_event_name`; is this hook named for the right program?")
    return event


def claude_code(args: argparse.Namespace, event: dict[str, Any]) -> dict[str, Any] | None:
    """One event of Claude Code (https://code.claude.com/docs/en/hooks). Returns what to print, if anything."""
    name = event["hook_event_name"]
    call = event.get("tool_use_id")
    call = call[:200] if isinstance(call, str) and call else None
    step = next((each.step for each in args.steps if each.matches(event)), None)
    if name == "PreToolUse":
        refusal = begin(args, step, call) if step else None
        if call is not None and refusal is None:
            with connect_inside(args, 5.0) as client:
                client.call("bookmark", name=call)
        return refusal
    if name in OVER and args.steps:
        with connect_inside(args, 5.0) as client:
            end(client, args, [each.step for each in args.steps], None)
    if name not in ("PostToolUse", "PostToolUseFailure"):
        return None
    with connect_inside(args, 5.0) as client:
        found = client.call("why", bookmark=call, within_s=RECENT_S, limit=MOST_DENIALS, tell=True)
        text = context(found)
        if step:
            text = "\n".join(filter(None, [text, end(client, args, [step], call, int(name == "PostToolUseFailure"))]))
    return {"hookSpecificOutput": {"hookEventName": name, "additionalContext": text}} if text else None


def begin(args: argparse.Namespace, step: str, call: str | None) -> dict[str, Any] | None:
    """The step of a call begins. Returns what forbids the call, if it may not."""
    from agentmon.control.protocol import RefusedError, UnreachableError

    try:
        with connect_inside(args, 5.0) as client:
            client.call("toolstep", steps=[step], call=call, program=args.agent)
    except (RefusedError, UnreachableError) as error:
        if isinstance(error, RefusedError) and error.code == "usage":
            return None  # in no session, or in one without a plan
        if isinstance(error, UnreachableError) and SOCKET_VARIABLE not in os.environ:
            return None
        why = "agentmon, the fence around this session: this call is"
        why += f" step {step} of its plan, and it cannot begin: {error}"
        return {
            "hookSpecificOutput": {
                "hookEventName": "PreToolUse", "permissionDecision": "deny", "permissionDecisionReason": why,
            }
        }  # fmt: skip
    return None


def end(client: Client, args: argparse.Namespace, steps: Sequence[str], call: str | None, status: int = 0) -> str:
    """The step of a call has ended; without a call, those of all. Returns why not, for people; empty: it has."""
    from agentmon.control.protocol import RefusedError

    try:
        names = list(dict.fromkeys(steps))
        client.call("toolstep", steps=names, call=call, ends=True, status=status, program=args.agent)
    except RefusedError as error:
        return "" if error.code == "usage" else f"agentmon: the step of this call could not be ended: {error}"
    return ""


def context(found: dict[str, Any]) -> str:
    """What a model reads after a tool call; empty if nothing was blocked and nobody answered."""
    from agentmon.cli import telling

    told: list[str] = []
    if found["denials"]:
        told.append("agentmon, the fence around this session, blocked during this tool call:")
        told += (f"- {line}" if not line.startswith(" ") else line for line in telling.denials(found["denials"]))
        if found["left_out"]:
            told.append(f"- and {found['left_out']} more: agentmon why --last 100")
        told.append(f'{telling.ADVICE} agentmon ask "QUESTION".')
    if found["answers"]:
        told.append("The owner answered (agentmon ask):")
        for question in found["answers"]:
            told += telling.answer(question)
    return "\n".join(told)


#: Agent program -> what it says, and is told.
HOOKS: dict[str, Callable[[argparse.Namespace, dict[str, Any]], dict[str, Any] | None]] = {"claude-code": claude_code}
