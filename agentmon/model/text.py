# SPDX-License-Identifier: Apache-2.0
"""Text that somebody else chose, made fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Letters and marks that count as printable and show nothing: a name could end where it does not.
_BLANK = frozenset(map(chr, (0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10))))


def clean(text: str) -> str:
    """Names come from an agent: control characters and broken bytes must reach neither a terminal nor a log."""
    return "".join(
        c if c.isprintable() and c not in _BLANK else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in text
    )


#: Of what is longer, this is shown to whoever answers.
SHOWN = 1000


def plainly(text: str, most: int = SHOWN) -> str:
    """For a line that somebody decides by: cut, and without white space that could push a part of it out of sight."""
    text = re.sub(" {2,}", lambda run: " " + "\\x20" * (len(run[0]) - 1), clean(text[: most + 1]))
    return cut(text, most)


def cut(text: str, most: int) -> str:
    """Its beginning, with a sign that there is more."""
    return text if len(text) <= most else f"{text[:most]}…"


def cut_words(words: Sequence[str], most: int) -> list[str]:
    """As many as fit in so many characters, with a sign that there are more."""
    found: list[str] = []
    for word in words:
        if most <= 0:
            return [*found, "…"]
        found.append(cut(word, most))
        most -= len(word) + 1
    return found


def attempt(operation: str, name: str) -> str:
    """An operation with its object, if it has one: `signal` has none."""
    return f"{operation} {name}" if name else operation
