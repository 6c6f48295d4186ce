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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentmon.errors import KernelError
from agentmon.kernel.libbpf import Barrier, Map
from agentmon.model.conditions import (
    MAX_CONDITIONS,
    MAX_MARKS,
    MAX_RATES,
    MAX_SPANS,
    AtRisk,
    During,
    Marked,
    Over,
    Users,
    arguments_of,
    parents_of,
)
from agentmon.model.operations import OPERATION_SLOTS, Action, Operation
from agentmon.model.plans import MAX_STEPS, MAX_WAYS
from agentmon.model.tables import LIST_LENGTH, NET_LENGTH, CompiledPolicy, PlanTables

MAX_POLICIES = 1_024
MAX_ACCEPTS = 98_304
MAX_LISTS = 8_192

ENTRY = struct.Struct("=HBxII4xQQQQ")
LIST_HEAD = struct.Struct("=II")
ACCEPT = struct.Struct("=9H9H2IIQQ")
POLICY = struct.Struct(f"=10I4H{OPERATION_SLOTS}s{OPERATION_SLOTS}s512sII{OPERATION_SLOTS}H3I5I2I2I5I")
_RULE_ENDS, _DEFAULTS, _SEVEREST, _ARGS = 10, 14, 15, -5
FENCE = struct.Struct("=QH6x")
NET_KEY_HEAD = struct.Struct("=I")
NET_POLICY = struct.Struct(">I")
NET_ENTRY = struct.Struct("=HHHBBIIQQ")
PIN_KEY = struct.Struct("=QIIII")
USER_KEY = struct.Struct("=II")
SPAN = struct.Struct("=QI4x")
WANT = struct.Struct("=IHH")
RATE = struct.Struct("=QQI4x")
EFFECT_KEY = struct.Struct("=II")
MARKED_KEY = struct.Struct("=II")
#: ``struct am_plan``
PLAN = struct.Struct(
    f"={MAX_STEPS}Q{MAX_STEPS}Q{4 * MAX_STEPS}Q{MAX_STEPS}Q{MAX_STEPS}Q{2 * MAX_STEPS}Q2Q3Q{MAX_STEPS}I{MAX_STEPS}I"
    f"2I{MAX_WAYS}s{MAX_STEPS + 8}s"
)
#: ``struct am_parts``
PARTS = struct.Struct(f"=QI{MAX_STEPS + 1}I")
_MAX_WRITE = 7 * MAX_STEPS
#: ``struct am_step``, and what is before it in ``struct am_steps``
STEP = struct.Struct("=IIQQI4x")
STEPS_HEAD = struct.Struct("=5Q")
STEPS_BYTES = STEPS_HEAD.size + MAX_STEPS * STEP.size
#: In ``on_violation``.
PAUSES = 0x80
MAY_ASK = 0x40
NO_LIMIT = (1 << 64) - 1
LINEAGE = struct.Struct(f"={MAX_CONDITIONS}Q")

#: Generations whose sets of programs are kept, for processes that have been idle since (``AM_MAX_LINEAGES``).
LINEAGES = 1024

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
    users: tuple[bytes, ...]
    effects: tuple[bytes, ...]
    #: Slots of the parts of its plan, and of its ways.
    parts: tuple[int, ...] = ()


class Tables:
    """The kernel's policy tables. Not thread-safe."""

    def __init__(self, maps: dict[str, Map]) -> None:
        self._maps = maps
        self._installed: dict[int, Installed] = {}
        self._trans = Space(0, maps["arena"].value_size // 2)
        self._accepts = Space(0, MAX_ACCEPTS)
        self._lists = Space(0, MAX_LISTS)
        self._generation = 0
        self._barrier = Barrier()
        self._recover()

    def _recover(self) -> None:
        """Learns what an earlier process installed, and clears away what it left half done."""
        nets: dict[int, list[bytes]] = {}
        pins: dict[int, list[bytes]] = {}
        found: dict[int, tuple[Any, ...]] = {}
        for slot in range(MAX_POLICIES):
            header = POLICY.unpack(self._maps["policies"].lookup(U32.pack(slot)) or bytes(POLICY.size))
            self._generation = max(self._generation, *header[:2])
            if header[0]:
                found[slot] = header
        # of an installation that was cut short
        lineages = (U32.unpack(key)[0] for key in self._maps["lineages"].keys(U32.size))
        self._generation = max(self._generation, *lineages, 0)
        for key in self._maps["net"].keys(24):
            nets.setdefault(NET_POLICY.unpack_from(key, 4)[0], []).append(key)
        for key in self._maps["pins"].keys(PIN_KEY.size):
            pins.setdefault(PIN_KEY.unpack(key)[3], []).append(key)
        users: dict[int, list[bytes]] = {}
        for key in self._maps["users"].keys(USER_KEY.size):
            users.setdefault(USER_KEY.unpack(key)[0], []).append(key)
        effects: dict[int, list[bytes]] = {}
        for key in self._maps["effects"].keys(EFFECT_KEY.size):
            effects.setdefault(EFFECT_KEY.unpack(key)[0], []).append(key)
        clocks = {U32.unpack(key)[0] for key in self._maps["clocks"].keys(U32.size)}
        for slot in {*nets, *pins, *users, *effects, *clocks} - found.keys():
            self._maps["clocks"].delete(U32.pack(slot))
            self._clear(nets.get(slot, ()), pins.get(slot, ()), users.get(slot, ()), effects.get(slot, ()))
        for slot, (generation, _, trans, _, _, _, _, accept, lists, words, *_) in found.items():
            self._trans.mark(trans, words)
            # exact lengths are not kept in the kernel: keep everything up to the next run
            self._accepts.mark(accept, 0)
            self._lists.mark(lists, 0)
            self._installed[slot] = Installed(
                generation, trans, accept, lists, tuple(nets.get(slot, ())), tuple(pins.get(slot, ())),
                tuple(users.get(slot, ())), tuple(effects.get(slot, ())), self._parts_of(slot),
            )  # fmt: skip
        planned = {slot for slot, header in found.items() if header[-1]}
        for key in list(self._maps["plans"].keys(U32.size)):
            if U32.unpack(key)[0] not in planned:
                self._forget_plan(U32.unpack(key)[0])  # of an installation that was cut short
        for space in (self._accepts, self._lists):
            starts = sorted(space.runs)
            for start, following in zip(starts, [*starts, space.high][1:], strict=True):
                space.mark(start, min(following - start, space.high // 4))

    def install(self, policy: CompiledPolicy) -> tuple[int, int]:
        """Writes a policy; returns its (slot, generation). The header goes last: before it the slot decides nothing.

        Raises KernelError, with what was full, and leaves the tables as they were.
        """
        if policy.plan is not None:
            return self._install_with_plan(policy, policy.plan)
        return self._install(policy, ())

    def _install_with_plan(self, policy: CompiledPolicy, plan: PlanTables) -> tuple[int, int]:
        """The parts first: until the policy's own header is there, they decide nothing."""
        slots: list[int] = []
        try:
            for part in (*plan.parts, *plan.ways):
                slots.append(self._install(part, ())[0])  # noqa: PERF401  # what is there is to be removed
            return self._install(policy, tuple(slots))
        except BaseException:
            for slot in slots:
                self._remove(slot)
            raise

    def _install(self, policy: CompiledPolicy, parts: tuple[int, ...]) -> tuple[int, int]:
        slot = next((s for s in range(MAX_POLICIES) if s not in self._installed), None)
        if slot is None:
            raise KernelError(f"all {MAX_POLICIES} policy slots are in use: release sessions that have ended")
        fences = b"".join(FENCE.pack(fence.holes, fence.rule) for fence in policy.fences)
        words = len(policy.transitions) + len(fences) // 2 + len(policy.tails)
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
        users = {USER_KEY.pack(slot, uid): facts for uid, facts in _facts_of_users(policy).items()}
        effects = {EFFECT_KEY.pack(slot, rule): marks for rule, marks in policy.effects}
        pins: list[bytes] = []
        try:
            self._write_arena(2 * trans, policy.transitions.tobytes() + fences + policy.tails.tobytes())
            for i, accept in enumerate(policy.accepts):
                self._maps["accepts"].update(
                    U32.pack(accepts + i),
                    ACCEPT.pack(
                        *accept.lists, *accept.rules, *accept.tails, accept.enter, accept.sticky, accept.exe_tags
                    ),
                )
            for i, entries in enumerate(policy.lists):
                packed = b"".join(
                    ENTRY.pack(e.rule, e.action, e.need, e.need_not, e.sticky_any, e.sticky_not, e.exe_any, e.exe_not)
                    for e in entries
                )
                self._maps["lists"].update(
                    U32.pack(lists + i), LIST_HEAD.pack(len(entries), 0) + packed.ljust(LIST_LENGTH * ENTRY.size, b"\0")
                )
            for key, prefix in zip(prefixes, policy.net, strict=True):
                packed = b"".join(
                    NET_ENTRY.pack(
                        e.port_lo, e.port_hi, e.rule, e.action, e.ops, e.need, e.need_not, e.exe_any, e.exe_not
                    )
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
            for key, facts in users.items():
                self._maps["users"].update(key, U32.pack(facts))
            for key, marks in effects.items():
                self._maps["effects"].update(key, U32.pack(marks))
            self._maps["wants"].update(U32.pack(slot), _wants(policy))
            self._keep_lineage(generation, policy)
            if policy.plan is not None:
                self._maps["plans"].update(U32.pack(slot), _plan(policy.plan, parts))
                self._maps["parts"].update(U32.pack(slot), _parts(policy.plan, parts))
        except BaseException:
            self._clear(prefixes, pins, users, effects)
            self._forget_plan(slot)
            self._maps["lineages"].delete(U32.pack(generation))
            self._trans.give(trans)
            self._accepts.give(accepts)
            self._lists.give(lists)
            raise
        header = POLICY.pack(
            generation, 0, trans, policy.stride, policy.states, policy.start, policy.sticky_first, accepts, lists,
            words, *_rule_ends(policy), bytes(policy.defaults), bytes(policy.severest), _classes(policy),
            len(policy.fences), len(policy.tails), *policy.bare, *_conditions(policy),
            arguments_of(policy.conditions) & 0xFFFFFFFF, policy.arguments_start,
            policy.arguments_watched & 0xFFFFFFFF, _rates(policy), int(policy.plan is not None),
        )  # fmt: skip
        self._maps["policies"].update(U32.pack(slot), header)
        self._generation = generation
        self._installed[slot] = Installed(
            generation, trans, accepts, lists, prefixes, tuple(pins), tuple(users), tuple(effects), parts
        )
        return slot, generation

    def remove(self, slot: int) -> None:
        """Frees a policy that no session uses."""
        self.settle()  # a decision that began under it ends under it
        parts = self._installed[slot].parts
        self._remove(slot)
        for part in parts:
            self._remove(part)

    def _remove(self, slot: int) -> None:
        installed = self._installed.pop(slot)
        self._maps["policies"].update(
            U32.pack(slot), bytes(4) + U32.pack(installed.generation) + bytes(POLICY.size - 8)
        )
        self._maps["clocks"].delete(U32.pack(slot))
        self._forget_plan(slot)
        self._clear(installed.prefixes, installed.pins, installed.users, installed.effects)
        for key in list(self._maps["marked"].keys(MARKED_KEY.size)):
            if MARKED_KEY.unpack(key)[1] == installed.generation:
                self._maps["marked"].delete(key)
        self._trans.give(installed.trans_base)
        self._accepts.give(installed.accept_base)
        self._lists.give(installed.list_base)

    def _forget_plan(self, slot: int) -> None:
        self._maps["parts"].update(U32.pack(slot), bytes(PARTS.size))
        self._maps["plans"].delete(U32.pack(slot))

    def set_clock(self, slot: int, spans: Sequence[tuple[int, int]]) -> None:
        """What the time says of a policy from now on: (until when of the boot clock in ns, the facts until then)."""
        packed = b"".join(SPAN.pack(until_ns, facts) for until_ns, facts in spans[:MAX_SPANS])
        self._maps["clocks"].update(U32.pack(slot), packed.ljust(MAX_SPANS * SPAN.size, b"\0"))

    def intervals(self, slot: int) -> bytes:
        """Of a policy's rates, as ``struct am_marks`` has them."""
        rates = (self._maps["wants"].lookup(U32.pack(slot)) or b"")[MAX_MARKS * WANT.size :]
        return b"".join(U64.pack(interval) for interval, _, _ in RATE.iter_unpack(rates))

    def has_plan(self, slot: int) -> bool:
        """Whether the sessions of a policy follow a plan."""
        return bool(self._installed[slot].parts)

    def part_generations(self, slot: int) -> tuple[int, ...]:
        """The generations of the parts of a policy's plan, as in `PlanTables.parts`."""
        return tuple(self._installed[part].generation for part in self._installed[slot].parts)

    def counts_bytes(self) -> bool:
        """Whether a step of any plan limits what is written."""
        for slot, installed in self._installed.items():
            value = self._maps["plans"].lookup(U32.pack(slot)) if installed.parts else None
            limits = PLAN.unpack(value)[_MAX_WRITE : _MAX_WRITE + MAX_STEPS] if value else ()
            if any(limit != NO_LIMIT for limit in limits):
                return True
        return False

    def holds_by_arguments(self) -> bool:
        """Whether a program may have to wait for an answer once its arguments are known, under any policy."""
        for slot, installed in self._installed.items():
            if self._header(slot)[_ARGS] and any(_holds_programs(self._header(s)) for s in (slot, *installed.parts)):
                return True
        return False

    def _header(self, slot: int) -> tuple[Any, ...]:
        return POLICY.unpack(self._maps["policies"].lookup(U32.pack(slot)) or bytes(POLICY.size))

    def _parts_of(self, slot: int) -> tuple[int, ...]:
        """What an earlier process installed for the plan of a policy."""
        value = self._maps["plans"].lookup(U32.pack(slot))
        if not value:
            return ()
        _, _, *parts = PARTS.unpack(self._maps["parts"].lookup(U32.pack(slot)) or bytes(PARTS.size))
        slots = [*dict.fromkeys(parts), *PLAN.unpack(value)[-4:-2]]
        return tuple(slot - 1 for slot in slots if slot)

    def settle(self) -> None:
        """Returns once every decision is over that was under way."""
        self._barrier.wait()

    def close(self) -> None:
        """Closes descriptors; the tables stay as they are."""
        self._barrier.close()

    def slots(self) -> dict[int, int]:
        """Slot -> generation of every installed policy; parts of their plans go with them."""
        parts = {part for installed in self._installed.values() for part in installed.parts}
        return {slot: i.generation for slot, i in self._installed.items() if slot not in parts}

    def _keep_lineage(self, generation: int, policy: CompiledPolicy) -> None:
        """By what its conditions on ancestors are known again under another policy."""
        if not any(policy.lineage):
            return
        kept = sorted(U32.unpack(key)[0] for key in self._maps["lineages"].keys(U32.size))
        live = {installed.generation for installed in self._installed.values()}
        idle = [old for old in kept if old not in live]
        for old in idle[: max(0, len(kept) + 1 - LINEAGES)]:
            self._maps["lineages"].delete(U32.pack(old))
        self._maps["lineages"].update(
            U32.pack(generation), LINEAGE.pack(*policy.lineage, *[0] * (MAX_CONDITIONS - len(policy.lineage)))
        )

    def _write_arena(self, at: int, data: bytes) -> None:
        """Maps what is written for as long as that takes: mapped for good, the table would count as ours in memory."""
        start = at & -mmap.PAGESIZE
        end = at + len(data)
        with mmap.mmap(self._maps["arena"].fd, end - start, mmap.MAP_SHARED, offset=start) as part:
            part[at - start :] = data

    def _clear(
        self, prefixes: Iterable[bytes], pins: Iterable[bytes], users: Iterable[bytes], effects: Iterable[bytes]
    ) -> None:
        for key in prefixes:
            self._maps["net"].delete(key)
        for key in pins:
            self._maps["pins"].delete(key)
        for key in users:
            self._maps["users"].delete(key)
        for key in effects:
            self._maps["effects"].delete(key)


def _classes(policy: CompiledPolicy) -> bytes:
    """The classes of a path's bytes, then those of arguments: there NUL separates, and a slash is a byte as any."""
    nul, slash = policy.classes[0], policy.classes[0x2F]
    return policy.classes + bytes([slash]) + policy.classes[1:0x2F] + bytes([nul]) + policy.classes[0x30:]


def _rule_ends(policy: CompiledPolicy) -> list[int]:
    """How many rules kill; deny or kill; and so on: rules are numbered most severe first."""
    return [
        sum(r.action >= action for r in policy.rules)
        for action in (Action.KILL, Action.DENY, Action.HOLD, Action.AUDIT)
    ]


def _conditions(policy: CompiledPolicy) -> tuple[int, ...]:
    """The end of the header: which facts are asked for, and who knows them."""
    at_risk = [0] * 4
    users = risks = clock = unclocked = wants = 0
    for i, condition in enumerate(policy.conditions):
        bit = 1 << i
        match condition:
            case Users():
                users |= bit
            case AtRisk(level):
                risks |= bit
                for above in range(level, len(at_risk)):
                    at_risk[above] |= bit
            case During(_, unknown):
                clock |= bit
                unclocked |= bit * unknown
            case Marked() | Over():
                wants |= bit
    everything = (1 << len(policy.conditions)) - 1 & 0xFFFFFFFF  # of ways there are more: nobody asks for them
    known = (users, risks, *at_risk, clock, unclocked, wants)
    return everything, parents_of(policy.conditions), *known, int(bool(policy.effects))


def _holds_programs(header: tuple[Any, ...]) -> bool:
    """Whether a policy may hold one: by its default, or some rule holds, and some rule on programs is as severe."""
    _, deny_ends, hold_ends, _ = header[_RULE_ENDS : _RULE_ENDS + 4]
    severest, default = header[_SEVEREST][Operation.EXEC], header[_DEFAULTS][Operation.EXEC]
    return bool(default == Action.HOLD or (hold_ends > deny_ends and severest >= Action.HOLD))


def _plan(tables: PlanTables, slots: Sequence[int]) -> bytes:
    """``struct am_plan``; ``slots``: of the parts, then of the ways."""
    plan = tables.compiled
    steps, ways = plan.steps, slots[len(tables.parts) :]
    word = (1 << 64) - 1

    def each(values: Iterable[int], count: int = MAX_STEPS, fill: int = 0) -> list[int]:
        found = list(values)
        return [*found, *[fill] * (count - len(found))]

    def mask(bits: Iterable[bool]) -> int:
        return sum(1 << i for i, bit in enumerate(bits) if bit)

    def limit(value: int | None, most: int = NO_LIMIT) -> int:
        return most if value is None else value

    ways_of = [plan.ways_of(1 << i) for i in range(len(steps))]
    # on a violation `pause` denies, and user space does the rest
    actions = [Action[s.on_violation.upper()] if s.on_violation != "pause" else Action.DENY | PAUSES for s in steps]
    actions += [Action.ALLOW] * (MAX_STEPS + 1 - len(steps))  # of what is outside, only whether it may ask
    actions = [action | MAY_ASK * (plan.asks >> i & 1) for i, action in enumerate(actions)]
    return PLAN.pack(
        *each(s.needs for s in steps),
        *each(s.after for s in steps),
        *each((s.exits >> shift & word for s in steps for shift in (0, 64, 128, 192)), 4 * MAX_STEPS),
        *each(limit(s.timeout_ns) for s in steps),
        *each(limit(s.max_write_bytes) for s in steps),
        *each((m >> shift & word for m in ways_of for shift in (0, 64)), 2 * MAX_STEPS),
        tables.wanted & word,
        tables.wanted >> 64,
        mask(s.once for s in steps),
        mask(s.repeat for s in steps),
        mask(s.mark for s in steps),
        *each(limit(s.max_files, 0xFFFFFFFF) for s in steps),
        *each(limit(s.max_procs, 0x7FFFFFFF) for s in steps),
        *each((slot + 1 for slot in ways), 2),
        bytes(plan.ways),
        bytes(actions),
    )


def _parts(tables: PlanTables, slots: Sequence[int]) -> bytes:
    """``struct am_parts``; ``slots`` as in `_plan`."""
    *steps, outside = (slots[number] + 1 for number in tables.part_of)
    timed = sum(
        1 << i
        for i, step in enumerate(tables.compiled.steps)
        if step.timeout_ns is not None or step.max_write_bytes is not None
    )
    return PARTS.pack(timed, 1, *steps, *[0] * (MAX_STEPS - len(steps)), outside)


def _rates(policy: CompiledPolicy) -> int:
    """The facts that a rate is used up."""
    return sum(1 << i for i, condition in enumerate(policy.conditions) if isinstance(condition, Over))


def _wants(policy: CompiledPolicy) -> bytes:
    """Which marks, and which rates, make which facts (``struct am_wants``)."""
    number = {mark: i for i, mark in enumerate(policy.marks)}
    packed = b"".join(
        WANT.pack(1 << i, number[c.mark], number.get(c.since, MAX_MARKS))
        for i, c in enumerate(policy.conditions)
        if isinstance(c, Marked)
    )
    rates = b"".join(
        RATE.pack(round(c.interval_s * 1e9), round((c.count - 1) * c.interval_s * 1e9), 1 << i)
        for i, c in enumerate(policy.conditions)
        if isinstance(c, Over)
    )
    return packed.ljust(MAX_MARKS * WANT.size, b"\0") + rates.ljust(MAX_RATES * RATE.size, b"\0")


def _facts_of_users(policy: CompiledPolicy) -> dict[int, int]:
    """What is true of each user that rules name."""
    found: dict[int, int] = {}
    for i, condition in enumerate(policy.conditions):
        for uid in condition.uids if isinstance(condition, Users) else ():
            found[uid] = found.get(uid, 0) | 1 << i
    return found


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
