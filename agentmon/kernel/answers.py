# SPDX-License-Identifier: Apache-2.0
"""Answers to what the kernel holds (``bpf/hold.bpf.h``)."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from agentmon.errors import KernelError
from agentmon.kernel.grants import boot_ns
from agentmon.kernel.libbpf import Map
from agentmon.model.events import ProcessKey, Shown
from agentmon.model.operations import Action, Operation

KEY: Final = struct.Struct("=QIIQ")
ANSWER: Final = struct.Struct("=IIQQQ")
HELD: Final = struct.Struct("=QQQ")  # asked_ns, used_ns, call
HALTED: Final = struct.Struct("=QQQIIIBBBB")
HALTED_KEY: Final = struct.Struct("=QII")
APPROVAL: Final = struct.Struct("=QQ")
UNTIL: Final = struct.Struct("=Q")
MAPS: Final = ("held", "answers", "approvals")
#: Of the react tier.
HALTS: Final = ("halted", "beat")
FOREVER: Final = (1 << 64) - 1
#: How long an open, and the start of a program, take to end, at most, once they were let go on.
OPEN_NS: Final = 5_000_000_000
_WORD: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Halted:
    """A process that is stopped before the first instruction of its program (``struct am_halted``)."""

    process: ProcessKey
    asked_ns: int  # boot clock
    objects: tuple[int, ...]


class Answers:
    """The maps `held`, `answers` and `approvals`; in the react tier `halted` and `beat` too. Not thread-safe."""

    def __init__(
        self, held: Map, answers: Map, approvals: Map, halted: Map | None = None, beat: Map | None = None
    ) -> None:
        self._held, self._answers, self._approvals = held, answers, approvals
        self._halted, self._beat = halted, beat
        self._lately: deque[tuple[int, bytes]] = deque()  # until when, and the key

    def put(self, process: ProcessKey, tid: int, held: int, action: Action, script: Shown | None = None) -> None:
        """`HOLD`: it is frozen, and waits; `ALLOW`: once; `DENY`. In force when it returns. Raises KernelError.

        `script`: of a script that its interpreter has yet to open, the file that this is about, and no other.
        """
        inode, contents = (script.inode, contents_of(script)) if script else (0, 0)
        self._write("answers", _key(process, tid, held), ANSWER.pack(action, 0, FOREVER, inode, contents))

    def reserve(self, process: ProcessKey, tid: int, held: int) -> bool:
        """Make room for an answer: from now on `put` finds some. Whether there was none. Raises KernelError."""
        if self._answers.lookup(_key(process, tid, held)) is not None:
            return False
        self.put(process, tid, held, Action.HOLD)
        return True

    def withdraw(self, process: ProcessKey, tid: int, held: int) -> None:
        """Undo `reserve`: it has no answer, and is denied when the kernel's own deadline is over."""
        self._answers.delete(_key(process, tid, held))

    def _write(self, name: str, key: bytes, value: bytes) -> None:
        """Raises KernelError, with the name of the table."""
        try:
            (self._approvals if name == "approvals" else self._answers).update(key, value)
        except KernelError as error:
            raise KernelError(f"the kernel's table of {name}: {error}") from error

    def is_unanswered(self, process: ProcessKey, tid: int, held: int) -> bool:
        """Whether it asks, and the kernel was told nothing of it: neither that it is frozen, nor an answer."""
        key = _key(process, tid, held)
        asks = self._held.lookup(key) is not None or self.is_pending(process)
        return asks and self._answers.lookup(key) is None

    def is_answered(self, process: ProcessKey, tid: int, held: int) -> bool:
        """Whether somebody said yes or no."""
        value = self._answers.lookup(_key(process, tid, held))
        return value is not None and ANSWER.unpack(value)[0] != Action.HOLD

    def let_open(self, process: ProcessKey, tid: int, inode: int, operations: Collection[Operation]) -> None:
        """A thread may finish the open that it waits in, if it is for no more than this. In force when it returns.

        Raises KernelError.
        """
        mask = sum(1 << operation for operation in operations)
        self._let(_key_to_open(process, tid, inode), inode, mask)

    def let_start(self, process: ProcessKey, program: Shown) -> None:
        """A process may go on to run this very program, which it is about to start. In force when it returns.

        Raises KernelError.
        """
        self._let(_key_to_start(process, program.inode), program.inode, contents_of(program))

    def forbid(self, process: ProcessKey, tid: int, inode: int, *, to_run: bool) -> None:
        """Undo `let_open` or `let_start`."""
        self._answers.delete(_key_to_start(process, inode) if to_run else _key_to_open(process, tid, inode))

    def is_let(self, process: ProcessKey, tid: int, inode: int, *, to_run: bool) -> bool:
        """Whether one of those two was done, and the open, or the exec, has not ended since."""
        key = _key_to_start(process, inode) if to_run else _key_to_open(process, tid, inode)
        value = self._answers.lookup(key)
        return value is not None and ANSWER.unpack(value)[2] > boot_ns()

    def _let(self, key: bytes, inode: int, what: int) -> None:
        """Who uses it takes it out again; what nobody used in time is taken out here: the table has room for few."""
        now_ns = boot_ns()
        while self._lately and self._lately[0][0] < now_ns:
            _, old = self._lately.popleft()
            value = self._answers.lookup(old)
            if value and ANSWER.unpack(value)[2] < now_ns:  # else it was let once more
                self._answers.delete(old)
        self._write("answers", key, ANSWER.pack(Action.ALLOW, 0, now_ns + OPEN_NS, inode, what))
        self._lately.append((now_ns + OPEN_NS, key))

    def is_approved(self, serial: int, what: int) -> bool:
        """Whether a session may do this now."""
        until = self._approvals.lookup(APPROVAL.pack(serial, what))
        return until is not None and int(UNTIL.unpack(until)[0]) > boot_ns()

    def beat(self, *, alive: bool = True) -> None:
        """Say that somebody is there to freeze what is halted: without that, for two seconds, nothing is halted."""
        if self._beat is not None:
            self._beat.update(bytes(4), UNTIL.pack(boot_ns() if alive else 0))

    def halted(self) -> Iterator[Halted]:
        """Who is stopped before the first instruction of a program; empty in the LSM tier."""
        if self._halted is None:
            return
        for key in list(self._halted.keys(HALTED_KEY.size)):
            if found := self._one_halted(key):
                yield found

    def is_pending(self, process: ProcessKey) -> bool:
        """Whether this one is, or its interpreter has yet to open the script that was let run."""
        key = HALTED_KEY.pack(process.start_ns, process.pid, 0)
        return self._halted is not None and self._halted.lookup(key) is not None

    def _one_halted(self, key: bytes) -> Halted | None:
        value = self._halted.lookup(key) if self._halted is not None else None
        if not value:
            return None
        first, second, asked_ns, _, _, _, released, *_ = HALTED.unpack(value)
        start_ns, pid, _ = HALTED_KEY.unpack(key)
        return None if released else Halted(ProcessKey(pid, start_ns), asked_ns, tuple(filter(None, (first, second))))

    def approve(self, serial: int, what: int, for_s: float | None = None) -> None:
        """Let a session do this from now on, or for so long. Raises KernelError when the table is full."""
        until_ns = FOREVER if for_s is None else boot_ns() + int(for_s * 1e9)
        self._write("approvals", APPROVAL.pack(serial, what), UNTIL.pack(until_ns))

    def approve_script(self, serial: int, what: int, inode: int, for_s: float | None = None) -> None:
        """`approve` counts for a script by its name; this for the file that it leads to. As `approve`."""
        self.approve(serial, _mix(what + inode & _WORD), for_s)

    def disapprove_script(self, serial: int, what: int, inode: int) -> None:
        """Undo `approve_script`."""
        self._approvals.delete(APPROVAL.pack(serial, _mix(what + inode & _WORD)))

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


def contents_of(file: Shown) -> int:
    """As the function of that name in ``bpf/decide.bpf.h``."""
    return (_mix(file.changed_ns) + file.size_bytes) & _WORD


def _mix(word: int) -> int:
    """``mix()`` of ``bpf/maps.bpf.h``."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        word = (word ^ (word >> 33)) * factor & _WORD
    return word ^ (word >> 33)


def _key_to_open(process: ProcessKey, tid: int, inode: int) -> bytes:
    return _key(process, tid, _mix(inode) | 1)


def _key_to_start(process: ProcessKey, inode: int) -> bytes:
    return _key(process, process.pid, _mix(inode + 1) | 1)


def _key(process: ProcessKey, tid: int, held: int) -> bytes:
    return KEY.pack(process.start_ns, process.pid, tid, held)
