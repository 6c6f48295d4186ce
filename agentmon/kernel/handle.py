# SPDX-License-Identifier: Apache-2.0
"""What the kernel knows a file by: name_to_handle_at(2)."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Final

_BYTES: Final = 128  # MAX_HANDLE_SZ, include/linux/exportfs.h
_AT_EMPTY_PATH: Final = 0x1000  # include/uapi/linux/fcntl.h


class _Handle(ctypes.Structure):
    """``struct file_handle``."""

    _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * _BYTES))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def made_as(fd: int) -> bytes:
    """What tells a file from a later one of the same number. Empty where the file system cannot tell."""
    handle = _Handle(_BYTES)
    mount = ctypes.c_int()
    done = _libc().name_to_handle_at(fd, b"", ctypes.byref(handle), ctypes.byref(mount), _AT_EMPTY_PATH)
    return bytes(handle.data[: handle.size]) if done == 0 else b""
