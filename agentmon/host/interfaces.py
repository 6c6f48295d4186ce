# SPDX-License-Identifier: Apache-2.0
"""Addresses of this host, and of what is on a link with it: public or not, no name may lead an agent there."""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final

import psutil

#: How old what is known may be: an interface may come, or get an address, at any time.
FRESH_S: Final = 10.0

_MAPPED: Final = 0xFFFF << 32
_log = logging.getLogger(__name__)

#: An address and its netmask, if it has one, as texts.
Listed = tuple[str, str | None]


def listed() -> list[Listed]:
    """The IP addresses of all interfaces. Raises OSError."""
    families = (socket.AF_INET, socket.AF_INET6)
    return [(a.address, a.netmask) for some in psutil.net_if_addrs().values() for a in some if a.family in families]


class Interfaces:
    """Knows which addresses are here. ``read`` lists those of the interfaces.

    Raises:
        OSError: they cannot be listed. Later on, what was known before stays.
    """

    def __init__(
        self, read: Callable[[], Iterable[Listed]] = listed, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._known = _prefixes(read())
        self._read_at = clock()

    def hold(self, packed: bytes) -> bool:
        """Whether an address (16 bytes, IPv4 mapped) is this host's, or on a link with it."""
        now = self._clock()
        if now - self._read_at >= FRESH_S:
            self._read_at = now
            try:
                self._known = _prefixes(self._read())
            except OSError as error:
                _log.warning("cannot list the addresses of this host: %s; those known before count", error)
        address = int.from_bytes(packed, "big")
        return any(address >> shift in prefixes for shift, prefixes in self._known.items())


def _prefixes(addresses: Iterable[Listed]) -> dict[int, set[int]]:
    """By how many bits are the host's: the prefixes of that length. A look-up costs one step a length."""
    found: dict[int, set[int]] = {}
    for text, mask in addresses:
        try:
            ip = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            continue
        address = int(ip) | (_MAPPED if ip.version == 4 else 0)
        for shift in (0, _host_bits(ip, mask)):
            found.setdefault(shift, set()).add(address >> shift)
    return found


def _host_bits(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, mask: str | None) -> int:
    """0, the address alone, where there is no mask, as of a tunnel's end; or one of nothing, as if all were here."""
    try:
        bits = int(ipaddress.ip_address(mask or ""))
    except ValueError:
        return 0
    rest = ~bits & (1 << ip.max_prefixlen) - 1
    contiguous = not rest & rest + 1
    return rest.bit_length() if bits and contiguous else 0
