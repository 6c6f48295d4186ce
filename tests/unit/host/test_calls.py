# SPDX-License-Identifier: Apache-2.0
"""What a file is opened for, by the flags of open(2); which program is started with what."""

from __future__ import annotations

import os
import subprocess

import pytest

from agentmon.host.calls import operations_of, starts_with
from agentmon.model.operations import Operation

READ, WRITE = Operation.READ, Operation.WRITE


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (os.O_RDONLY | os.O_CLOEXEC, {READ}),
        (os.O_WRONLY | os.O_APPEND, {WRITE}),
        (os.O_RDWR, {READ, WRITE}),
        (os.O_RDONLY | os.O_TRUNC, {READ, WRITE}),  # it empties the file all the same
        (os.O_ACCMODE, {READ, WRITE}),
    ],
)
def test_an_open_is_for_what_its_flags_say(flags: int, wanted: set[Operation]) -> None:
    assert operations_of(flags) == wanted


def test_who_starts_no_program_has_no_arguments_for_it() -> None:
    """`tests/kernel/test_hold_arguments.py` has those who do."""
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            assert starts_with(child.pid) is None
        finally:
            child.kill()
    assert starts_with(child.pid) is None
