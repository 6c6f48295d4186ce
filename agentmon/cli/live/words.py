# SPDX-License-Identifier: Apache-2.0
"""Text in cells of a terminal: widths, cuts. ASCII only, for terminals that know no more."""

from __future__ import annotations

import unicodedata

from agentmon.model.text import clean

#: A line: pieces of text, each with a style; see `panes.STYLES`.
Line = list[tuple[str, str]]

_GAP = ".."
_LONGEST = 4096  # a path; what is longer is cut before anything looks at it


def tidy(text: object) -> str:
    """Anything that somebody else chose, fit to be shown."""
    return clean(str(text)[:_LONGEST])


def width(text: str) -> int:
    """Cells that a printable text takes."""
    if text.isascii():
        return len(text)
    return sum(_cells(c) for c in text)


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def head(text: str, cells: int) -> str:
    """As much of its beginning as fits."""
    if width(text) <= cells:
        return text
    if cells <= len(_GAP):
        return _take(text, cells)
    return _take(text, cells - len(_GAP)) + _GAP


def middle(text: str, cells: int) -> str:
    """Its beginning and its end: of a path both matter."""
    if width(text) <= cells:
        return text
    room = cells - len(_GAP)
    if room < 6:
        return head(text, cells)
    front = room // 3
    return _take(text, front) + _GAP + _take(text[::-1], room - front)[::-1]


def _take(text: str, cells: int) -> str:
    if text.isascii():
        return text[: max(cells, 0)]
    for index, character in enumerate(text):
        cells -= _cells(character)
        if cells < 0:
            return text[:index]
    return text


def left(text: str, cells: int) -> str:
    """Cut and filled up to the right."""
    text = head(text, cells)
    return text + " " * (cells - width(text))


def right(text: str, cells: int) -> str:
    """Cut and filled up to the left: numbers."""
    text = head(text, cells)
    return " " * (cells - width(text)) + text


def number(value: float) -> str:
    """A rate, or a count, in at most 6 cells."""
    if value >= 999_950:
        return f"{value / 1e6:.1f}M"
    if value >= 99_950:
        return f"{value / 1e3:.0f}k"
    if value >= 10 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}"


def span(seconds: float) -> str:
    """A length of time in 3 or 4 cells."""
    seconds = max(seconds, 0)
    if seconds < 60:
        return f"{seconds:.0f}s"
    if seconds < 3600:
        return f"{seconds / 60:.0f}m"
    if seconds < 86400:
        return f"{seconds / 3600:.0f}h"
    return f"{seconds / 86400:.0f}d"


def plain(line: Line) -> str:
    """A line without its styles."""
    return "".join(text for text, _ in line)
