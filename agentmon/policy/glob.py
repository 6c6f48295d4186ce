# SPDX-License-Identifier: Apache-2.0
"""Path patterns: their grammar, and the flat form that the evaluator and the compiler read.

Braces are expanded first, so a pattern becomes a few flat sequences of elements:

====================  ==================================================================
``int`` 0..255        that byte
``frozenset[int]``    one byte of the set (never ``/``)
`ANY`                 ``?``: one byte but ``/``
`STAR`                ``*``: bytes but ``/``
`ANYTHING`            ``**`` beside something else than slashes: any bytes
`DIRECTORIES`         what ``**/`` means after a ``/``: zero or more whole directories
`TAIL`                a final ``/**``: nothing, or ``/`` and any bytes
====================  ==================================================================

Everything is in bytes: a pattern is UTF-8, a path is whatever the kernel says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

ANY: Final = -1
STAR: Final = -2
ANYTHING: Final = -3
DIRECTORIES: Final = -4
TAIL: Final = -5

Element = int | frozenset[int]
#: A flat pattern before its variables are known: elements and names of variables.
Template = tuple[Element | str, ...]

SLASH: Final = 0x2F
PATH_VARIABLES: Final = ("workspace", "home", "tmp")
VARIABLES: Final = (*PATH_VARIABLES, "user")

MAX_ALTERNATIVES: Final = 1_000  # of one pattern, after braces; more is a mistake, not a policy
MAX_TEXT_BYTES: Final = 4_095  # PATH_MAX without its NUL
MAX_ELEMENTS: Final = 50_000  # of all alternatives of one pattern
MAX_CHOICES: Final = 30  # that a message lists

_VARIABLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")
_SPECIAL: Final = {ANY: b"[^/]", STAR: b"[^/]*", ANYTHING: b".*", DIRECTORIES: b"(?:.*/)?", TAIL: b"(?:/.*)?"}


class GlobError(ValueError):
    """A pattern is malformed. ``offset`` is the character in the pattern that is to blame."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Glob:
    """One flat pattern with its variables filled in."""

    elements: tuple[Element, ...]

    @property
    def exact(self) -> bytes | None:
        """The only path that matches, if there is just one."""
        literals = [e for e in self.elements if isinstance(e, int) and e >= 0]
        return bytes(literals) if len(literals) == len(self.elements) else None

    @property
    def beginning(self) -> bytes:
        """What every path that matches begins with."""
        for i, element in enumerate(self.elements):
            if not isinstance(element, int) or element < 0:
                return bytes(self.elements[:i])  # type: ignore[arg-type]  # only bytes so far
        return bytes(self.elements)  # type: ignore[arg-type]

    @property
    def lasting(self) -> bool:
        """Whether the glob, once matched, stays matched whatever follows (it ends in ``**``)."""
        return self.elements[-1:] in ((TAIL,), (ANYTHING,))

    @property
    def floating(self) -> bool:
        """Whether ``**`` appears before the end, so that the automaton looks for the rest everywhere."""
        return any(e in (ANYTHING, DIRECTORIES) for e in self.elements[:-1])

    def regex(self) -> bytes:
        """The same language as a regular expression over bytes (for ``re.DOTALL`` and ``fullmatch``)."""
        return b"".join(_regex(e) for e in self.elements)


#: What a rule without an object matches, and on `unix` that too.
EVERYTHING: Final = Glob((TAIL,))
ABSTRACT: Final = 0x40  # the `@` before the name of an abstract socket
EVERY_ABSTRACT: Final = Glob((ABSTRACT, ANYTHING))


def _regex(element: Element) -> bytes:
    if isinstance(element, frozenset):
        return b"[" + b"".join(b"\\x%02x" % b for b in sorted(element)) + b"]"
    return _SPECIAL[element] if element < 0 else re.escape(bytes([element]))


def parse(text: str) -> tuple[Template, ...]:
    """Parse a pattern into its flat alternatives.

    Raises:
        GlobError: with the offset of the character to blame and the remedy.
    """
    if not text:
        raise GlobError("empty pattern; `**` matches every path")
    if "\0" in text:
        raise GlobError("a path has no NUL byte; take it out", text.index("\0"))
    if len(text.encode("utf-8", "surrogateescape")) > MAX_TEXT_BYTES:
        raise GlobError(f"longer than {MAX_TEXT_BYTES} bytes, as no path can be; shorten it, or write several patterns")
    flats, _ = _Parser(text).sequence(0, depth=0)
    return tuple(dict.fromkeys(_normalise(flat, text) for flat in flats))


def parse_word(text: str) -> tuple[Template, ...]:
    """Parse a pattern for any text, not a path: a slash is a character as any.

    Raises:
        GlobError: with the offset of the character to blame and the remedy.
    """
    if "\0" in text:
        raise GlobError("no argument has a NUL byte; take it out", text.index("\0"))
    if len(text.encode("utf-8", "surrogateescape")) > MAX_TEXT_BYTES:
        raise GlobError(f"longer than {MAX_TEXT_BYTES} bytes; end it in `*`")
    flats, _ = _Parser(text, word=True).sequence(0, depth=0)
    return tuple(dict.fromkeys(tuple(flat) for flat in flats))


class _Parser:
    def __init__(self, text: str, *, word: bool = False) -> None:
        self.text = text
        self.word = word  # a slash is a byte as any

    def sequence(self, at: int, depth: int) -> tuple[list[list[Element | str]], int]:
        """Parse until the end, or inside braces until `,` or `}`: (alternatives, offset of what stopped it)."""
        if depth > 20:
            raise GlobError("braces nested too deeply; write several patterns", at)
        flats: list[list[Element | str]] = [[]]
        text = self.text
        while at < len(text) and not (depth and text[at] in ",}"):
            pieces: list[list[Element | str]]
            char = text[at]
            if char == "{":
                pieces, at = self._braces(at, depth)
            elif char == "*":
                end = at
                while end < len(text) and text[end] == "*":
                    end += 1
                pieces, at = [[STAR if end - at == 1 else ANYTHING]], end
            elif char == "?":
                pieces, at = [[ANY]], at + 1
            elif char == "[":
                chosen, at = self._set(at)
                pieces = [[chosen]]
            elif char == "}":
                raise GlobError("`}` without `{`; write `\\}` for the character itself", at)
            else:
                if char == "\\":
                    at += 1
                    if at == len(text):
                        raise GlobError("`\\` at the end escapes nothing; write `\\\\` for a backslash", at - 1)
                    char = text[at]
                pieces, at = [list(char.encode("utf-8", "surrogateescape"))], at + 1
            if len(flats) * len(pieces) > MAX_ALTERNATIVES:
                raise GlobError(f"more than {MAX_ALTERNATIVES} alternatives; write several patterns", at - 1)
            if len(pieces) == 1:  # nearly always, and then in place: copying would take the square of the length
                for flat in flats:
                    flat.extend(pieces[0])
            else:
                flats = [flat + piece for flat in flats for piece in pieces]
            if len(flats) * len(flats[-1]) > MAX_ELEMENTS:
                raise GlobError("too long for its many alternatives; write several patterns", at - 1)
        return flats, at

    def _braces(self, start: int, depth: int) -> tuple[list[list[Element | str]], int]:
        variable = _VARIABLE.match(self.text, start)
        if variable:
            name = variable[1]
            if name not in VARIABLES:
                raise GlobError(f"unknown variable `{{{name}}}`{did_you_mean(name, VARIABLES)}", start)
            return [[name]], variable.end()
        pieces: list[list[Element | str]] = []
        at, commas = start + 1, 0
        while True:
            more, at = self.sequence(at, depth + 1)
            pieces += more
            if at == len(self.text):
                raise GlobError("`{` is never closed; write `\\{` for the character itself", start)
            at += 1
            if self.text[at - 1] == "}":
                break
            commas += 1
        if not commas:
            raise GlobError(
                "`{…}` holds neither a variable nor alternatives with a comma; write `\\{` for the character itself",
                start,
            )
        return pieces, at

    def _set(self, start: int) -> tuple[frozenset[int], int]:
        text, at = self.text, start + 1
        negated = at < len(text) and text[at] in "!^"
        at += negated
        members: set[int] = set()
        first = True
        while at < len(text) and (first or text[at] != "]"):
            first = False
            if text.startswith("[:", at):
                raise GlobError("named sets such as `[:alpha:]` are not supported; write `[a-zA-Z]`", at)
            low, at = self._member(at)
            high = low
            if at + 1 < len(text) and text[at] == "-" and text[at + 1] != "]":
                high, at = self._member(at + 1)
            if high < low:
                raise GlobError(f"the range `{chr(low)}-{chr(high)}` is empty; swap its ends", start)
            members.update(range(low, high + 1))
        if at >= len(text):
            raise GlobError("`[` is never closed; write `\\[` for the character itself", start)
        if self.word:
            chosen = set(range(1, 256)) - members if negated else members
        elif SLASH in members and (not negated and len(members) == 1):
            raise GlobError("a set cannot match `/`; take the slash out of it", start)
        else:
            chosen = (set(range(256)) - members if negated else members) - {SLASH}
        if not chosen:
            raise GlobError("the set matches nothing; put bytes into it, or take it out", start)
        return frozenset(chosen), at + 1

    def _member(self, at: int) -> tuple[int, int]:
        if self.text[at] == "\\" and at + 1 < len(self.text):
            at += 1
        char = self.text[at]
        if ord(char) > 127:
            raise GlobError(f"`{char}` in a set: only ASCII fits in one byte; write `{{a,b}}` instead", at)
        return ord(char), at + 1


def _normalise(flat: Sequence[Element | str], text: str) -> Template:
    """Give stars beside slashes their meaning, and refuse what no true path can match."""
    tokens: list[Element | str] = []
    for token in flat:
        if token in (STAR, ANYTHING) and tokens and tokens[-1] in (STAR, ANYTHING):
            tokens[-1] = min(tokens[-1], token, key=_star_width)
        else:
            tokens.append(token)
    if tokens and tokens[0] == ord("~"):
        if len(tokens) > 1 and tokens[1] != SLASH:
            raise GlobError("`~` stands for the session user's home; for another user write the whole path")
        tokens[0] = "home"
    _check(tokens, text)
    shaped: list[Element | str] = []
    at = 0
    while at < len(tokens):
        # "/**" again and again says no more than once.
        while tokens[at : at + 4] == [SLASH, ANYTHING, SLASH, ANYTHING]:
            at += 2
        if tokens[at:] == [SLASH, ANYTHING]:
            shaped.append(TAIL)
            break
        if tokens[at : at + 3] == [SLASH, ANYTHING, SLASH]:
            shaped += [SLASH, DIRECTORIES]
            at += 3
        else:
            shaped.append(tokens[at])
            at += 1
    return tuple(shaped) if shaped != [ANYTHING] else (TAIL,)


def _star_width(token: Element | str) -> int:
    return 0 if token == ANYTHING else 1


def _check(tokens: Sequence[Element | str], text: str) -> None:
    if tokens and tokens[0] == ABSTRACT:
        return  # a name, not a path
    if not tokens or (tokens[0] not in (SLASH, ANYTHING) and tokens[0] not in PATH_VARIABLES):
        raise GlobError("a pattern starts with `/`, `~`, `{workspace}`, `{home}`, `{tmp}` or `**`; begin this one so")
    for i, token in enumerate(tokens):
        if token in PATH_VARIABLES:
            if i:
                raise GlobError(
                    f"`{{{token}}}` is a whole path: it can only start a pattern; take it out here",
                    max(text.find("{", 1), 0),
                )
            if len(tokens) > 1 and tokens[1] != SLASH:
                raise GlobError(f"after `{{{token}}}` comes `/` or nothing; add the slash")
    components: list[list[Element | str]] = [[]]
    for token in tokens:
        if token == SLASH:
            components.append([])
        else:
            components[-1].append(token)
    if len(tokens) == 1:
        return
    if not components[-1]:
        raise GlobError("ends in `/`, which no true path does; drop it, or end in `/**` for all below", len(text) - 1)
    if any(not c for c in components[1:]):
        raise GlobError("has `//`, which no true path has; write one slash", max(text.find("//"), 0))
    for dots in ([0x2E], [0x2E, 0x2E]):
        if dots in components:
            raise GlobError("has a component `.` or `..`, which no true path has; write the path without it")


def bind(template: Template, values: Mapping[str, bytes]) -> Glob:
    """Fill in variables. Their values are taken literally: glob characters in them mean themselves.

    Raises:
        KeyError: a variable has no value.
    """
    elements: list[Element] = []
    for i, token in enumerate(template):
        if isinstance(token, str):
            value = values[token]
            if value == b"/" and i + 1 < len(template):
                continue  # the slash that follows is the root's
            elements.extend(value)
        else:
            elements.append(token)
    return Glob(tuple(elements))


def closest(word: str, words: Sequence[str]) -> str | None:
    """The word that was probably meant, if one is close."""
    import difflib

    close = difflib.get_close_matches(word.lower() if word.isupper() else word, words, n=1, cutoff=0.6)
    return close[0] if close else None


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """``; did you mean `x`?``, or the choices when nothing is close."""
    close = closest(word, words)
    if close:
        return f"; did you mean `{close}`?"
    if not words:
        return "; none is known, so leave it out"
    more = f" and {len(words) - MAX_CHOICES} more" if len(words) > MAX_CHOICES else ""
    return "; known: " + ", ".join(f"`{w}`" for w in words[:MAX_CHOICES]) + more
