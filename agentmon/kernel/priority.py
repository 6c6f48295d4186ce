# SPDX-License-Identifier: Apache-2.0
"""How soon the daemon runs once it is woken. Whoever is to be frozen burns a processor until then."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from typing import Final

#: What systemd/agentmon.service says, too.
NICE: Final = -10
#: Between threads, in seconds: the one that freezes waits no longer for the loop.
SWITCH_S: Final = 0.0005
#: Nanoseconds, the least there is. Who wakes up preempts whoever asks for a longer slice, else waits for up to 3 ms
#: (kernel/sched/syscalls.c, `sched_attr::sched_runtime` of SCHED_OTHER, and PREEMPT_SHORT: Linux 6.12).
SLICE_NS: Final = 100_000

_SCHED_SETATTR: Final = 314  # x86-64; not in glibc before 2.41
_ATTR: Final = struct.Struct("=IIQiIQQQII")


def hasten() -> None:
    """For this thread and all that it starts; what the host does not allow is left as it is."""
    with contextlib.suppress(OSError):  # the service has its priority from systemd
        os.setpriority(os.PRIO_PROCESS, 0, min(os.getpriority(os.PRIO_PROCESS, 0), NICE))
    sys.setswitchinterval(SWITCH_S)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTR.pack(_ATTR.size, os.SCHED_OTHER, 0, nice, 0, SLICE_NS, 0, 0, 0, 0)
    ctypes.CDLL(None).syscall(_SCHED_SETATTR, 0, attributes, 0)  # earlier kernels ignore the slice
