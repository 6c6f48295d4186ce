# SPDX-License-Identifier: Apache-2.0
"""Examples of all names that some patterns tell apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, count

from agentmon.model.names import HostPattern, canonical


def examples(patterns: Iterable[HostPattern]) -> Iterator[str]:
    """One name of each class, but of those that no pattern holds.

    A name is in the class of its exact pattern; else the deepest wildcard above it says which others hold it.
    """
    known = sorted(set(patterns), key=lambda p: (p.wildcard, p.name))
    exact = {p.name for p in known if not p.wildcard}
    yield from sorted(exact)
    for pattern in known:
        if pattern.wildcard:
            labels = chain(("any",), (f"x{i}" for i in count()))
            name = next(n for label in labels if (n := f"{label}.{pattern.name}") not in exact)
            if canonical(name) is not None:  # else it is too long for any name below it
                yield name
