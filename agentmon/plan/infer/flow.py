# SPDX-License-Identifier: Apache-2.0
"""Which step made the file that another one takes: patterns of paths that may name the same file."""

from __future__ import annotations

import re
from typing import Final

_WILD: Final = re.compile(r"(?<!\\)[*?\[{]")


class Made:
    """Files by who wrote them last. A look-up costs a step a directory, however many were written without wildcards."""

    def __init__(self) -> None:
        self._exact: dict[str, int] = {}
        self._below: dict[str, int] = {}
        self._wild: dict[str, tuple[re.Pattern[str], int]] = {}

    def note(self, path: str, step: int) -> None:
        """A step writes what this pattern matches."""
        directory = path.removesuffix("/**")
        if not _WILD.search(_plain(directory)):
            (self._below if directory != path else self._exact)[directory] = step
        else:
            self._wild[path] = (_regex(path), step)

    def makers(self, path: str) -> list[int]:
        """The steps that write what a pattern may name, as far as the texts say it."""
        found: set[int] = set()
        whole = path.removesuffix("/**")
        if _WILD.search(_plain(whole)):
            regex = _regex(path)
            found |= {step for made, step in self._exact.items() if regex.fullmatch(made)}
            found |= {step for made, (_, step) in self._wild.items() if made == path}
        elif whole != path:
            found |= {step for made, step in self._exact.items() if made.startswith(f"{whole}/")}
            found |= {step for made, step in self._below.items() if f"{made}/".startswith(f"{whole}/")}
        if whole in self._exact:
            found.add(self._exact[whole])
        directory = whole
        while directory and self._below:
            if directory in self._below:
                found.add(self._below[directory])
            directory = directory.rpartition("/")[0]
        found |= {step for regex, step in self._wild.values() if regex.fullmatch(whole)}
        return sorted(found)


def _plain(path: str) -> str:
    """Without the variable that it may begin with."""
    return re.sub(r"^\{(workspace|home|tmp)\}", "", path)


def _regex(path: str) -> re.Pattern[str]:
    """Roughly: braces and sets stand for anything in one name."""
    variable = re.match(r"\{(?:workspace|home|tmp)\}", path)
    beginning = variable[0] if variable else ""
    text = re.sub(r"\{[^{}]*\}|\[[^\]]*\]", "*", path[len(beginning) :])
    parts = [
        {"**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*|\?)", text)
    ]
    return re.compile(re.escape(beginning) + "".join(parts))
