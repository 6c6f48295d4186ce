# SPDX-License-Identifier: Apache-2.0
"""Names of hosts, as policies allow them and agents ask for them: lower case A-labels without a final dot."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

#: RFC 1035 section 2.3.4, in text form: 255 bytes on the wire are 253 characters.
MAX_NAME_BYTES: Final = 253

# Underscores are not for hosts (RFC 952), but such names exist and resolve.
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")

T = TypeVar("T")


def canonical(name: str) -> str | None:
    """Lower case, without the final dot; None if no host can be called that (or it is not ASCII)."""
    name = name.removesuffix(".").lower()
    if len(name) > MAX_NAME_BYTES or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        return None
    return name


@dataclass(frozen=True, slots=True)
class HostPattern:
    """One canonical name; or with ``wildcard`` every name below it, by one label or more, but not itself."""

    name: str
    wildcard: bool = False

    def __str__(self) -> str:
        return f"*.{self.name}" if self.wildcard else self.name

    def holds(self, name: str) -> bool:
        """Whether a canonical name is meant."""
        return name.endswith("." + self.name) if self.wildcard else name == self.name


class NameTable(Generic[T]):
    """Patterns with what they stand for. A look-up costs one step a label, however many patterns there are."""

    def __init__(self, items: Iterable[tuple[HostPattern, T]] = ()) -> None:
        self._exact: dict[str, list[tuple[HostPattern, T]]] = {}
        self._below: dict[str, list[tuple[HostPattern, T]]] = {}
        for pattern, item in items:
            table = self._below if pattern.wildcard else self._exact
            table.setdefault(pattern.name, []).append((pattern, item))

    def __bool__(self) -> bool:
        return bool(self._exact or self._below)

    def look_up(self, name: str) -> list[tuple[HostPattern, T]]:
        """All that hold a canonical name, the most specific first."""
        found = list(self._exact.get(name, ()))
        rest = name
        while self._below and "." in rest:
            rest = rest.partition(".")[2]
            found += self._below.get(rest, ())
        return found
