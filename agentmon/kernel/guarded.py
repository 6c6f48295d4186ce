# SPDX-License-Identifier: Apache-2.0
"""Attempts at the guarded operations, for canaries: each does what a program out to escape would do, and no harm.

They run as root in a throw-away process. Numbers of system calls are those of x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import shutil
import signal
import termios
from pathlib import Path
from typing import Protocol

_PTRACE_SEIZE = 0x4206
_MOUNT, _UMOUNT, _PIVOT_ROOT, _INIT_MODULE, _FINIT_MODULE, _BPF = 165, 166, 155, 175, 313, 321
_IO_URING_SETUP, _MOVE_MOUNT, _OPEN_TREE, _UNSHARE, _CLONE = 425, 429, 428, 272, 56
_FSPICK, _FSCONFIG, _FSCONFIG_CMD_RECONFIGURE = 433, 431, 7
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_BPF_PROG_GET_NEXT_ID = 11
_MOVE_MOUNT_F_EMPTY_PATH = 4
_OPEN_TREE_CLONE = 1


class Grounds(Protocol):
    """Where canaries act."""

    @property
    def directory(self) -> Path: ...


def prepare(directory: Path) -> None:
    """What the attempts need below `directory`. Raises `OSError`."""
    for name in ("mounted", "unmounted"):
        (directory / name).mkdir()
    program = directory / "setuid"
    shutil.copy(shutil.which("true") or "/bin/true", program)
    program.chmod(0o4755)


def prepare_mounts(directory: Path) -> None:
    """Give this process mounts of its own, so that none outlives it on the host. Raises `OSError`."""
    _call(_UNSHARE, _CLONE_NEWNS)
    _call(_MOUNT, b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    _call(_MOUNT, b"none", os.fsencode(directory / "mounted"), b"tmpfs", 0, None)


def ptrace(_: Grounds) -> None:
    """Seize the daemon: the parent of the canary's parent. It is let go when the canary ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(_PTRACE_SEIZE, _outsider(), None, None):
        raise OSError(ctypes.get_errno(), "ptrace")


def type_into_terminal(grounds: Grounds) -> None:
    """A byte to be typed, at what is no terminal: a fence refuses it before the kernel says so."""
    with open(grounds.directory / "allowed", "rb") as file:
        fcntl.ioctl(file, termios.TIOCSTI, b"x")


def signal_outside(_: Grounds) -> None:
    """A signal that does nothing unless it is handled."""
    os.kill(_outsider(), signal.SIGURG)


def limit_outside(_: Grounds) -> None:
    """The limit that is there already."""
    resource.prlimit(_outsider(), resource.RLIMIT_CORE, resource.prlimit(_outsider(), resource.RLIMIT_CORE))


def mount(grounds: Grounds) -> None:
    """A file system over a directory."""
    _call(_MOUNT, b"none", os.fsencode(grounds.directory / "unmounted"), b"tmpfs", 0, None)


def umount(grounds: Grounds) -> None:
    """Take one away."""
    _call(_UMOUNT, os.fsencode(grounds.directory / "mounted"), 0)


def remount(grounds: Grounds) -> None:
    """Change one, by the calls that replace mount(2): that has a hook of its own."""
    context = _call(_FSPICK, -100, os.fsencode(grounds.directory / "mounted"), 0)
    _call(_FSCONFIG, context, _FSCONFIG_CMD_RECONFIGURE, None, None, 0)


def move_mount(grounds: Grounds) -> None:
    """A clone of a directory over another, by the calls that replace mount(2)."""
    tree = _call(_OPEN_TREE, -100, os.fsencode(grounds.directory / "mounted"), _OPEN_TREE_CLONE)
    _call(_MOVE_MOUNT, tree, b"", -100, os.fsencode(grounds.directory / "unmounted"), _MOVE_MOUNT_F_EMPTY_PATH)


def pivot_root(grounds: Grounds) -> None:
    """Another root. In a mount namespace of its own: it would be everybody's."""
    _call(_UNSHARE, _CLONE_NEWNS)
    there = os.fsencode(grounds.directory / "mounted")
    _call(_PIVOT_ROOT, there, there)


def unshare(_: Grounds) -> None:
    """A user namespace, where an ordinary user is root."""
    _call(_UNSHARE, _CLONE_NEWUSER)


def clone_namespace(_: Grounds) -> None:
    """A child that is born into one."""
    pid = _call(_CLONE, _CLONE_NEWUSER | signal.SIGCHLD, None, None, None, None)
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def chroot(_: Grounds) -> None:
    """Another root directory."""
    os.chroot("/")


def bpf(_: Grounds) -> None:
    """Look for the first program: whoever may do that may detach ours."""
    _call(_BPF, _BPF_PROG_GET_NEXT_ID, ctypes.create_string_buffer(64), 64)


def io_uring(_: Grounds) -> None:
    """A ring of one entry."""
    _call(_IO_URING_SETUP, 1, ctypes.create_string_buffer(120))


def regain_root(_: Grounds) -> None:
    """Become an ordinary user, then root again."""
    os.setresuid(1, 1, 0)
    os.seteuid(0)


def run_setuid(grounds: Grounds) -> None:
    """Become an ordinary user for good, then run a program that makes root of it."""
    fd = os.open(grounds.directory / "setuid", os.O_RDONLY)
    if os.fstatvfs(fd).f_flag & os.ST_NOSUID:
        raise OSError(errno.ENOSYS, "no set-user-ID programs here")
    os.setresuid(1, 1, 1)
    os.execve(fd, ["setuid"], {})  # noqa: S606  # this is the attempt


def init_module(_: Grounds) -> None:
    """A kernel module that is none."""
    _call(_INIT_MODULE, ctypes.create_string_buffer(4096), 4096, b"")


def finit_module(grounds: Grounds) -> None:
    """The same, from a file."""
    fd = os.open(grounds.directory / "allowed", os.O_RDONLY)
    _call(_FINIT_MODULE, fd, b"", 0)


def run_memfd(_: Grounds) -> None:
    """A program that is in no directory."""
    fd = os.memfd_create("canary")
    with open(shutil.which("true") or "/bin/true", "rb") as program:
        os.write(fd, program.read())
    os.execve(fd, ["canary"], {})  # noqa: S606  # this is the attempt


def _outsider() -> int:
    """A process outside the session: who sent the canary out."""
    status = Path(f"/proc/{os.getppid()}/status").read_text()
    return int(status.partition("\nPPid:")[2].split()[0])


def _call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result
