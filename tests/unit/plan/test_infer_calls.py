# SPDX-License-Identifier: Apache-2.0
"""Plans from tool calls and lists of commands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentmon.errors import ConfigError
from agentmon.plan.infer.calls import Call, Calls, read_json
from agentmon.plan.infer.draft import Draft
from agentmon.plan.infer.shell import Shell
from agentmon.plan.infer.write import to_yaml
from agentmon.plan.load import load_text


def infer(value: Any, *shell_tools: str) -> tuple[list[Draft], list[str]]:
    shell = Shell(each=None)
    Calls(shell, shell_tools).follow(read_json(json.dumps(value), "c.json"))
    if shell.drafts.steps:
        load_text(to_yaml(shell.drafts, name="p", source="a test"), "p.yaml")
    return shell.drafts.steps, shell.drafts.holes


def chat(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


LS = {"command": "ls -la"}


@pytest.mark.parametrize(
    "value",
    [
        {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [chat("bash", LS)]}}]},
        [{"role": "user", "content": "list"}, {"role": "assistant", "tool_calls": [chat("bash", LS)]}],
        {"output": [{"type": "function_call", "call_id": "x", "name": "bash", "arguments": json.dumps(LS)}]},
        {"output": [{"type": "local_shell_call", "action": {"type": "exec", "command": ["bash", "-lc", "ls -la"]}}]},
        {"output": [{"type": "local_shell_call", "action": {"type": "exec", "command": ["ls", "-la"]}}]},
        {"content": [{"type": "text", "text": "I list"}, {"type": "tool_use", "id": "t", "name": "Bash", "input": LS}]},
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "run_command", "arguments": LS}},
        [{"name": "mcp__host__execute_command", "arguments": LS}],
        ["ls -la"],
        [{"command": "ls -la", "exit_code": 0}],
    ],
)  # fmt: skip
def test_each_form_of_a_shell_command_is_known(value: Any) -> None:
    (step,), holes = infer(value)
    assert step.ways == [(("**/ls",), ("-la",))]
    assert holes == []


def test_tools_of_the_agent_begin_by_marks() -> None:
    steps, _ = infer(
        [
            {"type": "tool_use", "name": "Read", "input": {"file_path": "/etc/hosts"}},
            {"type": "tool_use", "name": "Write", "input": {"file_path": "out/a", "content": "x"}},
            {"type": "tool_use", "name": "Bash", "input": {"command": "cat out/a"}},
            {"type": "tool_use", "name": "WebFetch", "input": {"url": "https://docs.example.com/x"}},
            {"type": "tool_use", "name": "str_replace_based_edit_tool", "input": {"command": "view", "path": "/w/x"}},
        ]
    )
    assert [(s.name, bool(s.ways), sorted(s.after)) for s in steps] == [
        ("read", False, []), ("write", False, [0]), ("cat", True, [1]), ("webfetch", False, [2]),
        ("str_replace_based_edit_tool", False, [3]),
    ]  # fmt: skip
    read, write, cat, fetch, view = steps
    assert (read.reads, read.writes, read.no_network, read.no_exec) == (["/etc/hosts"], [], True, True)
    assert write.writes == ["{workspace}/out/a"]
    assert [number for number, _ in cat.data] == [1]
    assert fetch.hosts == ["docs.example.com:443"]
    assert view.writes == []


def test_a_tool_that_is_called_again_is_one_step() -> None:
    steps, _ = infer([chat("write_file", {"path": name, "content": ""}) for name in ("a", "b", "a")])
    assert [(s.name, s.repeat, s.writes) for s in steps] == [("write_file", True, ["{workspace}/a", "{workspace}/b"])]


def test_a_tool_that_is_not_known_may_nothing() -> None:
    (step,), _ = infer([chat("get_weather", {"city": "Oslo"})])
    assert (step.no_network, step.no_exec, step.writes) == (True, True, [])
    assert step.holes == ["what the tool `get_weather` does; it may nothing here until that is said"]
    (step,), _ = infer([chat("my_runner", LS)], "my_runner")
    assert step.ways == [(("**/ls",), ("-la",))]


def test_what_cannot_be_read_of_a_call_is_said() -> None:
    _, holes = infer([{"type": "function_call", "name": "bash", "arguments": "not json"}])
    assert holes == ["what `bash` in call 1 runs: it has no `command` that is text"]
    (step,), _ = infer([{"type": "function_call", "name": "other", "arguments": "not json"}])
    assert step.holes == ["what `other` was called with: it is no JSON object"]


def test_a_value_a_line() -> None:
    text = '{"command": "a"}\n\n{"type": "tool_use", "name": "Bash", "input": {"command": "b"}}\n'
    assert read_json(text, "c") == ["a", Call("Bash", {"command": "b"})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "c.json:1:1: there is no tool call and no command in it; give calls of OpenAI, Anthropic or MCP"),
        ("", "c.json:1:1: there is no tool call"),
        ('{"a": 1,\n "b": }', "c.json:2:7: not JSON: expecting value; mend it there"),
        ('{"a": 1}\n{"b": }\n', "c.json:2:7: not JSON: expecting value; give a value a line"),
        ("[" * 200_000, "c.json:1:1: not JSON: "),
    ],
)  # fmt: skip
def test_what_is_no_json_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_json(text, "c.json")
    assert said in str(error.value)
