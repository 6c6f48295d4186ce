# SPDX-License-Identifier: Apache-2.0
"""The consumer of the ring buffer, on memory laid out as the kernel lays it out."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from agentmon.kernel.ring import Ring

SIZE = mmap.PAGESIZE
BUSY, DISCARD = 1 << 31, 1 << 30


class Memory:
    """Consumer page, producer page, data twice."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.produced = 0

    def write(self, record: bytes, flags: int = 0) -> None:
        entry = struct.pack("=II", len(record) | flags, 0) + record
        entry += bytes(-len(entry) % 8)
        at = self.produced % SIZE
        for copy in (0, SIZE):  # the kernel maps the pages twice
            for i in range(len(entry)):
                place = (at + i) % SIZE + copy
                os.pwrite(self.fd, entry[i : i + 1], 2 * mmap.PAGESIZE + place)
        self.produced += len(entry)
        os.pwrite(self.fd, struct.pack("=Q", self.produced), mmap.PAGESIZE)

    @property
    def consumed(self) -> int:
        return int(struct.unpack("=Q", os.pread(self.fd, 8, 0))[0])


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    yield made
    os.close(made.fd)


@pytest.fixture
def ring(memory: Memory) -> Iterator[Ring]:
    opened = Ring(memory.fd, SIZE)
    yield opened
    opened.close()


def test_records_come_in_order_and_their_space_is_given_back(memory: Memory, ring: Ring) -> None:
    assert list(ring.read(10)) == []
    for record in (b"one", b"two two two", b"eight888"):
        memory.write(record)
    assert list(ring.read(2)) == [b"one", b"two two two"]
    assert 0 < memory.consumed < memory.produced
    assert list(ring.read(10)) == [b"eight888"]
    assert memory.consumed == memory.produced


def test_a_record_that_is_being_written_stops_the_reader(memory: Memory, ring: Ring) -> None:
    memory.write(b"done")
    memory.write(b"half", BUSY)
    memory.write(b"done too")
    assert list(ring.read(10)) == [b"done"]
    assert list(ring.read(10)) == []


def test_discarded_records_are_passed_over(memory: Memory, ring: Ring) -> None:
    memory.write(b"gone", DISCARD)
    memory.write(b"kept")
    memory.write(b"gone", DISCARD)
    assert list(ring.read(10)) == [b"kept"]
    assert memory.consumed == memory.produced


def test_records_wrap_around(memory: Memory, ring: Ring) -> None:
    for i in range(50):
        record = bytes([i]) * 300
        memory.write(record)
        assert list(ring.read(10)) == [record]
    assert memory.produced > 3 * SIZE
