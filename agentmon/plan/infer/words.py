# SPDX-License-Identifier: Apache-2.0
"""Words of a shell command, as far as they are known before it runs."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentmon.policy.arguments import MAX_WORDS

_SPECIAL: Final = re.compile(r"[*?\[\]{}\\]")
#: One component, or a part of one.
_TAME: Final = re.compile(r"[^/\0\n]*")
#: Characters of one argument in a plan; of a longer one, the beginning.
MOST_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class Hole:
    """What is not known: ``$X``, ``$(date)``. ``makers``: the steps that say it."""

    name: str
    makers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several texts: what a loop goes over."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wild:
    """A pattern that the shell replaces by the names of files."""

    text: str


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the session: `home`, `workspace` or `user`."""

    name: str


Part = str | Hole | Choice | Wild | Variable


@dataclass(frozen=True, slots=True)
class Word:
    """One word; ``many``: it may become none or several words."""

    parts: tuple[Part, ...]
    many: bool = False

    @property
    def literal(self) -> str | None:
        """Its text, if that is known."""
        return "".join(self.parts) if all(isinstance(p, str) for p in self.parts) else None  # type: ignore[arg-type]

    @property
    def begins(self) -> str:
        """What it begins with for sure."""
        return self.parts[0] if self.parts and isinstance(self.parts[0], str) else ""

    @property
    def holes(self) -> list[Hole]:
        """What is not known of it."""
        return [part for part in self.parts if isinstance(part, Hole)]

    def argument(self) -> str:
        """As a pattern for one argument; ``**`` if it may be several."""
        if self.many:
            return "**"
        text = "".join(_pattern(part) for part in self.parts)
        text = re.sub(r"(?<!\\)\*{2,}", "*", text)
        if _is_odd(text):
            text = literal(_until_odd(self.begins))[:MOST_CHARACTERS].rstrip("\\") + "*"
        if text == "~" or text.startswith("~/"):
            text = f"\\{text}"  # not a home: the shell would have filled it in
        return text

    @property
    def cut(self) -> bool:
        """Whether the pattern has its beginning only."""
        return not self.many and _is_odd("".join(_pattern(part) for part in self.parts))

    def path(self, cwd: str | None) -> str | None:
        """As a pattern for a true path; None: nothing of it is known. ``cwd`` None: nobody knows where."""
        if self.many and not any(isinstance(part, Wild) for part in self.parts):
            return None
        if all(isinstance(part, Hole) for part in self.parts):
            return None
        if any(isinstance(part, Variable) and part.name != "user" for part in self.parts[1:]):
            return None  # a whole path in the middle of one
        text = "".join(_pattern(part) for part in self.parts)
        if not text or "\0" in text or not text.isprintable():
            return None
        if isinstance(self.parts[0], Hole):
            rest = text.lstrip("*")
            path = resolve("**" + rest, None) if rest.startswith("/") else None
            return path if path != "**" else None
        return resolve(text, cwd)


def _is_odd(text: str) -> bool:
    """Whether it is too long for a plan, or has what YAML cannot."""
    return len(text) > MOST_CHARACTERS or not (text.isprintable() or re.sub(r"[\n\t]", "", text).isprintable())


def _until_odd(text: str) -> str:
    for i, char in enumerate(text):
        if not char.isprintable() and char not in "\n\t":
            return text[:i]
    return text


def _pattern(part: Part) -> str:
    if isinstance(part, str):
        return literal(part)
    if isinstance(part, Wild):
        return part.text
    if isinstance(part, Choice):
        return "{" + ",".join(literal(text).replace(",", "\\,") for text in part.texts) + "}"
    return f"{{{part.name}}}" if isinstance(part, Variable) else "*"


def literal(text: str) -> str:
    """A pattern that only that text matches."""
    return _SPECIAL.sub(lambda m: "\\" + m[0], text)


def resolve(text: str, cwd: str | None) -> str | None:
    """A pattern for a path, from one that may be relative. None: no true path is like that."""
    if not text.startswith(("/", "{home}", "{workspace}", "**")):
        if cwd is None or (cwd.endswith("/**") and ".." in text.split("/")):
            rest = posixpath.normpath(text)
            return None if rest.startswith("..") or rest == "." else f"**/{rest}"
        text = f"{cwd}/{text}"
    anchor = next((a for a in ("{home}", "{workspace}", "**") if text.startswith(a)), "")
    if anchor and text[len(anchor) :] and not text[len(anchor) :].startswith("/"):
        return None
    rest = posixpath.normpath("/" + text[len(anchor) :].lstrip("/"))
    if anchor and "/.." in text:
        # above the workspace, or home: where that is, is not known here
        depth = 0
        for part in text[len(anchor) :].split("/"):
            depth += -1 if part == ".." else bool(part) and part != "."
            if depth < 0:
                return None
    return (anchor + rest).rstrip("/") or "/"


def arguments(words: Sequence[Word]) -> tuple[str, ...]:
    """Patterns for the arguments of a program."""
    found: list[str] = []
    for word in words:
        text = word.argument()
        if not (text == "**" and found[-1:] == ["**"]):
            found.append(text)
    if len(found) > MAX_WORDS:
        found = [*found[: MAX_WORDS - 1], "**"]
    return tuple(found)
