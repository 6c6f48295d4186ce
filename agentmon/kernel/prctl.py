# SPDX-License-Identifier: Apache-2.0
"""What a fenced child asks the kernel of itself: prctl(2) and one seccomp filter."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Collection

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


#: The ABIs of x86 (include/uapi/linux/audit.h), whose numbers differ. x32 is x86-64 with a bit set in the number.
_X86_64, _I386 = 0xC000003E, 0x40000003
_X32_BIT = 0x40000000
_IO_URING_SETUP = 425  # in all of them
#: add_key, request_key and keyctl, and ioctl (x32 has one of its own).
_KEYS = {_X86_64: (248, 249, 250), _I386: (286, 287, 288)}
_IOCTL = {_X86_64: (16, 514), _I386: (54,)}
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
#: Offsets in struct seccomp_data; of the second argument the lower half, which is all that the kernel takes of it.
_NUMBER, _ABI, _COMMAND = 0, 4, 24
_Code = list[tuple[int, int, int, int]]


def _load(offset: int) -> _Code:
    return [(0x20, 0, 0, offset)]


def _when(values: Collection[int], then: _Code) -> _Code:
    """What to do if what was loaded is one of the values; `then` has to end with a return."""
    tests = [(0x15, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [*tests, (0x05, 0, 0, len(then)), *then]


def _return(number: int = 0) -> _Code:
    """Fail with this error, or, without one, go on: SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW."""
    return [(0x06, 0, 0, 0x00050000 | number if number else 0x7FFF0000)]


def seccomp_filter(*, unjudged: bool) -> bytes:
    """What `refuse_calls` installs: a list of ``struct sock_filter``."""
    code = _load(_ABI)
    for abi in (_X86_64, _I386):
        absent = (*_KEYS[abi], *([_IO_URING_SETUP] if unjudged else []))
        calls = [*_load(_NUMBER), (0x54, 0, 0, 0xFFFFFFFF ^ _X32_BIT), *_when(absent, _return(errno.ENOSYS))]
        if unjudged:
            typing = _load(_COMMAND) + _when((_TIOCSTI, _TIOCLINUX), _return(errno.EPERM)) + _return()
            calls += _when(_IOCTL[abi], typing)
        code += _when((abi,), calls + _return())
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code + _return())


def refuse_calls(*, unjudged: bool) -> None:
    """Refuse system calls that no rule is about, for this process and all that it starts.

    The kernel keyring (add_key, request_key, keyctl) looks as if this kernel had none: it is the user's, not the
    session's. ENOSYS and not EPERM, at which runc gives up.

    `unjudged`: in a tier that cannot judge them, io_uring looks like that too, as a process that is stopped only at the
    end of a system call cannot be stopped before the requests behind a denied one in the same batch; and typing into
    a terminal is EPERM (TIOCSTI, and TIOCLINUX, which pastes). Needs root or no_new_privs. Raises `OSError`.
    """
    filter_ = seccomp_filter(unjudged=unjudged)
    program = _Program(len(filter_) // 8, filter_)
    if _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
