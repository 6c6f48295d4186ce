# SPDX-License-Identifier: Apache-2.0
"""What a fenced child asks the kernel of itself: prctl(2) and one seccomp filter."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends; if it has ended already, end now.

    The kernel forgets this when credentials change (prctl(2)): call it again after setuid. Raises `OSError`.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def no_new_privs() -> None:
    """Give up setuid programs, for this process and all that it starts. Raises `OSError`."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


class _Program(ctypes.Structure):
    """``struct sock_fprog`` (include/uapi/linux/filter.h)."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def no_io_uring() -> None:
    """Make io_uring look as if this kernel had none, for this process and all that it starts.

    A tier that stops a process only at the end of a system call cannot stop the requests behind a denied one in
    the same batch. `io_uring_setup` has number 425 in every ABI of x86 (x32 sets one bit more); programs fall back on
    ENOSYS. Needs root or no_new_privs. Raises `OSError`.
    """
    filter_ = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # load the number
            (0x54, 0, 0, 0xBFFFFFFF),  # without x32's bit
            (0x15, 0, 1, 425),
            (0x06, 0, 0, 0x00050000 | errno.ENOSYS),  # SECCOMP_RET_ERRNO
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
    )
    program = _Program(len(filter_) // 8, filter_)
    if _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
