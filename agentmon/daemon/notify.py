# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3), which is one datagram."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Tell systemd, if it started us. Never fails."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(message.encode(), address)


def watchdog_interval_s() -> float | None:
    """Half of the interval that systemd asks for, None when it does not watch."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 2e6
    except (KeyError, ValueError):
        return None
