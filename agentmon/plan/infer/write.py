# SPDX-License-Identifier: Apache-2.0
"""Drafts as the text of a plan: with what each step comes from, what it takes from others, and what is not known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from agentmon.model.text import clean
from agentmon.plan.infer.draft import Draft, Drafts, Way, fit, names

#: A scalar that YAML takes as it is, in a flow list too.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*(:[0-9]+)?")
#: Words that mean something else to other readers of YAML.
_NOT_PLAIN: Final = frozenset(["null", "true", "false", "yes", "no", "on", "off", "y", "n", "~", "mark"])
#: Of a comment.
_WIDTH: Final = 118
#: Lines about where one step comes from.
MOST_TOLD: Final = 4


def quoted(text: str) -> str:
    """As YAML has it."""
    if _PLAIN.fullmatch(text) and text.lower() not in _NOT_PLAIN:
        return text
    return json.dumps(text, ensure_ascii=False)


def to_yaml(drafts: Drafts, *, name: str, source: str, description: str = "") -> str:
    """The text of a plan. ``source`` says what it was inferred from."""
    drafts = fit(drafts)
    ids = names(drafts.steps)
    lines = [*_comment(f"Inferred by `agentmon plan infer` from {source}. Read it before you rely on it.")]
    if any(step.holes for step in drafts.steps) or drafts.holes:
        lines += _comment("`not known` says what could not be known; it is closed, or as narrow as the text allows.")
    if any(exe.startswith("**/") for step in drafts.steps for exes, _ in step.ways for exe in exes):
        lines += _comment("`**/NAME` is a program of that name, wherever PATH finds it.")
    lines += ["", f"plan: {quoted(name)}"]
    lines += [f"description: {quoted(description)}"] if description else []
    for hole in drafts.holes:
        lines += _comment(f"not known: {hole}")
    lines += list(_agent(drafts))
    lines.append("steps:")
    for number, step in enumerate(drafts.steps):
        lines += _step(number, step, ids)
    return "\n".join([*lines, ""])


def _comment(text: str, indent: str = "") -> list[str]:
    words = clean(text.replace("\n", " ")).split(" ")
    lines = [f"{indent}#"]
    for word in words:
        if len(lines[-1]) + len(word) + 1 > _WIDTH and len(lines[-1]) > len(indent) + 4:
            lines.append(f"{indent}#  ")
        lines[-1] += f" {word}"
    return lines


def _agent(drafts: Drafts) -> Iterator[str]:
    yield "agent:"
    yield from _comment("not known: whom the agent itself talks to, such as its model; name it here", "  ")
    yield "  # hosts: [api.example.com:443]"
    rules = []
    if drafts.shells:
        rules.append(
            f"    - {{id: shell, on: exec, exe: {_list(drafts.shells)}, action: allow}}  # it starts the steps"
        )
    if drafts.outside_writes:
        rules += ["    # the shell opens what is redirected to before the program of a step runs",
                  *_rule("redirections", "[write, create]", "paths", drafts.outside_writes, "    ")]  # fmt: skip
    if rules:
        yield "  rules:"
        yield from rules
    else:
        yield "  rules: []"


def _list(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(quoted, texts))}]" if len(texts) != 1 else quoted(texts[0])


def _rule(id_: str, on: str, key: str, texts: Sequence[str], indent: str) -> list[str]:
    short = f"{indent}- {{id: {id_}, on: {on}, {key}: {_list(texts)}, action: allow}}"
    if len(short) <= _WIDTH:
        return [short]
    return [
        f"{indent}- id: {id_}", f"{indent}  on: {on}", f"{indent}  {key}:",
        *(f"{indent}    - {quoted(text)}" for text in texts), f"{indent}  action: allow",
    ]  # fmt: skip


def _step(number: int, step: Draft, ids: Sequence[str]) -> list[str]:
    inside = "    "
    lines = [f"  - id: {quoted(ids[number])}"]
    for told in step.told[:MOST_TOLD]:
        lines += _comment(told, inside)
    if len(step.told) > MOST_TOLD:
        lines += _comment(f"and {len(step.told) - MOST_TOLD} more", inside)
    for who, what in step.data:
        lines += _comment(f"takes {what} from {ids[who]}", inside)
    for key, some in (("needs", step.needs), ("after", step.after - step.needs)):
        if some:
            lines.append(f"{inside}{key}: {_list([ids[n] for n in sorted(some)])}")
    lines += _starts(step, inside)
    lines += [f"{inside}repeat: true"] if step.repeat else []
    lines += _closed(step, inside)
    for hole in step.holes:
        lines += _comment(f"not known: {hole}", inside)
    return lines


def _starts(step: Draft, inside: str) -> list[str]:
    if not step.ways:
        return [f"{inside}starts: mark"]
    if len(step.ways) == 1:
        return _folded(f"{inside}starts: ", _way(step.ways[0]), f"{inside}  ")
    return [
        f"{inside}starts:",
        *(line for way in step.ways for line in _folded(f"{inside}  - ", _way(way), f"{inside}    ")),
    ]


def _way(way: Way) -> list[str]:
    """What stands between commas."""
    exe, argv = way
    words = [quoted(text) for text in exe]
    if len(words) > 1:
        words[0], words[-1] = f"[{words[0]}", f"{words[-1]}]"
    words[0] = f"{{exe: {words[0]}"
    if argv is not None:
        more = [quoted(text) for text in argv] or [""]
        more[0] = f"argv: [{more[0]}"
        words += [*more[:-1], f"{more[-1]}]"]
    return [*words[:-1], f"{words[-1]}}}"]


def _folded(start: str, words: Sequence[str], indent: str) -> list[str]:
    """Words with commas between, in as many lines as they need."""
    lines = [start]
    for i, word in enumerate(words):
        piece = word if i == len(words) - 1 else f"{word}, "
        if i and len(lines[-1]) + len(piece) > _WIDTH:
            lines.append(indent)
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _closed(step: Draft, inside: str) -> list[str]:
    """Constraints and rules. What is not known of files is left to the workspace, of hosts and programs is said."""
    lines: list[str] = []
    rules: list[str] = []
    deep = f"{inside}  "
    writes = _few(step.writes)
    if step.files_known and not writes:
        lines.append(f"{inside}read-only: true")
    elif step.files_known:
        rules += _rule("files", "[write, create]", "paths", writes, deep)
    else:
        rules += _comment("not known: see below; narrowed to the workspace and temporary files", deep)
        rules += _rule("files", "[write, create]", "paths", _few([*writes, "{workspace}/**", "{tmp}/**"]), deep)
    if step.looks:
        rules += _rule("reads", "read", "paths", _few(step.looks), deep)
    if step.no_network:
        lines.append(f"{inside}no-network: true")
    elif step.addresses:
        if step.hosts:
            rules += _rule("names", "[connect, send]", "hosts", step.hosts, deep)
        rules += _rule("addresses", "[connect, send]", "cidrs", step.addresses, deep)
    elif step.hosts:
        lines.append(f"{inside}hosts: {_list(step.hosts)}")
    if step.no_exec:
        lines.append(f"{inside}no-exec: true")
    elif step.execs_known and step.execs:
        rules += _rule("programs", "exec", "exe", list(dict.fromkeys(step.execs)), deep)
    return [*lines, *([f"{inside}rules:", *rules] if rules else [])]


def _few(paths: Iterable[str]) -> list[str]:
    """Without those that another one covers."""
    every = list(dict.fromkeys(paths))
    below = [path[:-2] for path in every if path.endswith("/**") and not path.startswith("**")]
    return [
        path for path in every
        if not any((path != f"{start}**" and path.startswith(start)) or path == start[:-1] for start in below)
    ]  # fmt: skip
