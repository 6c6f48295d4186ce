# SPDX-License-Identifier: Apache-2.0
"""Writes compiled policies into the shared kernel tables. The layout is that of ``bpf/tables.h``.

A policy's parts are contiguous runs in shared arrays; runs are first-fit allocated, and given back only after
no program can still be reading them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

from agentmon.errors import KernelError
from agentmon.kernel.libbpf import Map
from agentmon.model.operations import OPERATION_SLOTS
from agentmon.model.tables import LIST_LENGTH, NET_LENGTH, CompiledPolicy

MAX_POLICIES = 64
MAX_ACCEPTS = 32_768
MAX_LISTS = 8_192

ENTRY = struct.Struct("=HB5xQQQQ")
LIST_HEAD = struct.Struct("=II")
ACCEPT = struct.Struct("=QQ8H")
POLICY = struct.Struct(f"=8I{OPERATION_SLOTS}s{OPERATION_SLOTS}s256sII")
FENCE = struct.Struct("=QH6x")
NET_KEY_HEAD = struct.Struct("=I")
NET_POLICY = struct.Struct(">I")
NET_ENTRY = struct.Struct("=HHHBBQQ")
PIN_KEY = struct.Struct("=QIIII")
U32 = struct.Struct("=I")
U64 = struct.Struct("=Q")

#: FS_IOC_GETVERSION (include/uapi/linux/fs.h): the inode generation
_GET_GENERATION = 0x80087601
_AT_FDCWD = -100
_AT_SYMLINK_FOLLOW = 0x400
_INO32_GEN = 1


@dataclass(slots=True)
class Space:
    """First-fit allocation of runs in ``[low, high)``."""

    low: int
    high: int
    runs: dict[int, int] = field(default_factory=dict)

    def take(self, length: int) -> int | None:
        """Start of a free run of ``length``, now taken; None if there is none."""
        at = self.low
        for start in sorted(self.runs):
            if start - at >= length:
                break
            at = start + self.runs[start]
        if at + length > self.high:
            return None
        self.runs[at] = length
        return at

    def mark(self, start: int, length: int) -> None:
        """Takes a known run (found in the kernel when pins are taken over)."""
        self.runs[start] = length

    def give(self, start: int) -> None:
        """Frees a run."""
        self.runs.pop(start, None)


@dataclass(frozen=True, slots=True)
class Installed:
    """Where one policy lies."""

    generation: int
    trans_base: int
    accept_base: int
    list_base: int
    prefixes: tuple[bytes, ...]
    pins: tuple[bytes, ...]


class Tables:
    """The kernel's policy tables. Not thread-safe."""

    def __init__(self, maps: dict[str, Map]) -> None:
        self._maps = maps
        self._installed: dict[int, Installed] = {}
        self._trans = Space(0, maps["arena"].value_size // 2)
        self._accepts = Space(0, MAX_ACCEPTS)
        self._lists = Space(0, MAX_LISTS)
        self._generation = 0
        self._recover()

    def _recover(self) -> None:
        """Learns what an earlier process installed."""
        nets: dict[int, list[bytes]] = {}
        pins: dict[int, list[bytes]] = {}
        found = [
            (slot, POLICY.unpack(value))
            for slot in range(MAX_POLICIES)
            if (value := self._maps["policies"].lookup(U32.pack(slot))) and any(value[:4])
        ]
        if not found:
            return
        for key in self._maps["net"].keys(24):
            nets.setdefault(NET_POLICY.unpack_from(key, 4)[0], []).append(key)
        for key in self._maps["pins"].keys(PIN_KEY.size):
            pins.setdefault(PIN_KEY.unpack(key)[3], []).append(key)
        for slot, (generation, trans, stride, states, _, _, accept, lists, *_, fences, _) in found:
            self._trans.mark(trans, stride * states + fences * FENCE.size // 2)
            # exact lengths are not kept in the kernel: keep everything up to the next run
            self._accepts.mark(accept, 0)
            self._lists.mark(lists, 0)
            self._installed[slot] = Installed(
                generation, trans, accept, lists, tuple(nets.get(slot, ())), tuple(pins.get(slot, ()))
            )
            self._generation = max(self._generation, generation)
        for space in (self._accepts, self._lists):
            starts = sorted(space.runs)
            for start, following in zip(starts, [*starts[1:], space.high], strict=True):
                space.mark(start, min(following - start, space.high // 4))

    def install(self, policy: CompiledPolicy) -> tuple[int, int]:
        """Writes a policy; returns its (slot, generation). The header goes last: before it the slot decides nothing.

        Raises KernelError, with what was full, and leaves the tables as they were.
        """
        slot = next((s for s in range(MAX_POLICIES) if s not in self._installed), None)
        if slot is None:
            raise KernelError(f"all {MAX_POLICIES} policy slots are in use: release sessions that have ended")
        fences = b"".join(FENCE.pack(fence.holes, fence.rule) for fence in policy.fences)
        words = policy.states * policy.stride + len(fences) // 2
        trans = self._trans.take(words)
        if trans is None:
            raise KernelError(
                f"policy `{policy.name}` needs {2 * words} bytes of automaton, more than is free of"
                f" {2 * self._trans.high}: raise `arena_bytes` or end other sessions"
            )
        accepts = self._accepts.take(len(policy.accepts))
        lists = self._lists.take(len(policy.lists))
        if accepts is None or lists is None:
            self._trans.give(trans)
            for space, start in ((self._accepts, accepts), (self._lists, lists)):
                if start is not None:
                    space.give(start)
            raise KernelError(f"policy `{policy.name}` does not fit beside the others: end other sessions")
        generation = self._generation + 1
        prefixes = tuple(_net_key(slot, p.address, p.length_bits) for p in policy.net)
        pins: list[bytes] = []
        try:
            transitions = memoryview(policy.transitions).cast("B")
            self._write_arena(2 * trans, transitions)
            self._write_arena(2 * trans + len(transitions), memoryview(fences))
            for i, accept in enumerate(policy.accepts):
                self._maps["accepts"].update(
                    U32.pack(accepts + i), ACCEPT.pack(accept.sticky, accept.exe_tags, *accept.lists)
                )
            for i, entries in enumerate(policy.lists):
                packed = b"".join(
                    ENTRY.pack(e.rule, e.action, e.sticky_any, e.sticky_not, e.exe_any, e.exe_not) for e in entries
                )
                self._maps["lists"].update(
                    U32.pack(lists + i), LIST_HEAD.pack(len(entries), 0) + packed.ljust(LIST_LENGTH * ENTRY.size, b"\0")
                )
            for key, prefix in zip(prefixes, policy.net, strict=True):
                packed = b"".join(
                    NET_ENTRY.pack(e.port_lo, e.port_hi, e.rule, e.action, e.ops, e.exe_any, e.exe_not)
                    for e in prefix.entries
                )
                self._maps["net"].update(
                    key,
                    LIST_HEAD.pack(len(prefix.entries), 0) + packed.ljust(NET_LENGTH * NET_ENTRY.size, b"\0"),
                )
            for pin in policy.pins:
                inode_key = _pin_key(slot, pin.path)
                if inode_key is not None:
                    self._maps["pins"].update(inode_key, U32.pack(pin.accept))
                    pins.append(inode_key)
        except BaseException:
            self._clear(prefixes, pins)
            self._trans.give(trans)
            self._accepts.give(accepts)
            self._lists.give(lists)
            raise
        header = POLICY.pack(
            generation, trans, policy.stride, policy.states, policy.start, policy.sticky_first, accepts, lists,
            bytes(policy.defaults), bytes(policy.severest), policy.classes,
            len(policy.fences), 0,
        )  # fmt: skip
        self._maps["policies"].update(U32.pack(slot), header)
        self._generation = generation
        self._installed[slot] = Installed(generation, trans, accepts, lists, prefixes, tuple(pins))
        return slot, generation

    def remove(self, slot: int) -> None:
        """Frees a policy that no session uses."""
        installed = self._installed.pop(slot)
        self._maps["policies"].update(U32.pack(slot), bytes(POLICY.size))
        self._clear(installed.prefixes, installed.pins)
        # a program that read the header just now ends within one RCU grace period
        time.sleep(0.05)
        self._trans.give(installed.trans_base)
        self._accepts.give(installed.accept_base)
        self._lists.give(installed.list_base)

    def slots(self) -> dict[int, int]:
        """Slot -> generation of every installed policy."""
        return {slot: i.generation for slot, i in self._installed.items()}

    def _write_arena(self, at: int, data: memoryview) -> None:
        """Maps what is written for as long as that takes: mapped for good, the table would count as ours in memory."""
        start = at & -mmap.PAGESIZE
        end = at + len(data)
        with mmap.mmap(self._maps["arena"].fd, end - start, mmap.MAP_SHARED, offset=start) as part:
            part[at - start :] = data

    def _clear(self, prefixes: tuple[bytes, ...], pins: tuple[bytes, ...] | list[bytes]) -> None:
        for key in prefixes:
            self._maps["net"].delete(key)
        for key in pins:
            self._maps["pins"].delete(key)


def _net_key(slot: int, address: bytes, length_bits: int) -> bytes:
    return NET_KEY_HEAD.pack(32 + length_bits) + NET_POLICY.pack(slot) + address


def _pin_key(slot: int, path: bytes) -> bytes | None:
    """The pin of an existing file, or None. Not opened: a device or FIFO must not be touched for this."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    kernel_device = os.major(facts.st_dev) << 20 | os.minor(facts.st_dev)
    return PIN_KEY.pack(facts.st_ino, kernel_device, _generation(path, facts.st_mode), slot, 0)


def _generation(path: bytes, mode: int) -> int:
    """Inode generation, 0 where the file system has none.

    From the file handle, which needs no open: ext4 and others give (inode, generation), tmpfs (which knows no
    FS_IOC_GETVERSION) gives (generation, inode low, high), both as FILEID_INO32_GEN (include/linux/exportfs.h).
    """
    import fcntl
    import stat

    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 8 + 128)
    mount_id = ctypes.c_int()
    if not ctypes.CDLL(None).name_to_handle_at(_AT_FDCWD, path, handle, ctypes.byref(mount_id), _AT_SYMLINK_FOLLOW):
        size, kind = struct.unpack_from("=Ii", handle.raw)
        if kind == _INO32_GEN and size in (8, 12):
            return int(struct.unpack_from("=I", handle.raw, 12 if size == 8 else 8)[0])

    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        value = ctypes.c_uint32(0)
        fcntl.ioctl(fd, _GET_GENERATION, value)
        return value.value
    except OSError:
        return 0
    finally:
        os.close(fd)


def open_maps(directory: Path, names: tuple[str, ...]) -> dict[str, Map]:
    """Pinned maps by name. Raises KernelError if one is missing."""
    from agentmon.kernel.libbpf import open_pinned_map

    return {name: open_pinned_map(str(directory / name)) for name in names}
