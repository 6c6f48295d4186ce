# SPDX-License-Identifier: Apache-2.0
"""A file as it was when somebody was asked about it, and whether it became another one since.

A change of its size or of its change time is seen. But a page that is mapped for writing, and dirty already, is written
to without either (``file_update_time()`` is called by the first write alone, in `page_mkwrite`), and any page of tmpfs
is. So nobody may open it for writing meanwhile, or it is heard of (`Lease`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from agentmon.model.events import Shown


def look(file: bytes | int) -> Shown | None:
    """By path or descriptor. None: it is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return Shown(found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size)


class Lease:
    """A lease for reading (fcntl(2)): whoever opens the file for writing waits, and who holds the lease gets `SIGIO`.

    The kernel grants one only where nobody has the file open for writing, or mapped so (``check_conflicting_open()`` in
    fs/locks.c). What is there is the same until somebody opens it.
    """

    def __init__(self, fd: int, *, opened: bool = True) -> None:
        """`fd`: of a plain file, open for reading alone, or (`opened` false) with `O_PATH`; is closed with this."""
        self._file, self._fd = fd, fd if opened else -1
        error = self._take()
        self._held = not error
        #: Somebody has, or had since, the file open for writing. False too where the file system has no leases.
        self.broken = error == errno.EAGAIN

    def _take(self) -> int:
        try:
            if self._fd < 0:  # EAGAIN: somebody has a lease for writing, and is told to give it up
                self._fd = os.open(f"/proc/self/fd/{self._file}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.fcntl(self._fd, fcntl.F_SETOWN, os.getpid())  # else it is this thread, which may be gone by then
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            return error.errno or errno.EINVAL
        return 0

    def _give(self) -> None:
        self._held = False
        with contextlib.suppress(BlockingIOError):  # the kernel took it: fs.lease-break-time is over
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def look(self) -> bool:
        """Whether it is `broken`; who waits for that goes on."""
        if self._held and fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            self.broken = True
            self._give()
        return self.broken

    def is_open(self) -> bool:
        """Whether somebody has it open for writing right now."""
        if not self.look():
            return False
        error = self._take()
        if not error:
            self._give()
        return error == errno.EAGAIN

    def close(self) -> None:
        """Who waits goes on."""
        self._held = False
        for fd in {self._file, self._fd} - {-1}:
            os.close(fd)
        self._file = self._fd = -1


def lease_at(path: bytes) -> Lease | None:
    """Of the file there, links followed. None: it is no plain file, or cannot be opened."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return Lease(fd, opened=False)
        os.close(fd)
    return None
