# SPDX-License-Identifier: Apache-2.0
"""What the kernel programs need of the host, mounted or explained."""

from __future__ import annotations

import ctypes
import gzip
import os
import stat
from pathlib import Path

from agentmon.errors import KernelError, NotSupportedError

BPFFS = Path("/sys/fs/bpf")
SECURITYFS = Path("/sys/kernel/security")
DEBUGFS = Path("/sys/kernel/debug")
_BTF = Path("/sys/kernel/btf/vmlinux")
_CMDLINE = Path("/proc/cmdline")
#: Where a kernel's configuration is found, if at all.
_CONFIGS = ("/proc/config.gz", "/boot/config-{release}", "/lib/modules/{release}/config")


def require_root() -> None:
    """Raises NotSupportedError unless this process may load BPF programs."""
    if os.geteuid() != 0:
        raise NotSupportedError("loading BPF programs needs root: run with sudo, or start the agentmon service")


def require_own(directory: Path) -> None:
    """Raises KernelError if somebody else made the directory of our pins: everyone may write in the root of a bpffs."""
    try:
        info = os.lstat(directory)
    except FileNotFoundError:
        return
    if info.st_uid != 0 or not stat.S_ISDIR(info.st_mode):
        raise KernelError(
            f"`{directory}` was made by uid {info.st_uid}, not by agentmon: move it away, and start again"
        )


def require_btf() -> None:
    """Raises NotSupportedError if the kernel does not describe its own types (BTF)."""
    if not _BTF.exists():
        raise NotSupportedError(
            f"this kernel has no BTF (`{_BTF}` is missing): use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
        )


def mounts() -> list[tuple[str, str]]:
    """Mount points and file-system types of this process's namespace, in mount order."""
    table: list[tuple[str, str]] = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            table.append((fields.split()[4].replace("\\040", " "), rest.split()[0]))
    return table


def mount_if_absent(kind: str, where: Path) -> None:
    """Mounts a kernel file system where it belongs, unless it is there.

    Raises NotSupportedError with the command to run by hand.
    """
    if (str(where), kind) in mounts():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(kind.encode(), os.fsencode(where), kind.encode(), 0, None):
        reason = os.strerror(ctypes.get_errno())
        raise NotSupportedError(
            f"`{where}` is not mounted and cannot be ({reason}): run `mount -t {kind} {kind} {where}`"
        )


def cgroup2_root() -> Path:
    """Where the cgroup v2 tree is mounted. Raises NotSupportedError if it is not."""
    for where, kind in mounts():
        if kind == "cgroup2":
            return Path(where)
    raise NotSupportedError("no cgroup v2 tree is mounted: run `mount -t cgroup2 none /sys/fs/cgroup/unified`")


def active_lsms() -> list[str] | None:
    """The kernel's active security modules in order, or None if that cannot be read."""
    try:
        mount_if_absent("securityfs", SECURITYFS)
        return (SECURITYFS / "lsm").read_text().strip().split(",")
    except (OSError, NotSupportedError):
        return None


def preempts() -> bool:
    """Whether the kernel preempts itself: then one task may come upon a program in which another was interrupted.

    True where that cannot be told. Sources: ``sched_dynamic_show`` in kernel/sched/debug.c, ``init/Makefile``.
    """
    version = os.uname().version.split()
    if "PREEMPT_RT" in version or "PREEMPT" in version:
        return True
    if not any(word.startswith("PREEMPT") for word in version):
        return False
    return (_preemption_now() or _preemption_at_boot()) not in ("none", "voluntary")


def _preemption_now() -> str:
    try:
        mount_if_absent("debugfs", DEBUGFS)
        modes = (DEBUGFS / "sched/preempt").read_text()
    except (OSError, NotSupportedError):
        return ""
    return modes.partition("(")[2].partition(")")[0]


def _preemption_at_boot() -> str:
    for word in reversed(_CMDLINE.read_text(encoding="utf-8", errors="replace").split()):
        if word.startswith("preempt="):
            return word.removeprefix("preempt=")
    for mode in ("none", "voluntary"):
        if f"\nCONFIG_PREEMPT_{mode.upper()}=y\n" in _configuration():
            return mode
    return ""


def _configuration() -> str:
    for pattern in _CONFIGS:
        path = pattern.format(release=os.uname().release)
        try:
            with gzip.open(path, "rt") if path.endswith(".gz") else open(path, encoding="utf-8") as lines:
                return lines.read()
        except OSError:
            continue
    return ""
