# SPDX-License-Identifier: Apache-2.0
"""Freezing processes one by one: each in a frozen cgroup of its own below the one that it is in, and back.

The kernel freezes cgroups, not processes (cgroup-v2.rst, `cgroup.freeze`). A child of the process's own cgroup keeps it
in its unit or container, with all limits, and needs no controller. A frozen process can be killed. Where a unit or
container may have no child (`cgroup.max.descendants`, read-only), and nobody else is in it, it is frozen in place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from agentmon.errors import AgentmonError
from agentmon.host import files, process
from agentmon.model.events import ProcessKey

#: Moving a process waits for all forks that are under way, by RCU: 8 to 20 ms, or 0.3 ms if RCU is told to hurry
#: (kernel/rcu/sync.c, rcu_expedited in kernel-parameters.txt). Meanwhile what is to be frozen burns a processor.
EXPEDITED = Path("/sys/kernel/rcu_expedited")

#: Whoever goes on stays in its cgroup for so long: held again, it is frozen at once, without being moved.
IDLE_S = 2.0
#: What goes on may fork while it is brought back.
_TRIES = 5
_PAUSE_S = 0.05
#: On a cgroup that was frozen in place: by which daemon. It outlives that one, and ends with the cgroup.
_MARK = "trusted.agentmon-held"


class ParkingError(AgentmonError):
    """A process cannot be frozen."""


class Parking:
    """Frozen cgroups below those of whoever is held: ``NAME-PID``.

    Moving blocks. Not thread-safe but for `freeze_again`.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        alone: Callable[[ProcessKey, Collection[int]], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``alone``: whether all of these PIDs may wait because this process does."""
        self._root, self._name, self._alone, self._clock = root, name, alone, clock
        self._lots: dict[ProcessKey, Path] = {}
        self._whole: set[Path] = set()  # of these lots, those that were frozen in place
        self._idle: dict[ProcessKey, tuple[Path, float]] = {}  # they go on; since when
        self._left: set[Path] = set()  # of processes that had ended, but not quite

    def __contains__(self, key: ProcessKey) -> bool:
        return key in self._lots

    def park(self, key: ProcessKey) -> None:
        """Freeze a process with all its threads, if it is still this one. Raises `ParkingError`."""
        if key in self._lots:
            return
        idle, _ = self._idle.pop(key, (None, 0.0))
        if idle is not None:
            _freeze(idle)  # first of all: until then it burns a processor
        try:
            own = process.cgroup(key.pid)
        except ProcessLookupError:
            own = ""
        if idle is not None:
            if self._root / own.lstrip("/") == idle:
                self._lots[key] = idle
                self._let_others_go(key, idle)
                return
            self._left.add(idle)  # somebody moved it, or it has ended
            self._clear()
        if own:
            self._move_in(key, own)
        elif process.is_alive(key):
            raise ParkingError("its cgroup is not in the v2 tree")

    def _move_in(self, key: ProcessKey, own: str) -> None:
        home = self._root / own.lstrip("/")
        if home.name.startswith(f"{self._name}-"):
            home = home.parent  # born in its parent's, which goes on
        lot = home / f"{self._name}-{key.pid}"
        self._left.discard(lot)
        try:
            lot.mkdir(exist_ok=True)
            _freeze(lot)
            with _hurry():
                files.write(lot / "cgroup.procs", key.pid)
        except ProcessLookupError:
            _remove(lot)
            return
        except OSError as error:
            _remove(lot)
            self._freeze_in_place(key, home, f"`{lot}` cannot take it: {error.strerror}")
            return
        self._lots[key] = lot
        if not process.is_alive(key):
            self.leave(key)  # the PID was somebody else's by then

    def _freeze_in_place(self, key: ProcessKey, home: Path, why: str) -> None:
        try:
            if home not in self._whole:
                if not self._alone(key, [pid for directory, _, _ in os.walk(home) for pid in _inhabitants(directory)]):
                    raise ParkingError(f"{why}; and others are in `{home}`")
                if files.read(home / "cgroup.freeze").strip() != b"0":
                    raise ParkingError(f"{why}; and somebody else froze `{home}`")
                os.setxattr(home, _MARK, self._name.encode())
                files.write(home / "cgroup.freeze", 1)
        except OSError as error:
            raise ParkingError(f"{why}; and `{home}` cannot be frozen: {error.strerror}") from error
        self._whole.add(home)
        self._lots[key] = home
        if not process.is_alive(key):
            self.leave(key)

    def freeze_again(self, key: ProcessKey) -> None:
        """Before `park`: freeze who was let go on and not yet brought back. From any thread.

        Waits for a move that is under way, as all that touches cgroups does, and for nothing else.
        """
        idle, _ = self._idle.get(key, (None, 0.0))
        if idle is not None:
            _freeze(idle)

    def unpark(self, key: ProcessKey) -> None:
        """Let it go on; `sweep` brings it back to where it was."""
        lot = self._lots.pop(key, None)
        if lot in self._whole:
            self._thaw_whole(lot)
        elif lot is not None:
            _thaw(lot)
            self._idle[key] = lot, self._clock()

    def _thaw_whole(self, home: Path) -> None:
        """Once nobody in it waits for an answer."""
        if home not in self._lots.values():
            self._whole.discard(home)
            empty(home)

    def leave(self, key: ProcessKey) -> None:
        """Let it go on, and bring it back now. Raises `ParkingError`: it goes on, but elsewhere."""
        lot, _ = self._idle.pop(key, (None, 0.0))
        lot = self._lots.pop(key, lot)
        if lot in self._whole:
            self._thaw_whole(lot)
        elif lot is not None:
            self._left.add(lot)
            self._clear()

    def leave_all(self) -> None:
        """The same of all. Raises `ParkingError`."""
        for key in [*self._lots, *self._idle]:
            self.leave(key)
        for _ in range(_TRIES):
            if not self._left:
                break
            time.sleep(_PAUSE_S)
            self._clear()

    def _clear(self) -> None:
        for lot in list(self._left):
            if empty(lot):
                self._left.discard(lot)

    def sweep(self) -> None:
        """Bring back one that went on, and let children go on that were born where their parent waits. As `leave`.

        No more than one, for whoever is to be frozen or let go on meanwhile has to wait. Whom somebody thawed
        is frozen again (root may): it would burn a processor until it has its answer.
        """
        self._clear()
        for key, lot in self._lots.items():
            if lot not in self._whole:
                if is_thawed(lot):
                    _freeze(lot)
                self._let_others_go(key, lot)
        now_s = self._clock()
        for key, (_, since_s) in self._idle.items():  # the longest first
            if now_s - since_s > IDLE_S:
                self.leave(key)
                break

    @staticmethod
    def _let_others_go(key: ProcessKey, lot: Path) -> None:
        for pid in _inhabitants(lot):
            if pid != key.pid:
                _move(pid, lot.parent)

    def adopt(self) -> dict[int, Path]:
        """PIDs that an earlier daemon left frozen, and where."""
        found = {lot: _inhabitants(lot) for lot in lots(self._root, self._name)}
        self._left |= {lot for lot, pids in found.items() if not pids}
        return {pid: lot for lot, pids in found.items() for pid in pids}

    def know(self, key: ProcessKey, lot: Path) -> None:
        """It was frozen there by an earlier daemon."""
        self._lots[key] = lot
        if _frozen_in_place(lot):
            self._whole.add(lot)


def lots(root: Path, name: str) -> list[Path]:
    """What a daemon froze, of this name: cgroups of single processes, and those frozen in place."""
    return [
        Path(directory)
        for directory, _, _ in os.walk(root)
        if os.path.basename(directory).startswith(f"{name}-") or _frozen_in_place(directory) == name
    ]


def empty(lot: Path) -> bool:
    """Let all that are in a frozen cgroup go on at once, bring them back, and remove it. Raises `ParkingError`.

    One that was frozen in place stays, with all that are in it.

    False: somebody is ending in it; again later.
    """
    _thaw(lot)
    if _frozen_in_place(lot):
        with contextlib.suppress(FileNotFoundError):
            os.removexattr(lot, _MARK)
        return True
    for _ in range(_TRIES):
        pids = _inhabitants(lot)
        if not pids:
            break
        for pid in pids:
            _move(pid, lot.parent)
    return _remove(lot)


def _frozen_in_place(lot: str | Path) -> str:
    """The name of the daemon that did so, or ""."""
    try:
        return os.getxattr(lot, _MARK).decode()
    except OSError:
        return ""


def _freeze(lot: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # then nothing is in it
        files.write(lot / "cgroup.freeze", 1)


def is_thawed(lot: Path) -> bool:
    """Whether nobody in this cgroup has to wait."""
    try:
        return files.read(lot / "cgroup.freeze").strip() == b"0"
    except OSError:  # it is gone
        return False


def _thaw(lot: Path) -> None:
    with contextlib.suppress(OSError):  # it is gone
        files.write(lot / "cgroup.freeze", 0)


def _remove(lot: Path) -> bool:
    with contextlib.suppress(OSError):  # others are in it
        lot.rmdir()
    return not lot.exists()


def _inhabitants(lot: str | Path) -> list[int]:
    try:
        return [int(word) for word in files.read(Path(lot, "cgroup.procs")).split()]
    except OSError:
        return []


def _move(pid: int, where: Path) -> None:
    try:
        with _hurry():
            files.write(where / "cgroup.procs", pid)
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise ParkingError(f"`{where}` cannot take process {pid}: {error.strerror}") from error


@contextlib.contextmanager
def _hurry() -> Iterator[None]:
    """Where that may be said, and nobody else says so already, RCU hurries for a moment: no other effect than that."""
    try:
        fd = os.open(EXPEDITED, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        if os.pread(fd, 8, 0).strip() != b"0":
            yield
            return
        os.pwrite(fd, b"1", 0)
        try:
            yield
        finally:
            os.pwrite(fd, b"0", 0)
    finally:
        os.close(fd)
