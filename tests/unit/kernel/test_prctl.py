# SPDX-License-Identifier: Apache-2.0
"""The seccomp filter of `run`, of every ABI of x86: this host's kernel may have only some of them."""

from __future__ import annotations

import errno
import struct

import pytest

from agentmon.kernel.prctl import seccomp_filter

X86_64, I386, X32 = 0xC000003E, 0x40000003, 1 << 30
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
TIOCSTI, TIOCLINUX, TIOCOUTQ = 0x5412, 0x541C, 0x5411
#: The bit in the number; add_key, request_key, keyctl; ioctl (old kernels took that of x86-64 from x32 too).
ABIS = {
    "x86-64": (X86_64, 0, (248, 249, 250), (16,)),
    "x32": (X86_64, X32, (248, 249, 250), (514, 16)),
    "i386": (I386, 0, (286, 287, 288), (54,)),
}


def answer(code: bytes, abi: int, number: int, *arguments: int) -> int:
    """What the filter returns for a system call (classic BPF, as far as filters use it)."""
    data = struct.pack("=IIQ6Q", number, abi, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("=HBBI", code))
    loaded = at = 0
    while True:
        operation, jump_true, jump_false, k = program[at]
        at += 1
        match operation:
            case 0x20:
                loaded = int.from_bytes(data[k : k + 4], "little")
            case 0x54:
                loaded &= k
            case 0x05:
                at += k
            case 0x15:
                at += jump_true if loaded == k else jump_false
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


@pytest.mark.parametrize("name", ABIS)
@pytest.mark.parametrize("unjudged", [False, True])
def test_nothing_but_these_calls_is_refused(name: str, unjudged: bool) -> None:
    abi, bit, keys, _ = ABIS[name]
    code = seccomp_filter(unjudged=unjudged)
    refused = {number for number in range(1024) if answer(code, abi, number | bit) != ALLOW}
    assert refused == {*keys, *([425] if unjudged else [])}
    assert {answer(code, abi, number | bit) for number in refused} == {ERRNO | errno.ENOSYS}


@pytest.mark.parametrize("name", ABIS)
def test_the_command_is_what_the_kernel_takes_of_it(name: str) -> None:
    abi, bit, _, calls = ABIS[name]
    for call in calls:
        for more in (0, 1 << 32, 0xFFFFFFFF << 32):
            got = {
                command: answer(seccomp_filter(unjudged=True), abi, call | bit, 0, command | more)
                for command in (TIOCSTI, TIOCLINUX, TIOCOUTQ, TIOCSTI | 1 << 31)
            }
            assert [value != ALLOW for value in got.values()] == [True, True, False, False]
            assert got[TIOCSTI] == ERRNO | errno.EPERM
            assert answer(seccomp_filter(unjudged=False), abi, call | bit, 0, TIOCSTI | more) == ALLOW


def test_other_abis_are_let_through() -> None:
    assert answer(seccomp_filter(unjudged=True), 0xC00000B7, 250) == ALLOW
