# SPDX-License-Identifier: Apache-2.0
"""A file as it was when somebody was asked about it, and whether it could become another one without being seen to.

What differs in its change time or size is seen. But a page that is mapped for writing, and dirty already, is written to
without either (``file_update_time()`` is called by the first write alone, `page_mkwrite`); and two changes of one tick
of the clock have one time. So what was shown counts only of a file that nobody has open for writing (a mapping counts),
and that was not changed just now.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import time
from functools import cache
from typing import Final

from agentmon.model.events import Shown

#: The longest tick (`CONFIG_HZ=100`), twice: of what changed since, a later change may have the same time.
TICK_NS: Final = 20_000_000

_HANDLE_BYTES: Final = 128  # MAX_HANDLE_SZ, include/linux/exportfs.h
_AT_EMPTY_PATH: Final = 0x1000  # include/uapi/linux/fcntl.h


class _Handle(ctypes.Structure):
    """``struct file_handle``."""

    _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * _HANDLE_BYTES))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def look(file: bytes | int) -> Shown | None:
    """By path or descriptor. None: it is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return Shown(found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size)


def is_fresh(file: Shown) -> bool:
    """Whether it was changed just now."""
    return 0 <= time.time_ns() - file.changed_ns <= TICK_NS


def is_written(fd: int) -> bool:
    """Whether somebody has this file open for writing, or mapped; `fd` must be open for reading alone.

    The kernel grants a lease for reading where nobody has (``check_conflicting_open()`` in fs/locks.c). Somebody who
    opens it for writing in the same instant is waited for with `SIGIO`, which the daemon ignores. False too where the
    file system has no leases: nobody can tell.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def is_written_at(path: bytes) -> bool:
    """The same, by path. False: there is no such plain file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_written(fd)
    finally:
        os.close(fd)


def made_as(fd: int) -> bytes:
    """What tells a file from a later one of the same number: name_to_handle_at(2). Empty where nobody can tell."""
    handle = _Handle(_HANDLE_BYTES)
    mount = ctypes.c_int()
    done = _libc().name_to_handle_at(fd, b"", ctypes.byref(handle), ctypes.byref(mount), _AT_EMPTY_PATH)
    return bytes(handle.data[: handle.size]) if done == 0 else b""
