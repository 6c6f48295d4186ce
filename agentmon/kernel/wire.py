# SPDX-License-Identifier: Apache-2.0
"""Decodes the records of ``bpf/events.h``. Layout is checked against the BTF of the built objects in the tests."""

from __future__ import annotations

import struct

from agentmon.errors import KernelError
from agentmon.model.events import (
    Address,
    Decision,
    Event,
    Flag,
    ProcessEvent,
    ProcessKey,
    StepEvent,
    Stepping,
    What,
)
from agentmon.model.operations import Action, Operation, Reason, Tier
from agentmon.model.plans import OUTSIDE

WIRE_VERSION = 1
KIND_DECISION = 1
KIND_PROCESS = 2
KIND_STEP = 3

HEADER = struct.Struct("=HHIQIIQII")
DECISION = struct.Struct("=BBBBHBBIIQQII16sIIQQ")
ADDRESS = struct.Struct("=HHB3x16s")
PROCESS = struct.Struct("=IIiIQ16s")
STEPPED = struct.Struct("=BBBxI")

_DECISION_BYTES = HEADER.size + DECISION.size
_OPERATIONS = {int(o): o for o in Operation}
_ACTIONS = {int(a): a for a in Action}
_REASONS = {int(r): r for r in Reason}
_TIERS = {int(t): t for t in Tier}
_FLAGS = [Flag(i) for i in range(256)]


def decode(record: bytes) -> Event:
    """One record of the ring buffer as an event.

    Raises KernelError naming what does not fit: another version, an unknown kind or number, a wrong size.
    """
    if len(record) < HEADER.size:
        raise KernelError(f"kernel record of {len(record)} bytes is shorter than its header")
    version, kind, size, time_ns, pid, tid, start_ns, session, generation = HEADER.unpack_from(record)
    if version != WIRE_VERSION:
        raise KernelError(f"kernel record has version {version}, this program knows {WIRE_VERSION}: restart agentmon")
    if size != len(record):
        raise KernelError(f"kernel record says {size} bytes but has {len(record)}")
    key = ProcessKey(pid, start_ns)
    try:
        if kind == KIND_DECISION:
            return _decision(record, time_ns, key, tid, session, generation)
        if kind == KIND_PROCESS:
            what, ppid, code, uid, parent_start_ns, comm = PROCESS.unpack_from(record, HEADER.size)
            return ProcessEvent(time_ns, key, What(what), session, ppid, parent_start_ns, uid, code, _text(comm))
        if kind == KIND_STEP:
            stepping, step, reason, status = STEPPED.unpack_from(record, HEADER.size)
            return StepEvent(
                time_ns,
                key,
                session,
                generation,
                Stepping(stepping),
                step - 1,
                _REASONS[reason] if reason else None,
                status,
            )
    except (KeyError, ValueError, struct.error) as error:
        raise KernelError(f"kernel record of kind {kind} has a field out of range: {error}") from error
    raise KernelError(f"kernel record of unknown kind {kind}")


def _decision(record: bytes, time_ns: int, key: ProcessKey, tid: int, session: int, generation: int) -> Decision:
    (
        op, verdict, tier, flags, rule, reason, step, ppid, uid, tags, ino, dev, igen, comm, object_size, facts,
        held, same,
    ) = DECISION.unpack_from(record, HEADER.size)  # fmt: skip
    if _DECISION_BYTES + object_size != len(record):
        raise KernelError(f"kernel record has an object of {object_size} bytes but is {len(record)} long")
    operation = _OPERATIONS[op]
    what: bytes | Address
    if operation.is_path or not object_size:
        what = record[_DECISION_BYTES:]
    else:
        family, port, protocol, packed = ADDRESS.unpack_from(record, _DECISION_BYTES)
        what = Address(family, packed, port, protocol)
    return Decision(
        time_ns, key, tid, ppid, uid, _text(comm), session, generation, operation, _ACTIONS[verdict],
        _TIERS[tier], _FLAGS[flags], rule, _REASONS[reason], tags, (dev, ino, igen), what, facts, held, same,
        step=step - 1 if step else OUTSIDE,
    )  # fmt: skip


def _text(comm: bytes) -> str:
    return comm.partition(b"\0")[0].decode(errors="replace")
