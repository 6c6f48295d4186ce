# SPDX-License-Identifier: Apache-2.0
"""The two prctl(2) calls that a fenced child needs."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
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
