# SPDX-License-Identifier: Apache-2.0
"""``agentmon hook``: what an agent program runs around its tool calls, so that its model reads what was blocked."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from agentmon.cli.common import SOCKET_VARIABLE, add_verb, connect_inside, say

#: Blocked that long ago counts for a tool call whose beginning nobody told us.
RECENT_S = 30.0
#: What a model is shown at once.
MOST_DENIALS = 10
#: More input than this is no hook's.
MOST_BYTES = 64 << 20


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "hook",
        "tell an agent program's model what was blocked, and why",
        """
        A hook for agent programs, to be named in their settings (docs/agents.md). It reads the
        event as JSON on standard input. After a tool call it prints what was blocked meanwhile, with
        the rule, its reason and what is allowed instead, and answers to questions. It never
        forbids a tool call: the kernel does. Outside of a session it is silent.

        claude-code: PreToolUse, PostToolUse and PostToolUseFailure of Claude Code.
        """,
        """
        agentmon hook claude-code < event.json

        exit status: 0, or 1 with the reason on standard error, which stops no agent
        """,
    )
    parser.add_argument("kind", choices=sorted(HOOKS), help="whose hook this is")
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Read the event, say what there is to say. Only ever 0 or 1: 2 would forbid the call."""
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
    if name == "PreToolUse":
        if call is not None:
            with connect_inside(args, 5.0) as client:
                client.call("bookmark", name=call)
        return None
    if name not in ("PostToolUse", "PostToolUseFailure"):
        return None
    with connect_inside(args, 5.0) as client:
        found = client.call("why", bookmark=call, within_s=RECENT_S, limit=MOST_DENIALS, tell=True)
    text = context(found)
    return {"hookSpecificOutput": {"hookEventName": name, "additionalContext": text}} if text else None


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
