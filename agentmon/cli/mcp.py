# SPDX-License-Identifier: Apache-2.0
"""``agentmon mcp``: `why` and `ask` as tools of the Model Context Protocol, over standard input and output.

JSON-RPC 2.0, one message a line (https://modelcontextprotocol.io/specification). Only what two tools need of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, TextIO

from agentmon import __version__
from agentmon.cli.common import add_verb, connect_inside

#: Revisions of the protocol, the one we prefer first: what differs between them does not touch tools that give text.
REVISIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
PARSE_ERROR, INVALID_REQUEST, NO_METHOD, INVALID_PARAMS = -32700, -32600, -32601, -32602

TOOLS: Final[list[dict[str, Any]]] = [
    {
        "name": "why",
        "title": "Why was it blocked?",
        "description": "What the fence around this session (agentmon) blocked last, by which rule and why, and what is"
        " allowed instead. Call it after an unexpected `Operation not permitted` or `Killed`.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "last": {"type": "integer", "minimum": 1, "maximum": 100, "description": "at most so many (default 10)"}
            },
            "additionalProperties": False,
        },
        "annotations": {"readOnlyHint": True, "openWorldHint": False},
    },
    {
        "name": "ask",
        "title": "Ask the owner",
        "description": "Put a question to the human who owns this session, for instance to have something allowed. It"
        " returns at once with an id; the answer comes later: call `answers`. It changes nothing by itself.",
        "inputSchema": {
            "type": "object",
            "properties": {"question": {"type": "string", "minLength": 1, "maxLength": 2000}},
            "required": ["question"],
            "additionalProperties": False,
        },
        "annotations": {"readOnlyHint": False, "destructiveHint": False, "openWorldHint": False},
    },
    {
        "name": "answers",
        "title": "What did the owner answer?",
        "description": "The questions that this session asked its owner, with the answers that there are.",
        "inputSchema": {"type": "object", "properties": {}, "additionalProperties": False},
        "annotations": {"readOnlyHint": True, "openWorldHint": False},
    },
    {
        "name": "step",
        "title": "Begin or end a step of the plan",
        "description": "If this session follows a plan with steps that are begun by a mark: say that you begin such a"
        " step, or have ended it. What you do in between may only be what the step allows. A step that is not due"
        " yet is refused, and the answer says what comes before it.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 200, "description": "the step's name"},
                "what": {"type": "string", "enum": ["begin", "end"]},
                "failed": {"type": "boolean", "description": "with `end`: it did not succeed"},
            },
            "required": ["name", "what"],
            "additionalProperties": False,
        },
        "annotations": {"readOnlyHint": False, "destructiveHint": False, "openWorldHint": False},
    },
]


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "mcp",
        "give an agent program `why`, `ask` and `step` as tools (MCP over standard input and output)",
        """
        A server of the Model Context Protocol that an agent program starts inside its fence
        (docs/agents.md). Tools: `why`, `ask`, `answers`, `step`. They are what the verbs of these names are,
        for the session that the server runs in, and no more.
        """,
        """
        claude mcp add agentmon -- agentmon mcp
        """,
    )
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Serve until standard input ends."""

    def call(verb: str, **arguments: Any) -> dict[str, Any]:
        with connect_inside(args) as client:
            return client.call(verb, **arguments)

    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]  # a text stream
    serve(sys.stdin, sys.stdout, Server(call))
    return 0


def serve(lines: Iterable[str], out: TextIO, server: Server) -> None:
    """Answer each line."""
    for line in lines:
        if line.strip():
            reply = server.line(line)
            if reply is not None:
                print(json.dumps(reply), file=out, flush=True)


class BadCallError(Exception):
    """A request that cannot be served. ``code`` is JSON-RPC's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Server:
    """The protocol without its transport. `call` asks the daemon."""

    def __init__(self, call: Callable[..., dict[str, Any]]) -> None:
        self._call = call

    def line(self, text: str) -> Any:
        """The reply to one line; None if there is none."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            return _error(None, PARSE_ERROR, f"not JSON: {error}")
        if isinstance(message, list) and message:  # a batch, which one revision had
            return [reply for reply in map(self.message, message) if reply is not None] or None
        return self.message(message)

    def message(self, message: Any) -> dict[str, Any] | None:
        """The reply to one message; None to a notification, and to a reply."""
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return _error(None, INVALID_REQUEST, "a message is an object with `jsonrpc`: `2.0`")
        number, method = message.get("id"), message.get("method")
        if method is None and ("result" in message or "error" in message):
            return None  # we asked for nothing
        if not isinstance(method, str) or (number is not None and not isinstance(number, (str, int, float))):
            return _error(None, INVALID_REQUEST, "a request has a `method` and an `id`")
        if "id" not in message:
            return None
        params = message.get("params", {})
        try:
            if not isinstance(params, dict):
                raise BadCallError(INVALID_PARAMS, "`params` is an object")
            return {"jsonrpc": "2.0", "id": number, "result": self._result(method, params)}
        except BadCallError as error:
            return _error(number, error.code, str(error))

    def _result(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        match method:
            case "initialize":
                asked = params.get("protocolVersion")
                return {
                    "protocolVersion": asked if asked in REVISIONS else REVISIONS[0],
                    "capabilities": {"tools": {"listChanged": False}},
                    "serverInfo": {"name": "agentmon", "version": __version__},
                    "instructions": "This session runs inside a fence. When something is denied or killed, call `why`"
                    " before trying another way; if the task needs it, `ask` the owner.",
                }
            case "ping":
                return {}
            case "tools/list":
                return {"tools": TOOLS}
            case "tools/call":
                return self._tool(params.get("name"), params.get("arguments") or {})
        raise BadCallError(NO_METHOD, f"unknown method `{method[:100]}`")

    def _tool(self, name: Any, arguments: Any) -> dict[str, Any]:
        from agentmon.errors import AgentmonError

        tool = next((tool for tool in TOOLS if tool["name"] == name), None)
        if tool is None:
            raise BadCallError(INVALID_PARAMS, f"unknown tool `{str(name)[:100]}`")
        known = tool["inputSchema"]["properties"]
        if not isinstance(arguments, dict) or any(key not in known for key in arguments):
            raise BadCallError(INVALID_PARAMS, f"`{name}` takes {', '.join(known) or 'no arguments'}")
        try:
            return _text(_TOOLS[tool["name"]](self._call, arguments))
        except AgentmonError as error:  # the model reads it, and can do better
            return _text(str(error)) | {"isError": True}


def _why(call: Callable[..., dict[str, Any]], arguments: dict[str, Any]) -> str:
    from agentmon.cli import telling

    last = arguments.get("last", 10)
    if not isinstance(last, int) or isinstance(last, bool) or not 1 <= last <= 100:
        raise BadCallError(INVALID_PARAMS, "`last` is a number from 1 to 100")
    found = call("why", limit=last)
    if not found["denials"]:
        return f"Nothing was blocked in this session (policy {found['policy']})."
    return "\n".join([*telling.denials(found["denials"]), f"{telling.ADVICE} the tool `ask`."])


def _ask(call: Callable[..., dict[str, Any]], arguments: dict[str, Any]) -> str:
    question = arguments.get("question")
    if not isinstance(question, str):
        raise BadCallError(INVALID_PARAMS, "`question` is a text")
    return f"Asked, as {call('ask', text=question)['question']}. The tool `answers` shows the answer once there is one."


def _answers(call: Callable[..., dict[str, Any]], _: dict[str, Any]) -> str:
    from agentmon.cli import telling

    questions = call("asked")["questions"]
    return "\n".join(line for question in questions for line in telling.answer(question)) or "No question was asked."


def _step(call: Callable[..., dict[str, Any]], arguments: dict[str, Any]) -> str:
    name, what, failed = arguments.get("name"), arguments.get("what"), arguments.get("failed", False)
    if not isinstance(name, str) or what not in ("begin", "end") or not isinstance(failed, bool):
        raise BadCallError(INVALID_PARAMS, "`name` is a text, `what` is `begin` or `end`, `failed` is true or false")
    # who started this server is the agent
    call("step", name=name, ends=what == "end", status=int(failed), parent=True)
    return f"Step {name} has begun." if what == "begin" else f"Step {name} has ended."


_TOOLS: Final = {"why": _why, "ask": _ask, "answers": _answers, "step": _step}


def _text(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": False}


def _error(number: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}}
