# SPDX-License-Identifier: Apache-2.0
"""Names of hosts as policies write them, and what a policy lets a session reach by name."""

from __future__ import annotations

import ipaddress
import re

from agentmon.model.names import HostPattern, NameTable, canonical
from agentmon.model.operations import Operation
from agentmon.model.tables import CompiledPolicy, NetEntry
from agentmon.policy.bind import BoundPolicy
from agentmon.policy.network import parse_ports
from agentmon.policy.rules import Host, Place
from agentmon.policy.walk import net_entries

_NUMBER = re.compile("[0-9]+|0x[0-9a-f]*")


def parse_host(text: str, place: Place) -> Host:
    """``api.example.com``, ``api.example.com:443``, ``*.example.org:80-90``; letters beyond ASCII become A-labels.

    Raises:
        ValueError: not such a text; the message says what to write.
    """
    name, colon, ports = text.partition(":")
    if not text.isprintable():
        raise ValueError(f"`{text}` has a character that no one can see; take it out")
    if text.startswith("[") or ":" in ports or _is_address(name.partition("/")[0]):
        raise ValueError(f"`{text}` is an address; put it into `cidrs`")
    if "/" in text:
        raise ValueError(
            f"`{text}` is not the name of a host; write it without what is around it, such as `a.example:443`"
        )
    wildcard = name.startswith("*.")
    rest = name[2:] if wildcard else name
    if "*" in rest:
        raise ValueError(f"`{text}`: `*` stands for whole labels at the start; write such as `*.example.org`")
    plain = canonical(_to_ascii(rest))
    if plain is None:
        raise ValueError(f"`{text}` is not the name of a host; write such as `api.example.com:443` or `*.example.org`")
    if _NUMBER.fullmatch(plain.rpartition(".")[2]):
        # `10.1`, `0x7f000001`: libc takes such names for addresses, and asks nobody
        raise ValueError(f"`{text}` ends in a number, as no name does; put addresses into `cidrs`")
    if plain == "localhost" or plain.endswith(".localhost"):
        raise ValueError(f"`{text}` is this host; write `cidrs: [127.0.0.0/8, ::1]`")
    if wildcard and "." not in plain:
        raise ValueError(f"`{text}` would be all of `{plain}`; name a domain, such as `*.example.{plain}`")
    return Host(text, place, HostPattern(plain, wildcard), parse_ports(ports) if colon else None)


def is_name(text: str) -> bool:
    """Whether an object with a port means a host by its name: no last label of a name is a number (RFC 1123)."""
    name, _, ports = text.partition(":")
    return not text.startswith("[") and ":" not in ports and re.search(r"[^0-9./]", name) is not None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _to_ascii(name: str) -> str:
    if name.isascii():
        return name
    import idna

    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise ValueError(
            f"`{name}` is not the name of a host: {str(error).lower()}; write such as `bücher.example`"
        ) from None


def compile_hosts(bound: BoundPolicy) -> tuple[tuple[HostPattern, NetEntry], ...]:
    """What each pattern of a policy gives, most severe first."""
    found: dict[tuple[HostPattern, NetEntry], None] = {}
    for rule in bound.rules:
        ops = sum(1 << (o - Operation.CONNECT) for o in rule.operations if o.is_net)
        for host in rule.hosts if ops else ():
            entry = NetEntry(
                host.low, host.high, rule.index, rule.action, ops, rule.exe_any, rule.exe_not, rule.need, rule.need_not
            )
            found[host.pattern, entry] = None
    return tuple(found)


class PolicyNames:
    """The names of one compiled policy, as the resolver asks for them (`agentmon.resolver.names.Names`)."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self._policy = policy
        self._table = NameTable(policy.hosts)
        self._open = any(not policy.defaults[o].blocks for o in (Operation.CONNECT, Operation.SEND))

    def pattern_for(self, name: str) -> HostPattern | None:
        """The most specific pattern that holds the name. Where the default blocks nothing, each name is its own."""
        found = self._table.look_up(name)
        if found:
            return found[0][0]
        return HostPattern(name) if self._open else None

    def entries(self, name: str) -> tuple[NetEntry, ...]:
        """What the addresses of a name get, most severe first; each once."""
        found = {entry for _, entry in self._table.look_up(name)}
        return tuple(sorted(found, key=lambda e: (e.rule, e.port_lo, e.port_hi)))

    def reachable(self, packed: bytes) -> bool:
        """Whether a rule allows the address (16 bytes, IPv4 mapped) at some port, for some program."""
        return any(not entry.action.blocks for entry in net_entries(self._policy, packed))
