# SPDX-License-Identifier: Apache-2.0
"""Structs and enums of a built BPF object, read from its BTF (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT = 8, 9, 10, 11
_FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 13, 14, 15, 17, 19
#: Bytes that follow the common 12, for each of the type's `vlen`, and once.
_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_ONCE = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}


@dataclass(frozen=True, slots=True)
class Field:
    """One member: where it is and what one of its elements takes."""

    name: str
    offset: int
    size: int
    count: int  # 1 unless it is an array


@dataclass(frozen=True, slots=True)
class Btf:
    """Layouts by struct name, values by enum name."""

    structs: dict[str, tuple[int, list[Field]]]
    enums: dict[str, dict[str, int]]


def section(path: Path, name: str) -> bytes:
    """One section of a 64-bit little-endian ELF file."""
    data = path.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry, count, names = struct.unpack_from("<HHH", data, 0x3A)
    rows = [struct.unpack_from("<IIQQQQ", data, table + i * entry) for i in range(count)]
    start = rows[names][4]
    for row in rows:
        text = data[start + row[0] :].split(b"\0", 1)[0].decode()
        if text == name:
            return data[row[4] : row[4] + row[5]]
    raise AssertionError(f"{path} has no section {name}")


def read(path: Path) -> Btf:
    """Every struct and enum of an object."""
    data = section(path, ".BTF")
    magic, _, _, head, type_at, type_size, text_at, text_size = struct.unpack_from("<HBBIIIII", data)
    assert magic == 0xEB9F
    types = data[head + type_at : head + type_at + type_size]
    texts = data[head + text_at : head + text_at + text_size]
    rows: list[tuple[str, int, int, int, bytes]] = [("void", 0, 0, 0, b"")]
    at = 0
    while at < len(types):
        name, info, size = struct.unpack_from("<III", types, at)
        kind, vlen = info >> 24 & 0x1F, info & 0xFFFF
        length = _EACH.get(kind, 0) * vlen + _ONCE.get(kind, 0)
        text = texts[name:].split(b"\0", 1)[0].decode()
        rows.append((text, kind, size, vlen, types[at + 12 : at + 12 + length]))
        at += 12 + length

    def measure(which: int) -> tuple[int, int]:
        _, kind, size, _, more = rows[which]
        if kind == _PTR:
            return 8, 1
        if kind == _ARRAY:
            element, _, count = struct.unpack("<III", more)
            bytes_, inner = measure(element)
            return bytes_, inner * count
        if kind in (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT):
            return measure(size)
        return size, 1

    structs: dict[str, tuple[int, list[Field]]] = {}
    enums: dict[str, dict[str, int]] = {}
    for name_, kind, size, _, more in rows:
        if kind in (_STRUCT, _UNION) and name_:
            fields = []
            for text, of, offset in struct.iter_unpack("<III", more):
                bytes_, count = measure(of)
                field = texts[text:].split(b"\0", 1)[0].decode()
                fields.append(Field(field, (offset & 0xFFFFFF) // 8, bytes_, count))
            structs[name_] = (size, fields)
        elif kind == _ENUM and name_:
            enums[name_] = {
                texts[text:].split(b"\0", 1)[0].decode(): value for text, value in struct.iter_unpack("<Ii", more)
            }
    return Btf(structs, enums)
