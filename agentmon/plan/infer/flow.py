# SPDX-License-Identifier: Apache-2.0
"""Which step made the file that another one takes: patterns of paths that may name the same file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_WILD: Final = re.compile(r"(?<!\\)[*?\[{]")
_ANCHOR: Final = re.compile(r"^\{(?:workspace|home|tmp)\}")


class Made:
    """Files by who wrote them last; looked for by directory, so that what was written elsewhere costs nothing."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, int]] = {}  # by directory
        self._below: dict[str, int] = {}
        self._wild: dict[str, dict[str, tuple[re.Pattern[str], int]]] = {}  # by the directory before wildcards

    def note(self, path: str, step: int) -> None:
        """A step writes what this pattern matches."""
        for each in _alternatives(path):
            directory = each.removesuffix("/**")
            if _is_wild(directory):
                self._wild.setdefault(_sure(directory), {})[each] = (_regex(each), step)
            elif directory != each:
                self._below[directory] = step
            else:
                self._exact.setdefault(each.rpartition("/")[0], {})[each] = step

    def makers(self, path: str) -> list[int]:
        """The steps that write what a pattern may name, as far as the texts say it."""
        found: set[int] = set()
        for each in _alternatives(path):
            found.update(self._makers(each))
        return sorted(found)

    def _makers(self, path: str) -> Iterator[int]:
        whole = path.removesuffix("/**")
        if _is_wild(whole):
            yield from self._of_wild(path, whole)
        elif whole != path:
            for directory, made in self._exact.items():
                if f"{directory}/".startswith(f"{whole}/"):
                    yield from made.values()
            yield from (step for made, step in self._below.items() if made.startswith(f"{whole}/"))
        exact = self._exact.get(whole.rpartition("/")[0], {}).get(whole)
        if exact is not None:
            yield exact
        directory = whole
        while directory:
            if directory in self._below:
                yield self._below[directory]
            for regex, step in self._wild.get(directory, {}).values():
                if regex.fullmatch(whole):
                    yield step
            directory = directory.rpartition("/")[0]
        yield from (step for regex, step in self._wild.get("", {}).values() if regex.fullmatch(whole))

    def _of_wild(self, path: str, whole: str) -> Iterator[int]:
        regex, sure = _regex(path), _sure(whole)
        if _is_wild(whole.rpartition("/")[0]) or whole != path:
            near = [made for directory, made in self._exact.items() if f"{directory}/".startswith(f"{sure}/")]
        else:
            near = [self._exact.get(sure, {})]
        yield from (step for made in near for each, step in made.items() if regex.fullmatch(each))
        same = self._wild.get(sure, {}).get(path)
        if same is not None:
            yield same[1]


def _is_wild(path: str) -> bool:
    return _WILD.search(_ANCHOR.sub("", path)) is not None


def _sure(path: str) -> str:
    """The directory that everything of a pattern is below; "" if that is not known."""
    anchor = _ANCHOR.match(path)
    start = anchor.end() if anchor else 0
    wild = _WILD.search(path, start)
    return path[: wild.start()].rpartition("/")[0] if wild else path.rpartition("/")[0]


def _alternatives(path: str) -> Iterator[str]:
    """One pair of plain braces is written out."""
    anchor = _ANCHOR.match(path)
    start = anchor.end() if anchor else 0
    form = re.fullmatch(r"([^{}\\]*)\{([^{}\\*?\[]*)\}([^{}\\]*)", path[start:])
    if form is None:
        yield path
    else:
        yield from (path[:start] + form[1] + each + form[3] for each in form[2].split(","))


def _regex(path: str) -> re.Pattern[str]:
    """Roughly: braces and sets stand for anything in one name."""
    anchor = _ANCHOR.match(path)
    start = anchor.end() if anchor else 0
    text = re.sub(r"\{[^{}]*\}|\[[^\]]*\]", "*", path[start:])
    special = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = [special.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*|\?)", text)]
    return re.compile(re.escape(path[:start]) + "".join(parts))
