# SPDX-License-Identifier: Apache-2.0
"""Acts of consequence: by what an act may do, whoever does it, and not by what any attack was seen to do.

To read what lets somebody in, to change what starts by itself or what others run, to leave the machine for an address
without a name, to raise rights. What of it is usual for an agent, its baseline says.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

_CHANGES: Final = frozenset(("write", "create", "delete", "rename", "link", "attr"))
_SECRET: Final = ("keys", "secret", "history", "private")
_OTHERS_RUN: Final = ("startup", "git-hooks", "login")
_OF_SYSTEM: Final = frozenset(
    ("etc", "programs", "system", "boot", "sys", "usr", "var/log", "var/spool", "var/backups")
)
_OUTSIDE: Final = ("public:", "metadata:", "unknown:")
_OPERATIONS: Final = frozenset(
    ("ptrace", "signal", "mount", "namespace", "chroot", "bpf", "io_uring", "setid", "module", "anon_exec")
)
_PROGRAMS: Final = frozenset(("accounts", "tmp", "dev"))


@lru_cache(4096)
def grave(group: str) -> bool:
    """Whether acts of this group have consequences beyond the work."""
    operation, _, place = group.partition(" ")
    if operation.endswith("!") or operation in _OPERATIONS:
        return True
    kind = place.rpartition("/")[2]
    if operation == "read":
        return kind in _SECRET
    if operation in _CHANGES:
        return kind in _SECRET or kind in _OTHERS_RUN or place in _OF_SYSTEM
    if operation in ("connect", "send"):
        return place.startswith(_OUTSIDE)
    return operation in ("exec", "run") and place in _PROGRAMS
