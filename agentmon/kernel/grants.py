# SPDX-License-Identifier: Apache-2.0
"""Addresses that a session may reach because it asked for their name (``struct am_granted`` in ``bpf/tables.h``)."""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from agentmon.kernel.libbpf import Map
from agentmon.kernel.tables import LIST_HEAD, NET_ENTRY
from agentmon.model.operations import Action
from agentmon.model.tables import NetEntry

GRANT_LENGTH: Final = 8
KEY: Final = struct.Struct("=QI4x16s")
EXPIRES: Final = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class Grant:
    """One entry, until a moment of the boot clock."""

    expires_ns: int
    entry: NetEntry


class Grants:
    """The map `granted`. Not thread-safe."""

    def __init__(self, granted: Map) -> None:
        self._map = granted

    def grant(
        self, serial: int, generation: int, addresses: Collection[bytes], entries: Collection[NetEntry], ttl_s: float
    ) -> None:
        """Let a session reach addresses (16 bytes, IPv4 mapped) by some entries of its policy of that generation.

        In force when it returns. What holds longer already keeps its end.
        Raises KernelError when the map is full.
        """
        now_ns = boot_ns()
        expires_ns = now_ns + int(ttl_s * 1e9)
        for address in addresses:
            key = KEY.pack(serial, generation, address)
            ends = {g.entry: g.expires_ns for g in self._held(key) if g.expires_ns > now_ns}
            for entry in entries:
                ends[entry] = max(expires_ns, ends.get(entry, 0))
            kept = sorted(ends.items(), key=lambda item: -item[1])[:GRANT_LENGTH]
            self._map.update(key, _pack([Grant(end, entry) for entry, end in kept]))

    def held(self, serial: int, generation: int, address: bytes) -> tuple[Grant, ...]:
        """What the map says of an address, run out or not."""
        return self._held(KEY.pack(serial, generation, address))

    def _held(self, key: bytes) -> tuple[Grant, ...]:
        value = self._map.lookup(key)
        return tuple(_unpack(value)) if value else ()

    def forget(self, serial: int, generation: int | None = None) -> None:
        """A session ended, or a policy of that generation is its no more."""
        for key in list(self._map.keys(KEY.size)):
            owner, of, _ = KEY.unpack(key)
            if owner == serial and generation in (None, of):
                self._map.delete(key)

    def sweep(self) -> int:
        """Removes addresses whose every entry has run out; how many."""
        now_ns = boot_ns()
        removed = 0
        for key in list(self._map.keys(KEY.size)):
            value = self._map.lookup(key)
            if value is not None and all(g.expires_ns <= now_ns for g in _unpack(value)):
                removed += self._map.delete(key)
        return removed


def boot_ns() -> int:
    """The clock of ``bpf_ktime_get_boot_ns``."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _pack(grants: Collection[Grant]) -> bytes:
    packed = b"".join(
        EXPIRES.pack(g.expires_ns)
        + NET_ENTRY.pack(
            g.entry.port_lo,
            g.entry.port_hi,
            g.entry.rule,
            g.entry.action,
            g.entry.ops,
            g.entry.need,
            g.entry.need_not,
            g.entry.exe_any,
            g.entry.exe_not,
        )
        for g in grants
    )
    size = GRANT_LENGTH * (EXPIRES.size + NET_ENTRY.size)
    return LIST_HEAD.pack(len(grants), 0) + packed.ljust(size, b"\0")


def _unpack(value: bytes) -> Iterator[Grant]:
    at = LIST_HEAD.size
    for _ in range(LIST_HEAD.unpack_from(value)[0]):
        (expires_ns,) = EXPIRES.unpack_from(value, at)
        low, high, rule, action, ops, need, need_not, exe_any, exe_not = NET_ENTRY.unpack_from(value, at + EXPIRES.size)
        yield Grant(expires_ns, NetEntry(low, high, rule, Action(action), ops, exe_any, exe_not, need, need_not))
        at += EXPIRES.size + NET_ENTRY.size
