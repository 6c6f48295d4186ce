# SPDX-License-Identifier: Apache-2.0
"""Who opened a unix socket's connection, so that a PID that is used again is not taken for it."""

from __future__ import annotations

import os
import select
import socket

from agentmon.host import process

_SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5


def start_ticks(sock: socket.socket, pid: int) -> int | None:
    """When the process that connected, by the kernel's word `pid`, was started; None if it has ended."""
    try:
        found = process.stat(pid)
    except ProcessLookupError:
        return None
    if found.state in "ZX":
        return None
    try:
        fd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        # an older kernel: then the PID may be another's already, if it was used again since connect(2)
        return None if isinstance(error, ProcessLookupError) else found.start_ticks
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return None if poll.poll(0) else found.start_ticks  # readable: it ended, perhaps before we looked
    finally:
        os.close(fd)
