# SPDX-License-Identifier: Apache-2.0
"""A program that does something at once, and ways to make it go on while it is to wait."""

from __future__ import annotations

import struct
from pathlib import Path

# lea rdi, [argv[1]]; open(rdi, O_CREAT | O_WRONLY, 0600); exit_group(0)
CODE = bytes.fromhex("488b7c2410be41000000ba8001000031c0b0020f0531ff31c0b0e70f05")


def first(path: Path) -> Path:
    """A program whose first system call creates the file that it is given.

    Its one segment may be written, and has more memory than file: the kernel has its page in place before it runs.
    """
    base, at = 0x400000, 64 + 56
    size = at + len(CODE)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, base + at, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, size, size + 64, 0x1000)
    path.write_bytes(header + segment + CODE)
    path.chmod(0o755)
    return path


#: Starts `argv[1]` with `argv[2:]` once it is told to, does what a way of `WAKES` says, and prints how that ended.
GO = """\
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
sys.stdin.readline()
child = os.fork()
if not child:
    {before}
    os.execv(sys.argv[1], ["first", *sys.argv[2:]])
{after}
print(status, flush=True)
"""
STOPPED = """\
while open(f"/proc/{child}/stat").read().rpartition(")")[2].split()[0] not in "Tt":
    pass
"""
FLOOD = """\
ended = 0
while not ended:
    os.kill(child, signal.SIGCONT)
    ended, status = os.waitpid(child, os.WNOHANG)
"""
WAKES = {
    "SIGCONT": ("pass", f"{STOPPED}os.kill(child, signal.SIGCONT)\nstatus = os.waitpid(child, 0)[1]"),
    "a flood of it": ("pass", FLOOD),
    "its tracer": (
        "libc.ptrace(0, 0, 0, 0)",  # PTRACE_TRACEME
        "while not os.WIFSIGNALED(status := os.waitpid(child, 0)[1]):\n    libc.ptrace(7, child, 0, 0)",  # PTRACE_CONT
    ),
}
