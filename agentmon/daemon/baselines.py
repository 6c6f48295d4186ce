# SPDX-License-Identifier: Apache-2.0
"""Baselines for sessions: by name, each read once a revision, beside the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from agentmon.errors import AgentmonError
from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.store import Store, shipped_directory

#: Baselines kept in memory, whether a session uses them or not.
KEPT = 8
#: While one is read, the rest of the daemon goes on this often, in seconds.
_TURN_S = 0.02

_Stamp = tuple[str, int, int]


class Baselines:
    """The baselines of a directory."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory, shipped_directory())
        self._kept: dict[str, tuple[_Stamp, Baseline]] = {}

    def load(self, name: str, meanwhile: Callable[[], None] | None = None) -> Baseline:
        """The baseline in force. Raises `AgentmonError`.

        Counting the tables of a large one takes a second: a thread does it, and what is held must not wait for that.
        """
        path = self.store.path(name)
        try:
            status = path.stat()
        except OSError as error:
            raise AgentmonError(
                f"cannot read the baseline `{path}`: {(error.strerror or str(error)).lower()}"
            ) from error
        stamp = str(path), status.st_mtime_ns, status.st_size
        kept = self._kept.pop(name, None)
        baseline = kept[1] if kept is not None and kept[0] == stamp else self._read(name, meanwhile)
        self._kept[name] = stamp, baseline
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return baseline

    def _read(self, name: str, meanwhile: Callable[[], None] | None) -> Baseline:
        if meanwhile is None:
            return self.store.load(name)
        found: list[Baseline | Exception] = []

        def read() -> None:
            try:
                found.append(self.store.load(name))
            except Exception as error:  # noqa: BLE001  # it is raised where somebody waits for it
                found.append(error)

        thread = threading.Thread(target=read, name="baseline", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_TURN_S)
            meanwhile()
        (result,) = found
        if isinstance(result, Exception):
            raise result
        return result
