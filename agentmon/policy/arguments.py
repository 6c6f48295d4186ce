# SPDX-License-Identifier: Apache-2.0
"""Patterns over the arguments of a program, as globs over one text.

The automaton knows paths only, so arguments become one: each is a component, ``git push origin`` is ``/push/origin``.
A slash inside an argument and the NUL that would separate them in memory change places (``bpf/arguments.bpf.h``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Final

from agentmon.policy.glob import (
    ANYTHING,
    DIRECTORIES,
    MAX_ALTERNATIVES,
    SLASH,
    TAIL,
    Element,
    Glob,
    GlobError,
    Template,
    bind,
    parse_word,
)
from agentmon.policy.rules import Pattern

#: Stands for any number of arguments.
ANY_NUMBER: Final = "**"
_MANY: Final[tuple[Template, ...]] = ((ANYTHING,),)

#: Words of one pattern.
MAX_WORDS: Final = 64

_SWAP: Final = bytes([SLASH, *range(1, SLASH), 0, *range(SLASH + 1, 256)])


def as_path(arguments: Iterable[bytes]) -> bytes:
    """What the automaton reads: the arguments of a program, without its own name."""
    return b"".join(b"/" + argument.translate(_SWAP) for argument in arguments)


def parse_argument(text: str) -> tuple[Template, ...]:
    """The flat alternatives of a pattern for one argument, or for any number of them (``**``).

    Raises:
        GlobError: with the offset of the character to blame and the remedy.
    """
    if text == ANY_NUMBER:
        return _MANY
    if text == "~" or text.startswith("~/"):
        raise GlobError("`~` is not filled in here, as the shell does that before; write `{home}`")
    alternatives = parse_word(text)
    if any(ANYTHING in flat for flat in alternatives):
        raise GlobError(
            "`**` stands alone, for any number of arguments; within one, `*` is any text", text.index(ANY_NUMBER)
        )
    return alternatives


def argument_globs(patterns: Sequence[Pattern], values: Mapping[str, bytes]) -> tuple[Glob, ...]:
    """The pattern of all arguments, in its flat alternatives.

    Raises:
        PolicyError: there are too many.
    """
    count = 1
    for pattern in patterns:
        count *= len(pattern.alternatives)
        if count > MAX_ALTERNATIVES:
            raise pattern.place.error(f"`argv` has more than {MAX_ALTERNATIVES} alternatives; write several rules")
    found: dict[Glob, None] = {}
    for words in product(*(pattern.alternatives for pattern in patterns)):
        found[_joined([None if word == _MANY[0] else bind(word, values) for word in words])] = None
    return tuple(found)


def _joined(words: Sequence[Glob | None]) -> Glob:
    """``None``: any number of arguments."""
    elements: list[Element] = []
    many = False
    for word in words:
        if word is None:
            many = True
            continue
        elements += [SLASH, DIRECTORIES] if many else [SLASH]
        elements += map(_swapped, word.elements)
        many = False
    return Glob((*elements, TAIL) if many else tuple(elements))


def _swapped(element: Element) -> Element:
    """What stands for an element of a word: there a slash is no separator."""
    if isinstance(element, frozenset):
        return frozenset(0 if byte == SLASH else byte for byte in element)
    return 0 if element == SLASH else element


def match(globs: Iterable[Glob], arguments: Iterable[bytes]) -> bool:
    """Whether some arguments are of a pattern."""
    text = as_path(arguments)
    return any(re.fullmatch(glob.regex(), text, re.DOTALL) for glob in globs)
