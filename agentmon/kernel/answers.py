# SPDX-License-Identifier: Apache-2.0
"""Answers to what the kernel holds (``bpf/hold.bpf.h``)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from agentmon.kernel.grants import boot_ns
from agentmon.kernel.libbpf import Map
from agentmon.model.events import ProcessKey
from agentmon.model.operations import Action

KEY: Final = struct.Struct("=QIIQ")
ANSWER: Final = struct.Struct("=IIQ")
HELD: Final = struct.Struct("=QQQ")  # asked_ns, used_ns, call
APPROVAL: Final = struct.Struct("=QQ")
UNTIL: Final = struct.Struct("=Q")
MAPS: Final = ("held", "answers", "approvals")
FOREVER: Final = (1 << 64) - 1


class Answers:
    """The maps `held`, `answers` and `approvals`. Not thread-safe."""

    def __init__(self, held: Map, answers: Map, approvals: Map) -> None:
        self._held, self._answers, self._approvals = held, answers, approvals

    def put(self, process: ProcessKey, tid: int, held: int, action: Action, until_ns: int = FOREVER) -> None:
        """`HOLD`: it is frozen, and waits; `ALLOW`: once; `DENY`. In force when it returns. Raises KernelError."""
        self._answers.update(_key(process, tid, held), ANSWER.pack(action, 0, until_ns))

    def approve(self, serial: int, what: int, for_s: float | None = None) -> None:
        """Let a session do this from now on, or for so long. Raises KernelError when the table is full."""
        until_ns = FOREVER if for_s is None else boot_ns() + int(for_s * 1e9)
        self._approvals.update(APPROVAL.pack(serial, what), UNTIL.pack(until_ns))

    def waiting(self) -> Iterator[tuple[ProcessKey, int, int]]:
        """Process, thread and object of whoever is frozen and has no answer."""
        for key in list(self._answers.keys(KEY.size)):
            value = self._answers.lookup(key)
            if value and ANSWER.unpack(value)[0] == Action.HOLD:
                start_ns, pid, tid, held = KEY.unpack(key)
                yield ProcessKey(pid, start_ns), tid, held

    def used(self, process: ProcessKey, tid: int, held: int) -> bool:
        """Whether the thread has seen that it was allowed; also if nothing is known of it any more."""
        value = self._held.lookup(_key(process, tid, held))
        return value is None or HELD.unpack(value)[1] != 0

    def forget(self, process: ProcessKey, tid: int, held: int) -> None:
        """It waits no more, and went on: the next time it is asked anew. The tables have room for few."""
        key = _key(process, tid, held)
        self._held.delete(key)  # first: an answer counts for what is held alone
        self._answers.delete(key)

    def forget_process(self, process: ProcessKey) -> None:
        """It has ended."""
        for table in (self._answers, self._held):
            for key in list(table.keys(KEY.size)):
                start_ns, pid, _, _ = KEY.unpack(key)
                if (pid, start_ns) == (process.pid, process.start_ns):
                    table.delete(key)

    def forget_session(self, serial: int) -> None:
        """It has ended."""
        for key in list(self._approvals.keys(APPROVAL.size)):
            if APPROVAL.unpack(key)[0] == serial:
                self._approvals.delete(key)


def _key(process: ProcessKey, tid: int, held: int) -> bytes:
    return KEY.pack(process.start_ns, process.pid, tid, held)
