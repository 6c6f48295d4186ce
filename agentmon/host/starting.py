# SPDX-License-Identifier: Apache-2.0
"""A daemon that is starting says so in its state directory: whoever needs it can wait, without any rights."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from agentmon.host import process

_NAME = "starting"


def announce(state: Path) -> None:
    """This process is starting to serve. For everybody to read. Raises `OSError`."""
    path = state / f"{_NAME}.new"
    path.write_text(f"{os.getpid()} {process.stat(os.getpid()).start_ticks}\n")
    path.chmod(0o644)
    path.replace(state / _NAME)


def withdraw(state: Path) -> None:
    """It serves, or has given up."""
    with contextlib.suppress(OSError):
        (state / _NAME).unlink()


def under_way(state: Path) -> int | None:
    """The process id of a daemon that is starting; None if there is none, or it has ended."""
    try:
        pid, ticks = map(int, (state / _NAME).read_text().split())
        found = process.stat(pid)
    except (OSError, ValueError):
        return None
    return pid if found.start_ticks == ticks and found.state not in "ZX" else None
