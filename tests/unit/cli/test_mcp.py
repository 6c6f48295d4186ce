# SPDX-License-Identifier: Apache-2.0
"""`agentmon mcp`: the protocol, and what a model is told by it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from agentmon.cli.mcp import INVALID_PARAMS, INVALID_REQUEST, NO_METHOD, PARSE_ERROR, REVISIONS, Server, serve
from agentmon.control.protocol import RefusedError
from tests.unit.cli.test_hook import ANSWER, DENIAL


@pytest.fixture
def asked() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def server(asked: list[tuple[str, dict[str, Any]]]) -> Server:
    def call(verb: str, **arguments: Any) -> dict[str, Any]:
        asked.append((verb, arguments))
        if verb == "why":
            return {"session": "s-1", "policy": "p", "denials": [DENIAL] if arguments["limit"] > 1 else []}
        if verb == "asked":
            return {"questions": [ANSWER]}
        if verb == "step":
            if arguments["name"] == "push":
                raise RefusedError("step push may not begin yet: it comes after build")
            return {"session": "s-1", "step": arguments["name"], "ends": arguments["ends"]}
        if arguments["text"] == "again?":
            raise RefusedError("too many questions at once")
        return {"question": "q-7"}

    return Server(call)


def request(method: str, number: object = 1, **params: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def told(server: Server, tool: str, **arguments: object) -> tuple[str, bool]:
    reply = server.message(request("tools/call", name=tool, arguments=arguments))
    assert reply is not None
    ((content,), failed) = reply["result"]["content"], reply["result"]["isError"]
    assert content["type"] == "text"
    return content["text"], failed


@pytest.mark.parametrize(("revision", "wanted"), [*((r, r) for r in REVISIONS), ("1999-01-01", REVISIONS[0])])
def test_it_agrees_on_a_revision(server: Server, revision: str, wanted: str) -> None:
    reply = server.message(request("initialize", protocolVersion=revision, capabilities={}, clientInfo={"name": "x"}))
    assert reply is not None
    assert (reply["jsonrpc"], reply["id"]) == ("2.0", 1)
    assert reply["result"]["protocolVersion"] == wanted
    assert reply["result"]["capabilities"] == {"tools": {"listChanged": False}}
    assert reply["result"]["serverInfo"]["name"] == "agentmon"


def test_its_tools_have_schemas(server: Server) -> None:
    reply = server.message(request("tools/list"))
    assert reply is not None
    tools = reply["result"]["tools"]
    assert [tool["name"] for tool in tools] == ["why", "ask", "answers", "step"]
    for tool in tools:
        assert tool["description"]
        assert tool["inputSchema"]["type"] == "object"


def test_why_tells_what_was_blocked(server: Server, asked: list[tuple[str, dict[str, Any]]]) -> None:
    text, failed = told(server, "why")
    assert not failed
    assert text.startswith("read /home/u/.ssh/id by cat: blocked by rule keys: keys belong to people\n  allowed: ")
    assert text.endswith("ask the owner: the tool `ask`.")
    assert told(server, "why", last=1) == ("Nothing was blocked in this session (policy p).", False)
    assert asked == [("why", {"limit": 10}), ("why", {"limit": 1})]


def test_questions_are_asked_and_their_answers_read(server: Server) -> None:
    text, failed = told(server, "ask", question="may I?")
    assert (text.startswith("Asked, as q-7."), failed) == (True, False)
    assert told(server, "ask", question="again?") == ("too many questions at once", True)
    assert told(server, "answers") == ("q-1: may I?\n  yes,\n  once", False)


def test_a_step_is_begun_and_ended(server: Server, asked: list[tuple[str, dict[str, Any]]]) -> None:
    assert told(server, "step", name="fetch", what="begin") == ("Step fetch has begun.", False)
    assert told(server, "step", name="fetch", what="end", failed=True) == ("Step fetch has ended.", False)
    assert told(server, "step", name="push", what="begin") == (
        "step push may not begin yet: it comes after build",
        True,
    )
    assert [arguments for _, arguments in asked][:2] == [
        {"name": "fetch", "ends": False, "status": 0, "parent": True},
        {"name": "fetch", "ends": True, "status": 1, "parent": True},
    ]


def test_ping(server: Server) -> None:
    assert server.message(request("ping", "a")) == {"jsonrpc": "2.0", "id": "a", "result": {}}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (7, INVALID_REQUEST),
        ([], INVALID_REQUEST),
        ({}, INVALID_REQUEST),
        ({"jsonrpc": "1.0", "id": 1, "method": "ping"}, INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": 1}, INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": {}, "method": "ping"}, INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}, INVALID_PARAMS),
        (request("resources/list"), NO_METHOD),
        (request("tools/call"), INVALID_PARAMS),
        (request("tools/call", name="approve"), INVALID_PARAMS),
        (request("tools/call", name="why", arguments={"session": "s-2"}), INVALID_PARAMS),
        (request("tools/call", name="why", arguments=[1]), INVALID_PARAMS),
        (request("tools/call", name="why", arguments={"last": 0}), INVALID_PARAMS),
        (request("tools/call", name="why", arguments={"last": True}), INVALID_PARAMS),
        (request("tools/call", name="ask"), INVALID_PARAMS),
        (request("tools/call", name="ask", arguments={"question": 7}), INVALID_PARAMS),
    ],
)
def test_what_is_wrong_is_an_error_of_the_protocol(server: Server, message: object, code: int) -> None:
    reply = server.line(json.dumps(message))
    assert (reply["jsonrpc"], reply["error"]["code"]) == ("2.0", code)
    assert reply["error"]["message"]
    wanted = message.get("id") if isinstance(message, dict) and code != INVALID_REQUEST else None
    assert reply["id"] == wanted


@pytest.mark.parametrize(
    "message",
    [
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}},
        {"jsonrpc": "2.0", "method": "no/such"},
        {"jsonrpc": "2.0", "id": 1, "result": {}},
    ],
)
def test_what_wants_no_reply_gets_none(server: Server, message: object) -> None:
    assert server.line(json.dumps(message)) is None


def test_a_broken_line_ends_nothing(server: Server) -> None:
    out = io.StringIO()
    lines = ["{\n", "\n", "[" * 100_000 + "\n", json.dumps([request("ping"), request("ping", 2)]) + "\n",
             json.dumps(request("ping", 3)) + "\n"]  # fmt: skip
    serve(lines, out, server)
    first, second, batch, last = map(json.loads, out.getvalue().splitlines())
    assert first["error"]["code"] == second["error"]["code"] == PARSE_ERROR
    assert [reply["id"] for reply in batch] == [1, 2]
    assert last["result"] == {}
