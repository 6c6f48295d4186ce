# SPDX-License-Identifier: Apache-2.0
"""Text that somebody else chose, made fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Letters and marks that count as printable and show nothing: a name could end where it does not. What Unicode says may
#: be ignored (`Default_Ignorable_Code_Point`, DerivedCoreProperties.txt), and what is drawn as nothing.
_BLANK = frozenset(
    map(
        chr,
        (
            0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x2800, 0x3164, *range(0xFE00, 0xFE10),
            0xFFA0, 0x13441, 0x13442, 0x16FE4, 0x1D159, *range(0xE0100, 0xE01F0),
        ),
    )
)  # fmt: skip


def clean(text: str) -> str:
    """Names come from an agent: control characters and broken bytes must reach neither a terminal nor a log."""
    return "".join(
        c if c.isprintable() and c not in _BLANK else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in text
    )


#: Of what is longer, this is shown to whoever answers.
SHOWN = 1000


def plainly(text: str, most: int = SHOWN) -> str:
    """For a line that somebody decides by: without white space that could push a part of it out of sight.

    Of a long one, its beginning and its end, and how much is not shown.
    """
    if len(text) <= most:
        return _plain(text)
    tail = most // 3
    return f"{_plain(text[: most - tail])} {_left_out(len(text) - most)} {_plain(text[-tail:])}"


def _plain(text: str) -> str:
    return re.sub(" {2,}", lambda run: " " + "\\x20" * (len(run[0]) - 1), clean(text))


def cut(text: str, most: int) -> str:
    """Its beginning, with a sign that there is more."""
    return text if len(text) <= most else f"{text[:most]}…"


def cut_words(words: Sequence[str], most: int) -> list[str]:
    """Those of the beginning and of the end that fit in so many characters; between them, how much is left out."""
    if sum(len(word) + 1 for word in words) - 1 <= most:
        return list(words)
    tail = most // 3
    first = _fit(words, most - tail)
    last = [word[::-1] for word in _fit([word[::-1] for word in reversed(words)], tail)]
    left = sum(map(len, words)) - sum(map(len, (*first, *last)))
    return [*first, _left_out(left), *reversed(last)]


def _fit(words: Sequence[str], most: int) -> list[str]:
    found: list[str] = []
    for word in words:
        if most <= 0:
            break
        found.append(word[:most])
        most -= len(word) + 1
    return found


def _left_out(number: int) -> str:
    return f"…[{number} characters more]…"


def attempt(operation: str, name: str) -> str:
    """An operation with its object, if it has one: `signal` has none."""
    return f"{operation} {name}" if name else operation
