# SPDX-License-Identifier: Apache-2.0
"""A program in a terminal of 80 by 24, and what it wrote there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from types import TracebackType
from typing import Self

from tests.support.hosts import PATIENCE_S


class Terminal:
    """Use as a context manager. ``raw`` is all that came so far."""

    def __init__(self, command: list[str], environment: dict[str, str], size: tuple[int, int] = (80, 24)) -> None:
        self.raw = ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if self._master >= 0:
            os.close(self._master)

    @property
    def pid(self) -> int:
        """The program's."""
        return self._process.pid

    @property
    def text(self) -> str:
        """Without the sequences that place and colour it; a change of one line comes after all before."""
        return re.sub(r"\x1b(\[[0-9;?<=>]*[ -/]*[@-~]|\][^\x07]*\x07|[PX^_].*?\x1b\\|.)", "", self.raw)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def hang_up(self) -> int:
        """Take the terminal away; the status with which the program ends."""
        os.close(self._master)
        self._master = -1
        return self._process.wait(PATIENCE_S)

    def until(self, text: str, after: int = 0) -> None:
        """Wait for it to be written, behind the first so many characters of `text`."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.text[after:]:
            assert self._read(deadline), f"ended or late, without `{text}`:\n{self.text[-2000:]}"

    def listen(self, seconds: float) -> None:
        """Take what it writes for so long: it stands still when nobody does."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._read(deadline):
            pass

    def ended(self) -> int:
        """Wait for the end; its status."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        return self._process.wait(max(deadline - time.monotonic(), 1))

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(deadline - time.monotonic(), 0))
        try:
            data = os.read(self._master, 1 << 16) if ready else b""
        except OSError:  # the other end is closed
            data = b""
        self.raw += data.decode("utf-8", "replace")
        return bool(data)
