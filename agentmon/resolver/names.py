# SPDX-License-Identifier: Apache-2.0
"""What the resolver must know of a session's policy, and which addresses no public name may have."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from agentmon.model.names import HostPattern


class Names(Protocol):
    """The names that a session's policy can allow. Names are canonical, addresses 16 bytes (IPv4 mapped)."""

    def pattern_for(self, name: str) -> HostPattern | None:
        """The most specific pattern that allows the name; None: no rule can."""
        ...

    def reachable(self, packed: bytes) -> bool:
        """Whether a rule allows that address by itself (``cidrs``), so that a name may have it though it is private."""
        ...


#: Puts the addresses of a name in force: (session, name, addresses, seconds). An exception fails the query.
Grant = Callable[[str, str, tuple[bytes, ...], int], Awaitable[None]]

_MAPPED: Final = bytes(10) + b"\xff\xff"
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address behind a translator
_NAT64_LOCAL: Final = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
_6TO4: Final = ipaddress.IPv6Network("2002::/16")  # RFC 3056: an IPv4 address in bits 16 to 47


def pack(address: str) -> bytes:
    """An address as text, to 16 bytes (IPv4 mapped). Raises ValueError."""
    ip = ipaddress.ip_address(address)
    return _MAPPED + ip.packed if ip.version == 4 else ip.packed


def nowhere(_packed: bytes) -> bool:
    """Of a host without interfaces: no address is here."""
    return False


def is_public(packed: bytes, here: Callable[[bytes], bool] = nowhere) -> bool:
    """Whether a name of the public DNS may honestly have this address (16 bytes, IPv4 mapped).

    Not private, loopback, link-local, shared (RFC 6598), multicast, reserved or unspecified; not ``here``, at this host
    or on a link with it; and not one of those wrapped in IPv6.
    """
    if here(packed):
        return False
    if packed.startswith(_MAPPED):
        four = ipaddress.IPv4Address(packed[12:])
        return four.is_global and not four.is_multicast
    six = ipaddress.IPv6Address(packed)
    if six in _NAT64:
        return is_public(_MAPPED + packed[12:], here)
    if six in _6TO4:
        return is_public(_MAPPED + packed[2:6], here)
    if six in _NAT64_LOCAL or packed[:12] == bytes(12):
        return False
    return six.is_global and not six.is_multicast and not six.is_site_local
