# SPDX-License-Identifier: Apache-2.0
"""A policy's bytes, before YAML: read with a bound, decoded, and what YAML's own complaints mean to people."""

from __future__ import annotations

import os
import re
from typing import Final

from agentmon.errors import NoPolicyError, PolicyError
from agentmon.model.text import clean

MAX_TEXT_BYTES: Final = 1 << 20

#: What YAML may not contain (YAML 1.1, section 5.1), a byte order mark after the start included.
_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_LINE_END: Final = re.compile("\r\n|[\r\n\x85\u2028\u2029]")

_OUT_OF_PLACE: Final = (
    "this does not belong here; indent keys alike, and put text that has `{`, `[` or a quote in (other) quotes"
)
#: Words of libyaml's complaints, and what helps; the first that fits.
_REMEDIES: Final = (
    ("another document", "a second document begins; keep one policy a file, without `---` between"),
    ("alphabetic or numeric", "`*` or `&` begins an alias; put a pattern that starts with it in quotes"),
    ("undefined alias", "`*` begins an alias; put a pattern that starts with it in quotes"),
    ("escape", "no such escape in double quotes; use single quotes, which have none"),
    ("hexdecimal", "no such escape in double quotes; use single quotes, which have none"),
    ("end of stream", "a quote is never closed; close it"),
    ("document indicator", "a quote is never closed; close it"),
    ("expected ':'", "a key without `:`; write `key: value`, and close quotes"),
    (
        "values are not allowed",
        "a `:` does not fit here; put text that has `: ` in it in quotes, and indent keys alike",
    ),
    ("',' or", "a `,`, `]` or `}` is missing; close every bracket, and put text with `{` or `[` in quotes"),
    ("expected key", _OUT_OF_PLACE),
    ("block end", _OUT_OF_PLACE),
    ("'-' indicator", "this does not belong here; start each item of the list with `- `, indented alike"),
    ("entries are not allowed", "a `- ` does not fit here; begin the list on a line of its own, indented"),
    ("keys are not allowed", "a `? ` does not fit here; write `key: value`"),
    ("tag", "`!` begins a tag, which has no meaning here; leave it out, or put the text in quotes"),
    ("incompatible", "YAML of another version; leave the line with `%` out"),
    ("<document start>", _OUT_OF_PLACE),
    ("node content", _OUT_OF_PLACE),
    ("comment or line break", "text after `|` or `>`; begin it on the next line, indented"),
    ("directive", "`%` begins a directive, which has no meaning here; leave it out"),
    ("second occurrence", "an anchor is given twice; rename one, or write the text out"),
)


def read_text(path: str, what: str = "policy") -> str:
    """The text of a file; ``what`` it is, is only said in messages.

    Raises:
        NoPolicyError: it cannot be read.
        PolicyError: it is too large, or is not UTF-8.
    """
    try:
        # Not to wait for a writer of a FIFO that has none; one that has (`<(command)`) is waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        os.set_blocking(fd, True)
        with open(fd, "rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)  # no more, whatever it is: `/dev/zero` has no end
    except (OSError, ValueError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise NoPolicyError(clean(f"cannot read {what} `{path}`: {why}; name a file that you can read")) from None
    return decode(data, path)


def decode(data: bytes, file: str) -> str:
    """Bytes as text. Raises `PolicyError`: there are too many, or they are not UTF-8."""
    check_size(data, file)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        # what comes before the bad byte is UTF-8
        before = data[: error.start].decode("utf-8")
        line, column = position(before, len(before))
        bad = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise PolicyError(clean(f"{file}:{line}:{column}: {bad}; save the file as UTF-8")) from None


def check_size(data: bytes | str, file: str) -> None:
    """Raises `PolicyError`: there is more than a policy can be."""
    if len(data) > MAX_TEXT_BYTES:
        raise PolicyError(clean(f"{file}:1:1: larger than {MAX_TEXT_BYTES >> 20} MiB; split it into packs"))


def check_characters(text: str, file: str) -> None:
    """Raises `PolicyError`: YAML cannot have one of the characters, and libyaml would not say where."""
    bad = _FORBIDDEN.search(text)
    if bad:
        line, column = position(text, bad.start())
        what = f"the character U+{ord(bad[0]):04X} cannot stand in YAML; take it out"
        hint = ', or write it as "\\x00" in double quotes' if bad[0] < " " and bad[0] != "\0" else ""
        raise PolicyError(clean(f"{file}:{line}:{column}: not YAML: {what}{hint.replace('00', f'{ord(bad[0]):02x}')}"))


def position(text: str, offset: int) -> tuple[int, int]:
    """Line and column of a character, from 1."""
    ends = [m.end() for m in _LINE_END.finditer(text, 0, offset)]
    return len(ends) + 1, offset - (ends[-1] if ends else 0) + 1


def explain_yaml(problem: str, text: str, offset: int) -> str:
    """What a complaint of libyaml means, and what helps. ``offset`` is where it stumbled."""
    char = text[offset : offset + 1]
    if char == "\t":
        return "a tab cannot indent; use spaces"
    if "cannot start any token" in problem and char:
        return f"`{char}` cannot start text; put it in quotes"
    for words, remedy in _REMEDIES:
        if words in problem:
            return remedy
    return f"{problem}; put text with special characters in quotes, and indent with spaces"
