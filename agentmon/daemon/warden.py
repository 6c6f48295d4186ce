# SPDX-License-Identifier: Apache-2.0
"""Whoever is frozen must not stay so when the daemon is gone for good: denies what is held, and lets all go on.

A process of its own, started with the first that is held. It reads from a socket that the daemon holds: its end is the
daemon's death. If no other has come some time later, it does what the daemon cannot do any more. Until then it keeps
those waiting who wait in an open (`daemon.gatekeeping`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from agentmon.daemon.gatekeeping import Keeper, listen
from agentmon.errors import AgentmonError, KernelError
from agentmon.host import process, starting
from agentmon.host.parking import ParkingError, empty, lots
from agentmon.kernel.answers import HALTS, MAPS, Answers, Halted
from agentmon.kernel.host import cgroup2_root
from agentmon.kernel.tables import open_maps
from agentmon.model.operations import Action

#: How long the next daemon may take to come.
GRACE_S = 30.0
#: Who holds the lock for so long, and has started, is the next daemon: the one that died gives it back only after the
#: socket, and one that fails while it starts takes over nothing.
SETTLED_S = 5.0
POLL_S = 0.5


def lot_name(pins: Path) -> str:
    """Of the frozen cgroups of a daemon: two of one host are told apart by where they pin."""
    return f"agentmon-held-{zlib.crc32(os.fsencode(pins)):08x}"


def start(pins: Path, state: Path, lot: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A warden of the daemon that calls, and what it reads from; `pins`: the directory of its build. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, listen(state) as server, _without_sigterm():
        words = [sys.executable, "-m", "agentmon.daemon.warden", os.fspath(pins), os.fspath(state), lot]
        process = subprocess.Popen(
            [*words, str(server.fileno())],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[server.fileno()],
        )
    return process, ours


@contextlib.contextmanager
def _without_sigterm() -> Iterator[None]:
    """Systemd ends the warden along with the service; but first, nobody else may have to wait for who is dead."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_go(pins: Path, lot: str) -> int:
    """Deny what is held, and let go on who is frozen. Returns how many questions were denied."""
    denied = 0
    with contextlib.suppress(AgentmonError):  # no pins: nothing is held any more
        names = (*MAPS, *HALTS) if (pins / "maps" / HALTS[0]).exists() else MAPS
        answers = Answers(*open_maps(pins / "maps", names).values())
        for key, tid, held in list(answers.waiting()):
            answers.put(key, tid, held, Action.DENY)
            denied += 1
        for halted in answers.halted():
            deny(answers, halted)
    for where in lots(cgroup2_root(), lot):
        with contextlib.suppress(ParkingError):  # the others go on
            empty(where)
    return denied


def deny(answers: Answers, halted: Halted) -> None:
    """End a process that is stopped at the start of a program, and that nobody let go on; a frozen one once thawed."""
    for held in halted.objects:
        if not answers.is_answered(halted.process, halted.process.pid, held):  # else it is on its way already
            with contextlib.suppress(KernelError):  # without an answer it is ended, too
                answers.put(halted.process, halted.process.pid, held, Action.DENY)
    with contextlib.suppress(PermissionError):
        process.send_signal(halted.process, signal.SIGCONT)  # the kernel sees to the rest


def nobody_comes(
    lock: BinaryIO,
    state: Path,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait for the next daemon. False: it is there. True: it did not come in `GRACE_S`, and now none may."""
    died_s = clock()
    taken_s: float | None = None
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            now_s = clock()
            if taken_s is None or starting.under_way(state):
                taken_s = now_s
            if now_s - taken_s >= SETTLED_S:
                return False
        else:
            if clock() - died_s > GRACE_S:
                return True
            fcntl.flock(lock, fcntl.LOCK_UN)
            taken_s = None
        sleep(POLL_S)


def main(pins: str, state: str, lot: str, server: str) -> None:
    """Wait for the daemon's end; then for the next one."""
    keeper = Keeper(socket.socket(fileno=0), socket.socket(fileno=int(server)), Path(state))
    keeper.wait()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    with open(Path(state, "lock"), "rb") as lock:
        if nobody_comes(lock, Path(state), sleep=keeper.serve):
            keeper.refuse()
            let_go(Path(pins), lot)


if __name__ == "__main__":
    main(*sys.argv[1:5])
