# SPDX-License-Identifier: Apache-2.0
"""From the paths of a recorded session to patterns that hold for the next one.

Three steps: session variables take the place of their values; what changes from run to run (versions, hashes, process
ids, temporary names) becomes ``*``; several siblings become their directory's ``/*`` or ``/**``. Directories that hold
everybody's things (``/etc``, the home itself, ``~/.config``) never do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from agentmon.policy.rules import Variables

#: That many different names in a directory stand for all of it.
SEVERAL: Final = 3

#: What changes from run to run. Each alternative is bounded, so that words are not cut.
_CHANGING = re.compile(
    r"""
      [0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}                             # a UUID
    | (?<![0-9A-Za-z])(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{7,}(?![0-9A-Za-z])        # a hash
    | (?<![0-9A-Za-z])(?P<python>tmp[a-z0-9_]{8})(?![0-9A-Za-z_])                      # Python's tempfile
    | (?<![0-9A-Za-z])(?P<gcc>cc(?=[a-z]*[0-9A-Z])[A-Za-z0-9]{6})(?![^.])              # gcc's temporary files
    | (?<=[._-])(?=[A-Za-z0-9]*[0-9])(?=[A-Za-z0-9]*[A-Z])[A-Za-z0-9]{6}(?![^.])       # mktemp's XXXXXX
    | [0-9]+(?:\.[0-9]+)+                                                              # a version
    | [0-9]{4,}                                                                        # a process id, a time
    """,
    re.VERBOSE,
)

_BEGINNING = re.compile(r"[^*?\[]{3}|[^*?\[]*$|cc\?{6}")

#: Containers of unrelated things: a rule names what is in them. Keys are anchors; so is every shorter path.
_SHARED: Final[dict[str, set[tuple[str, ...]]]] = {
    "~": {
        (), (".config",), (".local",), (".local", "share"), (".local", "state"), (".local", "lib"), (".cache",),
        (".var",), (".var", "app"), ("snap",),
    },
    "{tmp}": {()},
    "{workspace}": set(),
}  # fmt: skip
_SHARED_BELOW: Final = {"home": 2, "var": 2, "run": 2, "media": 2, "mnt": 2}  # depth; elsewhere 1


#: A recorded path, and the operation on it.
Source = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """A path as components below ``/`` or a variable; each is glob text that matches it."""

    anchor: str  # "", "~", "{tmp}" or "{workspace}"
    components: tuple[str, ...]

    def pattern(self, tail: str = "") -> str:
        """As written in a policy."""
        return "/".join([self.anchor, *self.components]) + tail or "/"


@dataclass(frozen=True, slots=True)
class Generalised:
    """A pattern, and what it comes from."""

    pattern: str
    sources: frozenset[Source]


def place(path: bytes, variables: Variables, *, changing: bool = True) -> Place:
    """Where a true path is. ``changing``: with ``*`` for what changes from run to run."""
    if path.startswith(b"@"):  # the name of an abstract socket
        return Place(literal(os.fsdecode(path)), ())
    anchor, rest = "", path
    for name, value in sorted(
        (("{workspace}", variables.workspace), ("~", variables.home), ("{tmp}", variables.tmp)),
        key=lambda pair: -len(pair[1]),
    ):
        if value != b"/" and (path == value or path.startswith(value + b"/")):
            anchor, rest = name, path[len(value) :]
            break
    user = os.fsdecode(variables.user)
    parts: list[str] = []
    for text in filter(None, os.fsdecode(rest).split("/")):
        if changing and text.isdecimal() and text.isascii() and (parts == ["proc"] or parts[2:] == ["task"]):
            parts.append("[0-9]*")
        elif text == user != "root" and anchor == "":
            parts.append("{user}")
        else:
            general = _generalised(text) if changing else literal(text)
            # A name that changes from its start on stands for all of its directory.
            parts.append(general if _BEGINNING.match(general) or not is_shared(anchor, parts) else literal(text))
    return Place(anchor, tuple(parts))


def literal(text: str) -> str:
    """Glob text for one name: what is special is escaped, what YAML cannot hold is ``?`` for each byte."""
    return "".join(f"\\{c}" if c in "*?[]{}\\" else c if c.isprintable() else "?" * len(os.fsencode(c)) for c in text)


def _generalised(text: str) -> str:
    parts, end = [], 0
    for match in _CHANGING.finditer(text):
        kept = "tmp*" if match["python"] else "cc??????" if match["gcc"] else "*"
        parts += [literal(text[end : match.start()]), kept]
        end = match.end()
    general = re.sub(r"(?<!\\)\*{2,}", "*", "".join([*parts, literal(text[end:])]))
    return "[0-9]*" if general == "*" and text.isdecimal() else general


def is_shared(anchor: str, components: Iterable[str]) -> bool:
    """Whether a directory holds unrelated things, so that nothing may stand for all of it."""
    parts = tuple(components)
    if anchor:
        return parts in _SHARED[anchor]
    return len(parts) <= _SHARED_BELOW.get(parts[0], 1) if parts else True


@dataclass(slots=True)
class _Directory:
    children: dict[str, _Directory] = field(default_factory=dict)
    sources: set[Source] = field(default_factory=set)  # what ends here

    def everything(self) -> frozenset[Source]:
        below = [child.everything() for child in self.children.values()]
        return frozenset(self.sources).union(*below)


def patterns(places: Iterable[tuple[Place, Source]], *, siblings: bool = True) -> list[Generalised]:
    """Few patterns that match all these places (each with what it comes from), sorted.

    ``siblings`` False: outside of the session's own directories no name stands for its neighbours.
    """
    roots: dict[str, _Directory] = {}
    for where, source in places:
        directory = roots.setdefault(where.anchor, _Directory())
        for component in where.components:
            directory = directory.children.setdefault(component, _Directory())
        directory.sources.add(source)
    found = [
        general
        for anchor, root in roots.items()
        for general in _collapse(root, Place(anchor, ()), siblings or bool(anchor))
    ]
    return sorted(found, key=lambda general: general.pattern)


def _collapse(directory: _Directory, where: Place, siblings: bool) -> Iterator[Generalised]:
    children = directory.children
    if siblings and len(children) >= SEVERAL and not is_shared(where.anchor, where.components):
        flat = not directory.sources and not any(child.children for child in children.values())
        yield Generalised(where.pattern("/*" if flat else "/**"), directory.everything())
        return
    if directory.sources:
        yield Generalised(where.pattern(), frozenset(directory.sources))
    for name, child in children.items():
        yield from _collapse(child, Place(where.anchor, (*where.components, name)), siblings)
