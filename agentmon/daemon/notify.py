# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3), which is one datagram."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence

_FIRST = 3  # SD_LISTEN_FDS_START


def notify(message: str, fds: Sequence[int] = ()) -> None:
    """Tell systemd, if it started us, and hand it descriptors. Never fails."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(address)
        if fds:
            socket.send_fds(sock, [message.encode()], fds)
        else:
            sock.send(message.encode())


def listened() -> list[tuple[str, int]]:
    """Name and number of each descriptor that systemd started us with (sd_listen_fds(3)); once."""
    told = [os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")]
    if told[0] != str(os.getpid()) or not told[1].isdecimal():
        return []
    fds = range(_FIRST, _FIRST + int(told[1]))
    for fd in fds:
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
    return list(zip(told[2].split(":"), fds, strict=False))


def watchdog_interval_s() -> float | None:
    """Half of the interval that systemd asks for, None when it does not watch."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 2e6
    except (KeyError, ValueError):
        return None
