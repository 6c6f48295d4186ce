# SPDX-License-Identifier: Apache-2.0
"""Queries from agents, and the replies to them. What an agent sends never raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from agentmon.model.names import canonical

#: Largest UDP message that we send and ask for: fits any path (DNS Flag Day 2020).
UDP_BYTES: Final = 1232
PLAIN_UDP_BYTES: Final = 512
_HEADER_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class Question:
    """A well-formed query. ``name`` is canonical, or None if no host can be called that."""

    message: dns.message.Message
    name: str | None
    rdtype: dns.rdatatype.RdataType
    udp_bytes: int  # what the asker can take


def parse(wire: bytes) -> Question | bytes | None:
    """The question; or the reply to what is none; or None, for what deserves no reply."""
    if len(wire) < _HEADER_BYTES or wire[2] & 0x80:
        return None  # too short, or itself a response
    try:
        message = dns.message.from_wire(wire)
    except Exception:  # noqa: BLE001  # the input is hostile, and dnspython promises no list of errors
        return _bare(wire, dns.rcode.FORMERR)
    if message.opcode() != dns.opcode.QUERY:
        return _bare(wire, dns.rcode.NOTIMP)
    if len(message.question) != 1:
        return _bare(wire, dns.rcode.FORMERR)
    asked = message.question[0]
    if asked.rdclass != dns.rdataclass.IN:
        return _bare(wire, dns.rcode.REFUSED)
    if message.edns > 0:
        return reply(Question(message, None, asked.rdtype, PLAIN_UDP_BYTES), dns.rcode.BADVERS)
    size = max(PLAIN_UDP_BYTES, min(message.payload, UDP_BYTES)) if message.edns == 0 else PLAIN_UDP_BYTES
    return Question(message, _text(asked), asked.rdtype, size)


def _text(asked: dns.rrset.RRset) -> str | None:
    labels = asked.name.labels
    if any(b"." in label or not label.isascii() for label in labels):
        return None  # a dot within a label is not a dot between two
    return canonical(b".".join(labels).decode("ascii"))


def _bare(wire: bytes, code: dns.rcode.Rcode) -> bytes:
    """A header alone: same id and opcode, nothing of what could not be understood."""
    return wire[:2] + bytes((0x80 | wire[2] & 0x79, 0x80 | int(code))) + bytes(8)


def reply(
    question: Question,
    code: dns.rcode.Rcode = dns.rcode.NOERROR,
    answer: tuple[dns.rrset.RRset, ...] = (),
    why: str = "",
) -> bytes:
    """The whole reply, for TCP. ``why`` becomes an extended error (RFC 8914: 15, blocked) if EDNS was used."""
    message = _response(question, code, why)
    message.answer = list(answer)
    return message.to_wire(max_size=0xFFFF)


def for_udp(question: Question, wire: bytes) -> bytes:
    """The reply as it fits into one datagram: an empty one with TC set if it does not."""
    if len(wire) <= question.udp_bytes:
        return wire
    message = _response(question, dns.rcode.NOERROR, "")
    message.flags |= dns.flags.TC
    return message.to_wire()


def _response(question: Question, code: dns.rcode.Rcode, why: str) -> dns.message.Message:
    query = question.message
    message = dns.message.make_response(query, recursion_available=True, our_payload=UDP_BYTES)
    if query.edns >= 0:
        options: list[dns.edns.Option] = [dns.edns.EDEOption(dns.edns.EDECode.BLOCKED, why)] if why else []
        message.use_edns(0, 0, UDP_BYTES, options=options)
    message.set_rcode(code)
    return message
