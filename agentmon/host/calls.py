# SPDX-License-Identifier: Apache-2.0
"""What a thread that waits in a system call is about to do (``/proc/TID/syscall``, x86-64).

For what it opens a file, and with which arguments it starts a program.
"""

from __future__ import annotations

import os
import struct
import time
from typing import BinaryIO, Final

from agentmon.model.operations import Operation

#: Number -> which argument has the flags. Those of 64-bit and 32-bit calls: of each number, only one kind opens a file.
#: Not openat2(2): its flags are in memory, where others may have changed them since the kernel read them.
_FLAGS: Final = {2: 1, 257: 2, 304: 2, 5: 1, 295: 2, 342: 2}
_CREAT: Final = frozenset((85, 8))
_EXEC: Final = frozenset((59, 322, 520, 545, 11, 358))
#: Number -> which argument has the program's; of 64-bit calls alone, and of those no other has these numbers.
_ARGV: Final = {59: 1, 322: 2}
#: Arguments that are looked at, and bytes of each.
_WORDS: Final = 256
_WORD_BYTES: Final = 4096
_X32: Final = 0x40000000
_EITHER: Final = frozenset((Operation.READ, Operation.WRITE))
#: On a busy host, who asks may be seen before it sleeps.
_LOOKS: Final = 20
_BETWEEN_S: Final = 0.001


def opened_for(tid: int) -> frozenset[Operation]:
    """`READ`, `WRITE`, or both; both where nobody can tell; empty: to run it. Raises OSError when it is gone.

    Takes 20 ms at most, while it does not sleep yet.
    """
    try:
        words = _asleep(tid)
    except PermissionError:
        return _EITHER
    if len(words) < 7:
        return _EITHER
    number = int(words[0]) & ~_X32
    if number in _EXEC:
        return frozenset()
    if number in _CREAT:
        return frozenset((Operation.WRITE,))
    if number in _FLAGS:
        return operations_of(int(words[1 + _FLAGS[number]], 16))
    return _EITHER


def waits_in(tid: int) -> tuple[str, ...]:
    """The call that a thread waits in, with its arguments and where it was made; empty: nobody can tell.

    Raises OSError when it is gone. Takes as long as `opened_for`.
    """
    try:
        words = tuple(_asleep(tid))
    except PermissionError:
        return ()
    return words if len(words) > 1 else ()


def starts_with(tid: int) -> list[str] | None:
    """The arguments, the program's own name first, of the program that a thread is about to start, as they are now.

    They are in its memory: until the call goes on, others who share that may change them. None: it starts none, or
    nobody can tell.
    """
    try:
        with open(f"/proc/{tid}/syscall", encoding="ascii") as file:
            words = file.read().split()
        if len(words) < 7 or (place := _ARGV.get(int(words[0]))) is None:
            return None
        with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
            return _strings(memory, int(words[1 + place], 16))
    except (OSError, ValueError, OverflowError, struct.error):
        return None


def _strings(memory: BinaryIO, at: int) -> list[str]:
    found: list[str] = []
    for number in range(_WORDS):
        memory.seek(at + 8 * number)
        (address,) = struct.unpack("=Q", memory.read(8))
        if not address:
            break
        memory.seek(address)
        # no further than its page at first: the next one may not be there
        text = memory.read(_WORD_BYTES - address % _WORD_BYTES)
        if b"\0" not in text:
            text += memory.read(_WORD_BYTES)
        found.append(text.partition(b"\0")[0].decode("utf-8", "surrogateescape"))
    return found


def _asleep(tid: int) -> list[str]:
    for _ in range(_LOOKS):
        with open(f"/proc/{tid}/syscall", encoding="ascii") as file:
            words = file.read().split()
        if words != ["running"]:
            break
        time.sleep(_BETWEEN_S)
    return words


def operations_of(flags: int) -> frozenset[Operation]:
    """By the flags of open(2). Access mode 3 is for ioctl(2): it gives out as much as both others."""
    mode = flags & os.O_ACCMODE
    reads = mode in (os.O_RDONLY, os.O_RDWR, os.O_ACCMODE)
    writes = mode != os.O_RDONLY or bool(flags & os.O_TRUNC)
    return frozenset(operation for operation, does in ((Operation.READ, reads), (Operation.WRITE, writes)) if does)
