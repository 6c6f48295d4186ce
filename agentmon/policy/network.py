# SPDX-License-Identifier: Apache-2.0
"""Address ranges and ports as policies write them."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from agentmon.policy.rules import Network, Place

#: IPv4 lives below this prefix, as in `Address.packed`.
MAPPED: Final = 0xFFFF << 32
ALL_PORTS: Final = (0, 0xFFFF)

_FORM = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<four>[^:\[\]]*))(?P<length>/[^:]*)?(?::(?P<ports>.*))?")


def parse_network(text: str, place: Place) -> Network:
    """``10.0.0.0/8``, ``10.1.2.3:443``, ``::1/128``, ``[::1]:80``, ``[fd00::/8]:8000-9000``; IPv4-mapped is IPv4.

    Raises:
        ValueError: not such a text; the message says what to write.
    """
    ports: tuple[int, int] | None = None
    host = text
    if text.startswith("[") or text.count(":") < 2:
        form = _FORM.fullmatch(text)
        if not form:
            raise ValueError(f"`{text}` is not an address; write such as `10.0.0.0/8:443` or `[::1]:80`")
        host = (form["six"] if form["six"] is not None else form["four"].split("/")[0]) + _length(text, form)
        if form["ports"] is not None:
            ports = parse_ports(form["ports"])
    if "/" in host and not re.fullmatch("0|[1-9][0-9]{0,2}", host.partition("/")[2]):
        raise ValueError(f"`{text}`: after `/` comes the number of bits; write such as `10.0.0.0/8`")
    if "%" in host:
        raise ValueError(f"`{text}` names an interface, which rules do not know; leave out `%` and what follows")
    most = 128 if ":" in host else 32
    if "/" in host and int(host.partition("/")[2]) > most:
        raise ValueError(f"`{text}`: an address has {most} bits; write such as `10.0.0.0/8` or `fd00::/8`")
    try:
        net = ipaddress.ip_network(host, strict=False)
    except ValueError:
        hint = "; names of hosts go into `hosts`" if re.search("[g-zG-Z]", host) else ""
        raise ValueError(f"`{text}` is not an address; write such as `10.0.0.0/8:443` or `[::1]:80`{hint}") from None
    if "/" in host and ipaddress.ip_address(host.partition("/")[0]) != net.network_address:
        raise ValueError(f"`{text}` has bits set beyond its prefix; write `{net}`")
    address, length = int(net.network_address), net.prefixlen
    if net.version == 4:
        return Network(text, place, 4, MAPPED | address, 96 + length, ports)
    if length >= 96 and address >> 32 == 0xFFFF:
        return Network(text, place, 4, address, length, ports)
    return Network(text, place, 6, address, length, ports)


def _length(text: str, form: re.Match[str]) -> str:
    if form["six"] is None:
        return "/" + form["four"].partition("/")[2] if "/" in form["four"] else ""
    if form["length"] and "/" in form["six"]:
        raise ValueError(f"`{text}` has two prefix lengths; keep one")
    return form["length"] or ""


def parse_ports(text: str) -> tuple[int, int]:
    """``443`` or ``8000-9000``, inclusive.

    Raises:
        ValueError: not such a text.
    """
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", text, re.ASCII)
    if not match or len(text) > 64:
        raise ValueError(f"`{text}` is not a port; write such as `443` or `8000-9000`")
    low = int(match[1])
    high = int(match[2]) if match[2] else low
    for number in match.groups():
        if number and number.startswith("0") and number != "0":
            # 0443 would be 443 to some and 291 to others
            raise ValueError(f"port `{number}` starts with 0; write it without, or `0` alone")
    if max(low, high) > 0xFFFF:
        raise ValueError(f"port `{max(low, high)}` is above 65535; write such as `443` or `8000-9000`")
    if high < low:
        raise ValueError(f"the port range `{text}` is empty; swap its ends")
    return low, high


def covers(network: Network, address: int, length_bits: int = 128) -> bool:
    """Whether the range holds the address (or all of the prefix ``address/length_bits``)."""
    return network.length_bits <= length_bits and not (network.address ^ address) >> (128 - network.length_bits)


def family_of(address: int) -> int:
    """4 for a folded IPv4 address, else 6."""
    return 4 if address >> 32 == 0xFFFF else 6
