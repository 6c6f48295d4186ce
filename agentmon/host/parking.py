# SPDX-License-Identifier: Apache-2.0
"""Freezing processes one by one: in a frozen cgroup below their own, and back.

The kernel freezes cgroups, not processes (cgroup-v2.rst, `cgroup.freeze`). A child of the process's own cgroup keeps it
in its unit or container, with all limits, and needs no controller. A frozen process can be killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from agentmon.errors import AgentmonError
from agentmon.host import process
from agentmon.model.events import ProcessKey


class ParkingError(AgentmonError):
    """A process cannot be frozen."""


class Parking:
    """Frozen cgroups of one name below those of whoever is held."""

    def __init__(self, root: Path, name: str) -> None:
        self._root, self._name = root, name
        self._lots: dict[ProcessKey, Path] = {}

    def __contains__(self, key: ProcessKey) -> bool:
        return key in self._lots

    def park(self, key: ProcessKey) -> None:
        """Freeze a process with all its threads, if it is still this one. Raises `ParkingError`."""
        try:
            own = process.cgroup(key.pid)
        except ProcessLookupError:
            return
        if not own:
            raise ParkingError("its cgroup is not in the v2 tree")
        home = self._root / own.lstrip("/")
        lot = home if home.name == self._name else home / self._name
        try:
            lot.mkdir(exist_ok=True)
            (lot / "cgroup.freeze").write_text("1")
            (lot / "cgroup.procs").write_text(str(key.pid))
        except ProcessLookupError:
            return
        except OSError as error:
            raise ParkingError(f"`{lot}` cannot take it: {error.strerror}") from error
        self._lots[key] = lot
        if not process.is_alive(key):
            self.unpark(key)  # the PID was somebody else's by then

    def unpark(self, key: ProcessKey) -> None:
        """Let it go on, where it was."""
        lot = self._lots.pop(key, None)
        if lot is None:
            return
        _move(key.pid, lot.parent)
        if lot not in self._lots.values():
            empty(lot)

    def sweep(self) -> None:
        """Let children go on that were born while their parent was being moved."""
        for lot in set(self._lots.values()):
            kept = {key.pid for key, where in self._lots.items() if where == lot}
            for pid in _inhabitants(lot):
                if pid not in kept:
                    _move(pid, lot.parent)

    def adopt(self) -> dict[int, Path]:
        """PIDs that an earlier daemon left frozen, and where."""
        return {pid: lot for lot in lots(self._root, self._name) for pid in _inhabitants(lot)}

    def know(self, key: ProcessKey, lot: Path) -> None:
        """It was frozen there by an earlier daemon."""
        self._lots[key] = lot


def lots(root: Path, name: str) -> list[Path]:
    """The cgroups of this name, wherever they are."""
    return [Path(directory, name) for directory, names, _ in os.walk(root) if name in names]


def empty(lot: Path) -> None:
    """Let all that are in a frozen cgroup go on, and remove it."""
    for pid in _inhabitants(lot):
        _move(pid, lot.parent)
    with contextlib.suppress(OSError):
        lot.rmdir()


def _inhabitants(lot: Path) -> list[int]:
    try:
        return [int(word) for word in (lot / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _move(pid: int, where: Path) -> None:
    try:
        (where / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise ParkingError(f"`{where}` cannot take process {pid}: {error.strerror}") from error
