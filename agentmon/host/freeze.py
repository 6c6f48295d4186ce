# SPDX-License-Identifier: Apache-2.0
"""Stopping a few processes for the moment of their enrolment, and always letting them go on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from typing import Self

from agentmon.host import process
from agentmon.model.events import ProcessKey


class Freezer:
    """A context in which the processes given to `freeze` do not run.

    Only those that were not stopped before are stopped, and exactly those go on afterwards.
    """

    def __init__(self) -> None:
        self.frozen: list[ProcessKey] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()

    def freeze(self, keys: Iterable[ProcessKey], timeout_s: float = 0.2) -> list[ProcessKey]:
        """Stop these processes. Returns those that did not stop in time (in uninterruptible sleep)."""
        sent: list[ProcessKey] = []
        for key in keys:
            if key in self.frozen or key.pid == os.getpid():
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if process.stat(key.pid).state not in "TtZX" and process.send_signal(key, signal.SIGSTOP):
                    self.frozen.append(key)
                    sent.append(key)
        deadline = time.monotonic() + timeout_s
        while sent and time.monotonic() < deadline:
            sent = [key for key in sent if _runs(key)]
            if sent:
                time.sleep(0.001)
        return sent

    def thaw(self) -> None:
        """Let all go on."""
        thaw(self.frozen)
        self.frozen = []


def thaw(keys: Iterable[ProcessKey]) -> None:
    """Continue these processes, if they are still the same."""
    for key in keys:
        with contextlib.suppress(PermissionError):
            process.send_signal(key, signal.SIGCONT)


def _runs(key: ProcessKey) -> bool:
    try:
        return process.stat(key.pid).state not in "TtZX"
    except ProcessLookupError:
        return False
