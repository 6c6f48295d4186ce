# SPDX-License-Identifier: Apache-2.0
"""Opens of chosen files wait for an answer: permission events of fanotify(7), by ctypes on libc.

Whoever opens a marked file waits in the kernel, and can be killed. When the last descriptor of the group is closed, all
go on: what must not needs somebody else to stop it. An event is known by a number, and whoever has the descriptor
of the group may answer it (`process_access_response()` in fs/notify/fanotify/fanotify_user.c compares nothing else).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from dataclasses import dataclass
from functools import cache
from typing import Final

from agentmon.errors import NotSupportedError

# include/uapi/linux/fanotify.h
_CLOEXEC: Final = 0x1
_NONBLOCK: Final = 0x2
_CLASS_CONTENT: Final = 0x4
_UNLIMITED_QUEUE: Final = 0x10
_UNLIMITED_MARKS: Final = 0x20
_REPORT_TID: Final = 0x100
_MARK_ADD: Final = 0x1
_MARK_FLUSH: Final = 0x80
_OPEN_PERM: Final = 0x10000
_OPEN_EXEC_PERM: Final = 0x40000
_ALLOW, _DENY = 1, 2
_AT_FDCWD: Final = -100

EVENT: Final = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
RESPONSE: Final = struct.Struct("=iI")  # struct fanotify_response
_VERSION: Final = 3
_READ_BYTES: Final = 64 * EVENT.size


@dataclass(frozen=True, slots=True)
class Opening:
    """A thread that waits in an open. `fd` is the file, open for reading."""

    fd: int
    tid: int
    to_run: bool  # it is the program of an exec, or the loader of one
    #: The event's name, which was the descriptor's number in whoever read it; -1: in this process.
    number: int = -1

    @property
    def name(self) -> int:
        """By which it is answered."""
        return self.fd if self.number < 0 else self.number


@cache
def supported() -> bool:
    """Whether this kernel lets us have such events. Really asks for them."""
    try:
        Gate().close()
    except NotSupportedError:
        return False
    return True


def is_group(fd: int) -> bool:
    """Whether it is the descriptor of a group."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[fanotify]"
    except OSError:
        return False


class Gate:
    """One group of permission events. Its methods may be called from several threads."""

    def __init__(self, name: str = "", fd: int = -1) -> None:
        """`fd`: of a group that is there already. Raises NotSupportedError where the kernel grants no such events."""
        self.name = name
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.fanotify_mark.argtypes = (
            ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p,
        )  # fmt: skip
        self.fd = fd
        if fd >= 0:
            return
        flags = _CLASS_CONTENT | _CLOEXEC | _NONBLOCK | _UNLIMITED_QUEUE | _UNLIMITED_MARKS | _REPORT_TID
        self.fd = int(self._libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOATIME))
        if self.fd < 0:
            raise NotSupportedError(f"fanotify permission events: {os.strerror(ctypes.get_errno())}")

    def mark(self, path: bytes, *, to_run: bool) -> bool:
        """From now on, whoever opens this file (`to_run`: runs it) waits; links are followed. False: nobody does.

        The caller must have opened it once: who waits is refused if the file cannot be opened here.
        """
        what = _OPEN_EXEC_PERM if to_run else _OPEN_PERM
        return bool(self._libc.fanotify_mark(self.fd, _MARK_ADD, what, _AT_FDCWD, path) == 0)

    def unmark_all(self) -> None:
        """Nobody waits from now on; who waits already still does."""
        self._libc.fanotify_mark(self.fd, _MARK_FLUSH, 0, _AT_FDCWD, None)

    def read(self) -> list[Opening]:
        """Who waits since the last call; does not block. Who cannot be told of (no descriptor is left) is refused."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except OSError:
            return []
        found: list[Opening] = []
        while len(data) >= EVENT.size:
            size, version, _, _, mask, fd, tid = EVENT.unpack_from(data)
            data = data[size:]
            if version == _VERSION and fd >= 0:
                found.append(Opening(fd, tid, bool(mask & _OPEN_EXEC_PERM)))
        return found

    def answer(self, opening: Opening, *, allow: bool) -> None:
        """Let it go on, or fail with EPERM; once. Whoever does not wait any more needs no answer."""
        self.respond(opening.name, allow=allow)
        with contextlib.suppress(OSError):
            os.close(opening.fd)

    def respond(self, number: int, *, allow: bool) -> bool:
        """As `answer`, by the number alone, whoever read the event. False: nobody waits by that number."""
        try:
            os.write(self.fd, RESPONSE.pack(number, _ALLOW if allow else _DENY))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Whoever waits goes on, if nobody else has the group.

        An answer that comes later goes nowhere: the number may be another file's by then.
        """
        fd, self.fd = self.fd, -1
        os.close(fd)
