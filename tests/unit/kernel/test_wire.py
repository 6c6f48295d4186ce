# SPDX-License-Identifier: Apache-2.0
"""The layouts and numbers of Python are those of the built objects; a record that does not fit is refused."""

from __future__ import annotations

import enum
import re
import struct

import pytest

from agentmon.errors import KernelError
from agentmon.kernel import answers, grants, monitor, objects, tables, wire
from agentmon.kernel.ring import Ring
from agentmon.model import conditions
from agentmon.model import tables as model
from agentmon.model.events import Address, Decision, Flag, ProcessEvent, ProcessKey, Stepping, What
from agentmon.model.operations import OPERATION_SLOTS, PATH_OPERATIONS, Action, Operation, Reason, Tier
from agentmon.model.plans import MAX_STEPS, MAX_WAYS
from tests.support import btf

EVENTS = objects.DIRECTORY.parents[2] / "bpf" / "events.h"


@pytest.fixture(scope="module", params=["lsm", "react"])
def types(request: pytest.FixtureRequest) -> btf.Btf:
    path = objects.DIRECTORY / f"{request.param}.bpf.o"
    if not path.exists():
        pytest.skip("no BPF objects: run `./dev build`")
    return btf.read(path)


_SIZES = {"B": 1, "H": 2, "I": 4, "i": 4, "Q": 8, "q": 8}


def places(layout: str) -> list[tuple[int, int, int]]:
    """(offset, element size, count) of each field of a format without implied alignment; padding is left out."""
    assert layout[0] in "=<>"
    found, at = [], 0
    for number, letter in re.findall(r"(\d*)([a-zA-Z])", layout):
        count = int(number or 1)
        if letter == "x":
            at += count
            continue
        if letter == "s":
            found.append((at, 1, count))
            at += count
            continue
        for _ in range(count):
            found.append((at, _SIZES[letter], 1))
            at += _SIZES[letter]
    return found


def check(types: btf.Btf, name: str, layout: struct.Struct, *, skip: int = 0, end: bool = True) -> None:
    """A Python struct lies on a kernel struct from `skip` bytes on, field by field, in order."""
    size, fields = types.structs[name]
    if end:
        assert layout.size == size - skip
    wanted = []
    for field in fields:
        if field.offset < skip or re.fullmatch(r"pad\d*", field.name):
            continue
        if field.size == 1:
            wanted.append((field.offset - skip, 1, field.count))
        else:
            wanted += [(field.offset - skip + i * field.size, field.size, 1) for i in range(field.count)]
    have = places(layout.format)
    pads = {f.offset - skip for f in fields if re.fullmatch(r"pad\d*", f.name)}
    assert [p for p in have if p[0] not in pads] == [w for w in wanted if w[0] < layout.size]


def test_records_have_the_layout_of_the_programs(types: btf.Btf) -> None:
    check(types, "am_header", wire.HEADER)
    check(types, "am_decision", wire.DECISION, skip=wire.HEADER.size)
    check(types, "am_process", wire.PROCESS, skip=wire.HEADER.size)
    check(types, "am_stepped", wire.STEPPED, skip=wire.HEADER.size)
    check(types, "am_address", wire.ADDRESS)


def test_what_is_held_has_the_layout_of_the_programs(types: btf.Btf) -> None:
    check(types, "am_hold_key", answers.KEY)
    check(types, "am_held", answers.HELD)
    check(types, "am_answer", answers.ANSWER)
    check(types, "am_approval_key", answers.APPROVAL)
    if "am_halted" in types.structs:  # react
        check(types, "am_halted", answers.HALTED)
        check(types, "am_proc_key", answers.HALTED_KEY)


def test_tables_have_the_layout_of_the_programs(types: btf.Btf) -> None:
    check(types, "am_entry", tables.ENTRY)
    check(types, "am_list", tables.LIST_HEAD, end=False)
    assert types.structs["am_list"][0] == tables.LIST_HEAD.size + model.LIST_LENGTH * tables.ENTRY.size
    check(types, "am_accept", tables.ACCEPT)
    check(types, "am_policy", tables.POLICY)
    check(types, "am_net_entry", tables.NET_ENTRY)
    assert types.structs["am_net_list"][0] == tables.LIST_HEAD.size + model.NET_LENGTH * tables.NET_ENTRY.size
    assert [f.offset for f in types.structs["am_net_key"][1]] == [0, 4, 8]
    check(types, "am_pin_key", tables.PIN_KEY)
    assert types.structs["am_granted"][0] == tables.LIST_HEAD.size + grants.GRANT_LENGTH * types.structs["am_grant"][0]
    assert types.structs["am_grant"][0] == grants.EXPIRES.size + tables.NET_ENTRY.size
    assert [f.offset for f in types.structs["am_granted_key"][1]] == [0, 8, 12, 16]
    check(types, "am_session", monitor.SESSION)
    check(types, "am_proc_key", monitor.PROC_KEY)
    check(types, "am_proc", monitor.PROC)
    check(types, "am_plan", tables.PLAN)
    check(types, "am_step", tables.STEP)
    check(types, "am_mark", monitor.MARK)
    check(types, "am_file_key", monitor.FILE_KEY)
    check(types, "am_steps", tables.STEPS_HEAD, end=False)
    assert types.structs["am_steps"][0] == tables.STEPS_BYTES


def named(numbers: dict[str, int], prefix: str = "AM_", leave: tuple[str, ...] = ()) -> dict[str, int]:
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name not in leave}


def members(of: type[enum.IntEnum]) -> dict[str, int]:
    return {member.name: member.value for member in of}


def test_numbers_are_those_of_the_programs(types: btf.Btf) -> None:
    assert named(types.enums["am_op"], leave=("AM_OPS", "AM_PATH_OPS")) == members(Operation)
    assert types.enums["am_op"]["AM_OPS"] == OPERATION_SLOTS
    assert types.enums["am_op"]["AM_PATH_OPS"] == PATH_OPERATIONS
    assert named(types.enums["am_action"]) == members(Action)
    reasons = named(types.enums["am_reason"])
    assert {name.removeprefix("BY_"): value for name, value in reasons.items()} == members(Reason)
    assert named(types.enums["am_tier"], "AM_TIER_") == members(Tier)
    assert types.enums["am_kind"] == {
        "AM_DECISION": wire.KIND_DECISION,
        "AM_PROCESS": wire.KIND_PROCESS,
        "AM_STEP": wire.KIND_STEP,
    }
    assert named(types.enums["am_stepping"], "AM_STEP_") == members(Stepping)
    changes = named(types.enums["am_what"])
    assert changes.pop("EXECED") == What.EXEC
    assert changes.items() <= members(What).items()
    counters = named(types.enums["am_counter"], "AM_C_", leave=("AM_COUNTERS",))
    assert [name.lower() for name in counters] == list(monitor.COUNTERS)
    assert list(counters.values()) == list(range(len(counters)))


def test_constants_are_those_of_the_headers() -> None:
    text = "".join((EVENTS.parent / name).read_text() for name in ("events.h", "tables.h"))
    found = {name: int(value, 0) for name, value in re.findall(r"#define (AM_\w+)\s+(0x[0-9a-f]+|\d+)\b", text)}
    assert found["AM_WIRE_VERSION"] == wire.WIRE_VERSION
    assert {n.removeprefix("AM_F_"): v for n, v in found.items() if n.startswith("AM_F_")} == {
        flag.name: flag.value for flag in Flag
    }
    same = {
        "AM_NO_RULE": model.NO_RULE,
        "AM_LIST_LEN": model.LIST_LENGTH,
        "AM_NET_LEN": model.NET_LENGTH,
        "AM_STICKY_BITS": model.STICKY_BITS,
        "AM_ACCEPT_NONE": model.ACCEPT_NONE,
        "AM_MAX_POLICIES": tables.MAX_POLICIES,
        "AM_MAX_ACCEPTS": tables.MAX_ACCEPTS,
        "AM_MAX_LISTS": tables.MAX_LISTS,
        "AM_MAX_SESSIONS": monitor.MAX_SESSIONS,
        "AM_MAX_PROCS": monitor.MAX_PROCS,
        "AM_SPANS": conditions.MAX_SPANS,
        "AM_MARKS": conditions.MAX_MARKS,
        "AM_WANTS": conditions.MAX_MARKS,
        "AM_S_LIVE": monitor.LIVE,
        "AM_S_DOOMED": monitor.DOOMED,
        "AM_STEPS": MAX_STEPS,
        "AM_WAYS": MAX_WAYS,
        "AM_PAUSES": tables.PAUSES,
        "AM_COMMAND": monitor.COMMAND,
    }
    assert {name: found[name] for name in same} == same


# ---- decoding


def decision(obj: bytes = b"/etc/shadow", **change: int) -> bytes:
    """A record as the kernel writes it."""
    f = {"version": 1, "kind": 1, "op": 1, "verdict": 3, "tier": 1, "flags": 0, "rule": 7, "reason": 0} | change
    size = f.get("size", 120 + len(obj))
    head = struct.pack("=HHIQIIQII", f["version"], f["kind"], size, 11, 12, 13, 14, 15, 16)
    body = struct.pack(
        "=BBBBHBBIIQQII16sIIQQ",
        *(f[n] for n in ("op", "verdict", "tier", "flags", "rule", "reason")),
        f.get("step", 0),
        *(21, 22, 23, 24, 25, 26, b"cat\0rest", f.get("object_size", len(obj)), 0, 31, 32),
    )
    return head + body + obj


def test_a_decision_is_decoded() -> None:
    assert wire.decode(decision()) == Decision(
        11, ProcessKey(12, 14), 13, 21, 22, "cat", 15, 16, Operation.READ, Action.DENY, Tier.LSM, Flag(0), 7,
        Reason.RULE, 23, (25, 24, 26), b"/etc/shadow", 0, 31, 32,
    )  # fmt: skip


def test_an_address_is_decoded() -> None:
    packed = bytes(10) + b"\xff\xff\x7f\0\0\1"
    record = decision(struct.pack("=HHB3x16s", 2, 443, 6, packed), op=Operation.CONNECT)
    event = wire.decode(record)
    assert isinstance(event, Decision)
    assert event.object == Address(2, packed, 443, 6)
    assert str(event.object) == "127.0.0.1:443"


def test_a_change_of_a_process_is_decoded() -> None:
    head = struct.pack("=HHIQIIQII", 1, 2, 80, 11, 12, 12, 14, 15, 16)
    record = head + struct.pack("=IIiIQ16s", 3, 21, 9, 22, 23, b"cat")
    assert wire.decode(record) == ProcessEvent(11, ProcessKey(12, 14), What.EXIT, 15, 21, 23, 22, 9, "cat")


BAD = {
    "empty": (b"", "shorter than its header"),
    "short": (decision()[:39], "of 39 bytes is shorter"),
    "version": (decision(version=2), r"version 2, this program knows 1: restart"),
    "size": (decision(size=9), "says 9 bytes but has 131"),
    "kind": (decision(kind=9), "unknown kind 9"),
    "operation": (decision(op=23), "field out of range: 23"),
    "verdict": (decision(verdict=5), "field out of range: 5"),
    "tier": (decision(tier=0), "field out of range: 0"),
    "reason": (decision(reason=99), "field out of range: 99"),
    "object-long": (decision(object_size=500), "object of 500 bytes but is 131 long"),
    "object-short": (decision(object_size=1), "object of 1 bytes but is 131 long"),
    "address-short": (decision(b"12345678", op=Operation.CONNECT), "field out of range"),
    "cut": (decision()[:4] + struct.pack("=I", 60) + decision()[8:60], "field out of range"),
    "what": (
        struct.pack("=HHIQIIQII", 1, 2, 80, *[0] * 6) + struct.pack("=IIiIQ16s", 77, 0, 0, 0, 0, b""),
        "field out of range: 77",
    ),
    "process-cut": (struct.pack("=HHIQIIQII", 1, 2, 40, *[0] * 6), "field out of range"),
}


@pytest.mark.parametrize(("record", "message"), BAD.values(), ids=BAD)
def test_a_malformed_record_is_refused_with_what_does_not_fit(record: bytes, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        wire.decode(record)


def test_a_malformed_record_is_counted_and_dropped() -> None:
    class Fed(monitor.Monitor):
        def __init__(self, ring: object) -> None:
            self._ring: Ring = ring  # type: ignore[assignment]  # gives records, as a ring does
            self.malformed = 0

    class Feed:
        def read(self, limit: int) -> list[bytes]:
            return [decision(), decision(version=9), decision(op=200), decision()][:limit]

    fed = Fed(Feed())
    assert len(fed.read()) == 2
    assert fed.malformed == 2
