# SPDX-License-Identifier: Apache-2.0
"""What the words of a command come to, as far as a shell's state says it before it runs."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

from agentmon.plan.infer.syntax import Node
from agentmon.plan.infer.words import Choice, Hole, Part, Variable, Wild, Word

_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_DOUBLE: Final = re.compile(r'\\([$`"\\\n])')
_CODES: Final = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "e": "\x1b"}


@dataclass(slots=True)
class State:
    """What the shell knows. ``cwd`` None: nobody knows; `DIR/**`: it is that directory or one below."""

    cwd: str | None = "{workspace}"
    before: str | None = None  # for `cd -`
    variables: dict[str, Word] = field(default_factory=dict)
    arguments: list[Word] | None = None  # of a function
    strict: bool = False  # `set -e`
    pipefail: bool = False
    dead: bool = False  # it has ended here

    def copy(self) -> State:
        other = copy(self)
        other.variables = dict(self.variables)
        return other

    def merged(self, other: State) -> State:
        """What is known if either came to be."""
        if self.dead or other.dead:
            return (self if other.dead else other).copy()
        one = self.copy()
        if one.cwd != other.cwd:
            one.cwd = _common(one.cwd, other.cwd)
        for name in {*one.variables, *other.variables}:
            if one.variables.get(name) != other.variables.get(name):
                one.variables[name] = Word((Hole(f"${name}"),))
        one.strict = self.strict and other.strict
        return one


def _common(one: str | None, other: str | None) -> str | None:
    """Where both are, or below that."""
    if one is None or other is None:
        return None
    names = zip(one.removesuffix("/**").split("/"), other.removesuffix("/**").split("/"), strict=False)
    shared = "/".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], names))
    return f"{shared}/**" if shared else None


class Expander(ABC):
    """Makes words of nodes. Its `state` is changed by who runs statements."""

    def __init__(self) -> None:
        self.state = State()
        self.loops = 0
        #: Directories by which the text may name the workspace and the home; the longest first.
        self.anchors: list[tuple[str, str]] = []

    def path(self, word: Word) -> str | None:
        """A pattern for the true path that a word names; None: nothing of it is known."""
        path = word.path(self.state.cwd)
        if path is not None:
            for directory, anchor in self.anchors:
                if path == directory or path.startswith(f"{directory}/"):
                    return anchor + path[len(directory) :]
        return path

    @abstractmethod
    def substitution(self, node: Node) -> tuple[Part, ...]:
        """What ``$(…)`` or ``<(…)`` gives; the steps inside come before the one that takes it."""

    def assign(self, node: Node, *, keep: bool = True) -> dict[str, Word]:
        name = node.child_by_field_name("name")
        value = node.child_by_field_name("value")
        if name is None:
            return {}
        key = name.text.decode("utf-8", "replace")
        if name.type != "variable_name" or (value is not None and value.type == "array"):
            key = key.partition("[")[0]
            if value is not None:
                self.substitutions(value)
            word = Word((Hole(f"${key}"),))
        elif value is None:
            word = Word(("",))
        else:
            word = Word(self._parts(value, quoted=True))
            operator = next((c.type for c in node.children if c.type in ("=", "+=")), "=")
            if operator == "+=":
                word = Word((*self.state.variables.get(key, Word((Hole(f"${key}"),))).parts, *word.parts))
        if self.loops and keep and any(isinstance(p, Hole) for p in self.state.variables.get(key, Word(())).parts):
            word = Word((Hole(f"${key}", tuple(m for h in word.holes for m in h.makers)),))
        if keep:
            self.state.variables[key] = word
        return {key: word}

    def words(self, node: Node) -> list[Word]:
        """The words that one of the text becomes."""
        text = node.text.decode("utf-8", "surrogateescape")
        braces = node.type in ("word", "concatenation") and "{" in text and ("," in text or ".." in text)
        if braces or node.type == "brace_expression":
            found = _braces(node, text)
            if found is not None:
                return [Word(tuple(_unquoted(each))) for each in found]
            return [Word((Hole(text),), many=True)]
        parts = self._parts(node, quoted=False)
        if node.type in ("simple_expansion", "expansion") and all(isinstance(p, str) for p in parts):
            return [Word((each,)) for each in "".join(parts).split()]  # type: ignore[arg-type]  # text only
        many = any(isinstance(p, Wild) or (isinstance(p, Hole) and p.name in ("$@", "$*")) for p in parts)
        if _bare_expansion(node):
            many |= any(isinstance(p, Hole) for p in parts)
            many |= any(len(text.split()) != 1 for p in parts if isinstance(p, Choice) for text in p.texts)
        return [Word(tuple(parts), many)]

    def _parts(self, node: Node, *, quoted: bool) -> tuple[Part, ...]:
        kind = node.type
        if kind in ("word", "number", "command_name", "test_operator", "extglob_pattern", "regex", "-"):
            if node.named_child_count and kind == "command_name":
                return self._parts(node.named_children[0], quoted=quoted)
            return tuple(_unquoted(node.text.decode("utf-8", "surrogateescape"), globs=not quoted))
        if kind == "raw_string":
            return (node.text.decode("utf-8", "surrogateescape")[1:-1],)
        if kind == "ansi_c_string":
            text = node.text.decode("utf-8", "surrogateescape")[2:-1]
            if re.search(r"\\[^ntr\\'\"abe]", text):
                return (Hole(f"$'{text}'"),)
            return (re.sub(r"\\(.)", lambda m: _CODES[m[1]], text),)
        if kind in ("string", "translated_string"):
            return self._string(node)
        if kind == "concatenation":
            found: list[Part] = []
            for child in node.children:
                parts = self._parts(child, quoted=quoted)
                if found and child.type == "word" and child.text.startswith(b"~"):
                    parts = ("~", *parts[1:])  # a home only at the beginning of a word
                found += parts
            return _joined(found)
        if kind == "simple_expansion":
            return self._variable(node.text.decode("utf-8", "replace")[1:])
        if kind == "expansion":
            return self._expansion(node)
        if kind in ("command_substitution", "process_substitution"):
            return self.substitution(node)
        if kind == "arithmetic_expansion":
            self.substitutions(node)
            return (Hole(node.text.decode("utf-8", "replace")[:40]),)
        if not node.is_named:
            return (node.text.decode("utf-8", "surrogateescape"),)
        self.substitutions(node)
        return (Hole(node.text.decode("utf-8", "replace")[:40]),)

    def _string(self, node: Node) -> tuple[Part, ...]:
        """Text in double quotes: what stands between its parts is text, too."""
        found: list[Part] = []
        start = node.start_byte
        data: bytes = node.text
        at = data.index(b'"') + 1
        for child in node.named_children:
            if child.type == "string_content":
                continue
            found.append(_DOUBLE.sub(_double, data[at : child.start_byte - start].decode("utf-8", "surrogateescape")))
            found += self._parts(child, quoted=True)
            at = child.end_byte - start
        end = len(data) - 1 if data.endswith(b'"') and len(data) > at - 0 else len(data)
        found.append(_DOUBLE.sub(_double, data[at:end].decode("utf-8", "surrogateescape")))
        return _joined(found)

    def _variable(self, name: str) -> tuple[Part, ...]:
        state = self.state
        known = state.variables.get(name)
        if known is not None:
            return known.parts
        if name == "HOME":
            return (Variable("home"),)
        if name == "USER":
            return (Variable("user"),)
        if name == "PWD" and state.cwd is not None:
            return self._as_parts(state.cwd)
        if name.isdecimal() and state.arguments is not None and name != "0":
            at = int(name) - 1
            return state.arguments[at].parts if at < len(state.arguments) else ("",)
        if name in ("@", "*") and state.arguments is not None and len(state.arguments) == 1:
            return state.arguments[0].parts
        return (Hole(f"${name}"),)

    @staticmethod
    def _as_parts(path: str) -> tuple[Part, ...]:
        if "*" in path:
            return (Hole("$PWD"),)
        for name in ("workspace", "home"):
            if path.startswith(f"{{{name}}}"):
                rest = path[len(name) + 2 :]
                return (Variable(name), rest) if rest else (Variable(name),)
        return (path,)

    def _expansion(self, node: Node) -> tuple[Part, ...]:
        """``${X}`` and ``${X:-y}`` as far as X is known."""
        text = node.text.decode("utf-8", "replace")
        self.substitutions(node)
        plain = re.fullmatch(r"\$\{([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*])\}", text)
        if plain:
            return self._variable(plain[1])
        default = re.fullmatch(r"\$\{([A-Za-z_][A-Za-z0-9_]*):?[-=]([^${}`\"'\\*?]*)\}", text)
        if default and default[1] in self.state.variables:
            word = self.state.variables[default[1]]
            return word.parts if word.literal != "" else (default[2],)
        return (Hole(text if len(text) <= 40 else text[:39] + "…"),)

    def substitutions(self, node: Node) -> None:
        """Steps that are inside of something that is not known otherwise."""
        for child in node.named_children:
            if child.type in ("command_substitution", "process_substitution"):
                self.substitution(child)
            else:
                self.substitutions(child)


def _double(match: re.Match[str]) -> str:
    return "" if match[1] == "\n" else match[1]


def _unquoted(text: str, *, globs: bool = True) -> Iterator[Part]:
    """A word without quotes: escapes, wildcards, `~`."""
    if text == "~" or text.startswith("~/"):
        yield Variable("home")
        text = text[1:]
    elif text.startswith("~"):
        yield Hole(text.partition("/")[0])
        text = text[len(text.partition("/")[0]) :]
    if not text:
        return
    if not globs or not re.search(r"[*?\[]", text):
        yield _ESCAPE.sub(lambda m: "" if m[1] == "\n" else m[1], text)
        return
    at = 0
    for match in re.finditer(r"\\.|\[[^\]/]+\]|[*?]", text, re.DOTALL):
        if match.start() > at:
            yield text[at : match.start()]
        at = match.end()
        found = match[0]
        if found.startswith("\\"):
            yield found[1]
        else:
            yield Wild(found if not re.fullmatch(r"\[.*([^ -~]|\[:).*\]", found, re.DOTALL) else "?")
    if at < len(text):
        yield text[at:]


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    found: list[Part] = []
    for part in parts:
        if part == "" and len(parts) > 1:
            continue
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return tuple(found) or ("",)


def _braces(node: Node, text: str) -> list[str] | None:
    """The words that braces stand for; None: that is not known here. Only text without quotes and variables."""
    if any(child.type not in ("word", "number", "brace_expression") for child in node.named_children):
        return None
    if re.search(r"[$`\"'\\]", text):
        return None
    form = re.fullmatch(r"([^{}]*)\{([^{}]*)\}([^{}]*)", text)
    if form is None:
        return None
    span = re.fullmatch(r"(-?[0-9]{1,4})\.\.(-?[0-9]{1,4})", form[2])
    if span:
        low, high = int(span[1]), int(span[2])
        if span[1].startswith("0") or span[2].startswith("0") or abs(high - low) > 100:
            return None
        step = 1 if high >= low else -1
        return [f"{form[1]}{i}{form[3]}" for i in range(low, high + step, step)]
    if "," not in form[2] or ".." in form[2]:
        return None if ".." in form[2] and "," not in form[2] else [text]
    return [form[1] + middle + form[3] for middle in form[2].split(",")]


def _bare_expansion(node: Node) -> bool:
    """Whether something is put in without quotes, so that it may become several words."""
    if node.type in ("simple_expansion", "expansion", "command_substitution"):
        return True
    return node.type == "concatenation" and any(_bare_expansion(child) for child in node.named_children)
