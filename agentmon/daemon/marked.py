# SPDX-License-Identifier: Apache-2.0
"""What the files were called whose opens wait: who moves one to a name that was approved is asked by its earlier one.

That outlives the daemon (``held.json``): a file may be moved while there is none, or be opened after the next came.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

#: Files that are remembered; beyond that, those are forgotten that have had no such name for longest.
FILES: Final = 4096


class Marked:
    """By device and inode: what tells a file from a later one of that number, and its names, the latest last."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], tuple[bytes, dict[bytes, None]]] = {}

    def __contains__(self, place: tuple[int, int]) -> bool:
        return place in self._files

    def __bool__(self) -> bool:
        return bool(self._files)

    def add(self, place: tuple[int, int], made: bytes, path: bytes) -> bool:
        """It is called that now. `made`: as `kernel.handle.made_as` has it. Whether the next daemon must be told."""
        known, paths = self._files.pop(place, (made, {}))
        paths = paths if known == made else {}
        is_latest = next(reversed(paths), None) == path
        paths.pop(path, None)
        paths[path] = None
        self._files[place] = made, paths
        while len(self._files) > FILES:
            del self._files[next(iter(self._files))]
        return not is_latest

    def names(self, place: tuple[int, int]) -> list[bytes]:
        """The latest first; none: it is not marked."""
        return list(reversed(self._files[place][1])) if place in self._files else []

    def clear(self) -> None:
        """Nothing is marked any more."""
        self._files.clear()

    def rows(self) -> list[list[Any]]:
        """For JSON."""
        return [[*place, made.hex(), list(map(os.fsdecode, paths))] for place, (made, paths) in self._files.items()]


def marked_in(state: Path) -> Marked:
    """As the last daemon wrote it down; nothing if that cannot be read."""
    marked = Marked()
    try:
        known = json.loads((state / "held.json").read_text(encoding="utf-8"))
        for device, inode, made, paths in known["files"]:
            for path in paths:
                marked.add((int(device), int(inode)), bytes.fromhex(made), os.fsencode(path))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Marked()
    return marked
