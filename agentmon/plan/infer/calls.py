# SPDX-License-Identifier: Apache-2.0
"""Steps from tool calls, as OpenAI, Anthropic and MCP write them; and from lists of commands.

A tool that runs shell commands gives the steps of those. Any other tool runs inside of the agent, so its step begins by
a mark; what is known of it is what its published description says. Of a tool that is not known, nothing is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentmon.errors import ConfigError
from agentmon.plan.infer.draft import Draft
from agentmon.plan.infer.programs import Effects, reach, words_of
from agentmon.plan.infer.shell import Shell
from agentmon.plan.infer.words import Variable, Word

#: Tools whose argument is a shell command. Names without case and punctuation.
SHELL_TOOLS: Final = words_of("""
    bash shell localshell terminal executebash runcommand runshellcommand executecommand runinterminal runbash
    containerexec shellcommand runterminalcmd execute_command exec sh
""")
_COMMANDS: Final = ("command", "cmd", "script", "commands")
_READERS: Final = words_of("""
    read readfile readtextfile readmediafile readmultiplefiles view viewfile cat openfile notebookread ls glob grep
    listdirectory listdir listfiles directorytree searchfiles getfileinfo listdirectorywithsizes filesearch grepsearch
    codebasesearch listalloweddirectories
""")
_WRITERS: Final = words_of("""
    write writefile createfile edit editfile multiedit strreplace insert notebookedit createdirectory deletefile
    movefile searchreplace
""")
_EDITORS: Final = words_of("strreplacebasededittool strreplaceeditor")
_FETCHERS: Final = words_of("webfetch fetch fetchurl openurl browsernavigate navigate")
_PATHS: Final = (
    "file_path", "path", "filename", "file", "target_file", "notebook_path", "source", "destination", "paths", "dir",
    "directory",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call. ``arguments`` None: they are no JSON object."""

    name: str
    arguments: Mapping[str, Any] | None


def read_json(text: str, file: str) -> list[Call | str]:
    """Calls and commands of a text, JSON or a JSON value a line, in their order.

    Raises:
        ConfigError: it is not JSON, or has neither.
    """
    found = [item for value in _values(text, file) for item in _items(value, top=True)]
    if not found:
        raise ConfigError(
            f"{file}:1:1: there is no tool call and no command in it; give calls of OpenAI, Anthropic or MCP, or a list"
            " of commands"
        )
    return found


def _values(text: str, file: str) -> list[Any]:
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError) as error:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        whole = error
    values = []
    for number, line in lines:
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if values or not isinstance(whole, json.JSONDecodeError):
                column = error.colno if isinstance(error, json.JSONDecodeError) else 1
                reason = str(error).partition(":")[0].lower()
                raise ConfigError(f"{file}:{number}:{column}: not JSON: {reason}; give a value a line") from None
            reason = whole.msg.lower()
            raise ConfigError(f"{file}:{whole.lineno}:{whole.colno}: not JSON: {reason}; mend it there") from None
    return values


def _items(value: Any, *, top: bool = False) -> Iterator[Call | str]:
    """Whatever has the shape of a call, wherever it stands."""
    stack: list[tuple[Any, bool]] = [(value, top)]
    while stack:
        each, is_item = stack.pop()
        if isinstance(each, str):
            if is_item:
                yield each
        elif isinstance(each, list):
            stack += [(item, is_item) for item in reversed(each)]
        elif isinstance(each, dict):
            call = _call(each)
            if call is not None:
                yield call
            elif is_item and isinstance(each.get("command"), str):
                yield each["command"]
            else:
                stack += [(item, False) for item in reversed(each.values())]


def _call(value: Mapping[str, Any]) -> Call | None:
    kind = value.get("type")
    function = value.get("function")
    if isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" in function:
        return Call(function["name"], _object(function["arguments"]))  # OpenAI, chat completions
    if kind == "local_shell_call" and isinstance(value.get("action"), dict):
        return Call("local_shell", value["action"])
    if value.get("method") == "tools/call" and isinstance(value.get("params"), dict):
        return _named(value["params"], "arguments")  # MCP
    if kind in ("function_call", "mcp_call", "custom_tool_call"):
        return _named(value, "arguments" if "arguments" in value else "input")  # OpenAI, responses
    if kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
        return _named(value, "input")  # Anthropic
    if kind is None and isinstance(value.get("name"), str):
        for key in ("arguments", "input"):
            if isinstance(value.get(key), dict):
                return _named(value, key)
    return None


def _named(value: Mapping[str, Any], key: str) -> Call | None:
    name = value.get("name")
    return Call(name, _object(value.get(key, {}))) if isinstance(name, str) else None


def _object(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


class Calls:
    """Follows calls one after the other; shell commands go to a `Shell`."""

    def __init__(self, shell: Shell, shell_tools: Sequence[str] = ()) -> None:
        self._shell = shell
        self._shell_tools = SHELL_TOOLS | {_plain(name) for name in shell_tools}
        self._tools: dict[str, int] = {}  # the step of each

    def follow(self, items: Sequence[Call | str], label: str = "") -> None:
        """Make steps of them. ``label``: what they are of, for people."""
        for number, item in enumerate(items, 1):
            where = f"{label}call {number}" if isinstance(item, Call) else f"{label}command {number}"
            if isinstance(item, str):
                self._shell.read(item, where)
            elif _plain(item.name) in self._shell_tools:
                self._command(item, where)
            else:
                self._tool(item, where)

    def _command(self, call: Call, where: str) -> None:
        given = (
            next((call.arguments[key] for key in _COMMANDS if key in (call.arguments or {})), None)
            if call.arguments
            else None
        )
        if isinstance(given, str):
            self._shell.read(given, where)
        elif isinstance(given, list) and given and all(isinstance(word, str) for word in given):
            # a program with its arguments; most often a shell with a script
            if len(given) >= 3 and given[0].rpartition("/")[2] in ("bash", "sh", "zsh") and given[1] in ("-c", "-lc"):
                self._shell.read(given[2], where)
            else:
                self._shell.simple([Word((word,)) for word in given], where)
        else:
            self._shell.hole(f"what `{call.name}` in {where} runs: it has no `command` that is text")

    def _tool(self, call: Call, where: str) -> None:
        name = _plain(call.name)
        done = self._effects(name, call)
        steps = self._shell.drafts.steps
        told = f"{where}: {call.name}({_shown(call.arguments)})"
        if name in self._tools:
            one = steps[self._tools[name]]
            one.repeat = True
            one.told.append(told)
            one.no_network &= not done.network
            for key in ("reads", "writes", "hosts", "addresses", "holes"):
                setattr(one, key, list(dict.fromkeys([*getattr(one, key), *getattr(done, key)])))
            return
        draft = Draft(call.name.rpartition("__")[2].rpartition(".")[2].lower(), told=[told])
        draft.after = set(self._shell.ready)
        draft.no_exec = draft.files_known = draft.execs_known = True
        draft.no_network = not done.network
        for key in ("reads", "writes", "hosts", "addresses", "holes"):
            setattr(draft, key, getattr(done, key))
        for path in draft.reads:
            draft.data += [(maker, path) for maker in self._shell.made.makers(path)]
        self._tools[name] = len(steps)
        self._shell.ready = {len(steps): False}
        for path in draft.writes:
            self._shell.made.note(path, len(steps))
        steps.append(draft)

    def _effects(self, name: str, call: Call) -> Effects:
        """What a tool does, if that is known."""
        found = Effects(network=False)
        arguments = call.arguments
        if arguments is None:
            found.holes.append(f"what `{call.name}` was called with: it is no JSON object")
            return found
        paths = self._paths(arguments, found)
        if name in _READERS or (name in _EDITORS and arguments.get("command") == "view"):
            found.reads = paths
        elif name in _WRITERS or name in _EDITORS:
            found.writes = paths
        elif name in _FETCHERS:
            url = arguments.get("url")
            before = len(found.hosts) + len(found.addresses)
            if isinstance(url, str):
                reach([Word((url,))], found)
            found.network = len(found.hosts) + len(found.addresses) > before
            if not found.network:
                found.holes.append(f"whom `{call.name}` talks to")
        else:
            found.holes.append(f"what the tool `{call.name}` does; it may nothing here until that is said")
        return found

    def _path(self, text: str) -> str | None:
        """Tools are called from the workspace, wherever the shell is."""
        kept, self._shell.state.cwd = self._shell.state.cwd, "{workspace}"
        home = text == "~" or text.startswith("~/")
        path = self._shell.path(Word((Variable("home"), text[1:]) if home else (text,)))
        self._shell.state.cwd = kept
        return path

    def _paths(self, arguments: Mapping[str, Any], found: Effects) -> list[str]:
        paths: list[str] = []
        for key in _PATHS:
            given = arguments.get(key)
            for text in given if isinstance(given, list) else [given]:
                if not isinstance(text, str) or not text:
                    continue
                path = self._path(text)
                if path is None:
                    found.holes.append(f"which file `{text[:60]}` is")
                else:
                    paths.append(path)
        return list(dict.fromkeys(paths))


def _plain(name: str) -> str:
    """A name without what servers put in front, case, and punctuation."""
    return "".join(c for c in name.rpartition("__")[2].rpartition(".")[2].lower() if c.isalnum())


def _shown(arguments: Mapping[str, Any] | None) -> str:
    if arguments is None:
        return "?"
    said = []
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text = " ".join(text.split())
        said.append(f"{key}: {text if len(text) <= 40 else text[:39] + '…'}")
    return ", ".join(said)[:160]
