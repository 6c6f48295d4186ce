# SPDX-License-Identifier: Apache-2.0
"""Attempts at a file's attributes beside mode and owner, for canaries.

Hooks are asked before it is found out that a file system has no such attribute. Numbers are those of x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

_FILE_SETATTR, _AT_FDCWD = 469, -100
#: FS_IOC_SETVERSION, include/uapi/linux/fs.h: asks one hook on every kernel; for flags Linux 6.17 asks another one too
_SETVERSION = 0x40087602
_ACL = "system.posix_acl_access"
_NOBODY = 2**32 - 1


class Grounds(Protocol):
    """Where canaries act."""

    @property
    def directory(self) -> Path: ...


def prepare(directory: Path) -> None:
    """What the attempts need below `directory`. Raises `OSError`."""
    (directory / "attributes").mkdir()
    (directory / "attributes" / "file").touch()


def _file(grounds: Grounds) -> str:
    return f"{grounds.directory}/attributes/file"


def _acl() -> bytes:
    """What its mode says already: include/uapi/linux/posix_acl_xattr.h."""
    entries = ((1, 6), (4, 4), (32, 4))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, mode, _NOBODY) for tag, mode in entries)


def _ioctl(grounds: Grounds) -> None:
    with open(_file(grounds), "rb") as file:
        fcntl.ioctl(file.fileno(), _SETVERSION, bytes(8))


def _file_setattr(grounds: Grounds) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_FILE_SETATTR, _AT_FDCWD, os.fsencode(_file(grounds)), bytes(24), 24, 0):
        number = ctypes.get_errno()
        # a file system without such attributes says so before the hook is asked
        raise OSError(errno.ENOSYS if number == errno.EOPNOTSUPP else number, "file_setattr")


ATTEMPTS: tuple[tuple[str, Callable[[Grounds], None]], ...] = (
    ("utimensat", lambda g: os.utime(_file(g), (1, 1))),
    ("setxattr", lambda g: os.setxattr(_file(g), "user.agentmon", b"1")),
    ("removexattr", lambda g: os.removexattr(_file(g), "user.agentmon")),
    ("setting an ACL", lambda g: os.setxattr(_file(g), _ACL, _acl())),
    ("removing an ACL", lambda g: os.removexattr(_file(g), _ACL)),
    ("ioctl", _ioctl),
    ("file_setattr", _file_setattr),
)
