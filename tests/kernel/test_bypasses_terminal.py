# SPDX-License-Identifier: Apache-2.0
"""What a session shares with its owner and no rule is about: the terminal and the keyring (docs/bypasses.md)."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fence import Fence
from tests.support.hosts import Host

Program = Callable[[str], Path]
LIBC = ctypes.CDLL(None, use_errno=True)
TIOCLINUX = 0x541C
SYS_ADD_KEY, SYS_KEYCTL = 248, 250
KEYCTL_JOIN_SESSION_KEYRING, KEY_SPEC_SESSION_KEYRING = 1, -3
KEY = "agentmon-test"


class Terminal:
    """A terminal that somebody outside reads from."""

    def __init__(self) -> None:
        self.master, self.fd = os.openpty()
        os.set_blocking(self.fd, False)
        attributes = termios.tcgetattr(self.fd)
        attributes[3] &= ~termios.ICANON
        termios.tcsetattr(self.fd, termios.TCSANOW, attributes)

    def typed(self) -> bytes:
        """What was typed since the last time."""
        try:
            return os.read(self.fd, 100)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        os.close(self.master)
        os.close(self.fd)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def typing(program: Program, way: str, terminal: Terminal, command: int = termios.TIOCSTI) -> list[str]:
    return [str(program("typist")), way, str(terminal.fd), str(command)]


WAYS = ("native", "wide", "int80")


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_typed_into_a_terminal(served: Host, program: Program, terminal: Terminal, way: str) -> None:
    """In neither tier, from what `run` started. As root, which may do it on every kernel."""
    words = typing(program, way, terminal)
    policy = served.policy("  []")
    # without a fence
    assert subprocess.run(words, check=False, pass_fds=[terminal.fd], capture_output=True, text=True).stdout == "ok\n"
    assert terminal.typed() == b"x"
    done = served.agentmon("run", "-p", policy, "--", *words, pass_fds=[terminal.fd])
    assert done.stdout == f"errno {errno.EPERM}\n", done.stderr
    assert terminal.typed() == b""
    other = typing(program, way, terminal, termios.TIOCOUTQ)
    assert served.agentmon("run", "-p", policy, "--", *other, pass_fds=[terminal.fd]).stdout == "ok\n"


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_pasted_into_a_console(served: Host, program: Program, terminal: Terminal, way: str) -> None:
    """TIOCLINUX is refused before it is looked at what for: this terminal knows no such thing."""
    words = typing(program, way, terminal, TIOCLINUX)
    # without a fence
    before = subprocess.run(words, check=False, pass_fds=[terminal.fd], capture_output=True, text=True)
    assert before.stdout == f"errno {errno.ENOTTY}\n"
    done = served.agentmon("run", "-p", served.policy("  []"), "--", *words, pass_fds=[terminal.fd])
    assert done.stdout == f"errno {errno.EPERM}\n", done.stderr


@pytest.mark.tier("lsm")
@pytest.mark.parametrize("way", WAYS)
def test_typing_into_a_terminal_is_ptrace(fence: Fence, program: Program, terminal: Terminal, way: str) -> None:
    """Of whatever is enrolled: nothing filters its system calls."""
    os.set_inheritable(terminal.fd, True)
    words = typing(program, way, terminal)
    assert fence.without(words).value == b"ok\n"
    assert terminal.typed() == b"x"
    outcome = fence.run("  - {id: trace, on: ptrace, action: deny}\n", words)
    assert outcome.value == b"errno %d\n" % errno.EPERM
    assert terminal.typed() == b""
    assert ("ptrace", "deny", "trace") in outcome.told()


def own_key() -> None:
    """A session keyring with a key in it, for this process and all that it starts."""
    if LIBC.syscall(SYS_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        raise OSError(ctypes.get_errno(), "keyctl")
    if LIBC.syscall(SYS_ADD_KEY, b"user", KEY.encode(), b"secret", 6, KEY_SPEC_SESSION_KEYRING) < 0:
        raise OSError(ctypes.get_errno(), "add_key")


@pytest.mark.parametrize("way", ["native", "int80"])
def test_no_key_of_the_user_is_read(served: Host, program: Program, way: str) -> None:
    """From what `run` started, in both tiers."""
    words = [str(program("keys")), way, KEY]
    # without a fence
    before = subprocess.run(words, check=False, preexec_fn=own_key, capture_output=True, text=True)
    assert before.stdout == "secret\nsecret\nown\n"
    done = served.agentmon("run", "-p", served.policy("  []"), "--", *words, preexec_fn=own_key)
    assert done.stdout == f"errno {errno.ENOSYS}\n" * 3, done.stderr


def test_pam_does_without_keys(served: Host) -> None:
    """pam_keyinit, which su runs where the host says so, is optional."""
    done = served.agentmon("run", "-p", served.policy("  []"), "--", "su", "-l", "-c", "echo on", preexec_fn=own_key)
    assert done.stdout == "on\n", done.stderr
