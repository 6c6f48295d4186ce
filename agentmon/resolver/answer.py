# SPDX-License-Identifier: Apache-2.0
"""What a name server said, cut down to what was asked: the chain of aliases, and the addresses at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from agentmon.resolver.names import pack

#: Aliases followed within one answer; real chains have up to six.
MAX_CHAIN: Final = 16
#: Addresses of one answer that are handed on; each costs an entry in the kernel.
MAX_ADDRESSES: Final = 32
MAX_TTL_S: Final = 3600
#: How long it is remembered at most that a name does not exist (RFC 2308 advises one to three hours).
MAX_NEGATIVE_TTL_S: Final = 300
#: Of "no such name" when the server does not say (no SOA): long enough for one program's retries.
NO_SOA_TTL_S: Final = 5

# dnspython imports a type when it first meets one: now, rather than while somebody waits.
for _type in ("A", "AAAA", "CNAME", "OPT", "PTR", "SOA"):
    dns.rdata.get_rdata_class(dns.rdataclass.IN, dns.rdatatype.from_text(_type))  # type: ignore[no-untyped-call]  # in dnspython


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the DNS. ``addresses`` (16 bytes, IPv4 mapped) are those of the last of the ``chain``."""

    code: dns.rcode.Rcode  # NOERROR or NXDOMAIN
    chain: tuple[tuple[dns.name.Name, dns.name.Name], ...]
    addresses: tuple[bytes, ...]
    ttl_s: int


def read(response: dns.message.Message, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> Answer | None:
    """The answer to a question in a response that is known to be one to it; None if the server failed.

    Whatever else the response carries is left behind. An endless chain is an answer without addresses.
    """
    code = response.rcode()
    if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return None
    aliases: dict[dns.name.Name, tuple[dns.name.Name, int]] = {}
    for rrset in response.answer:
        if rrset.rdclass == dns.rdataclass.IN and rrset.rdtype == dns.rdatatype.CNAME and len(rrset) == 1:
            aliases[rrset.name] = rrset[0].target, rrset.ttl
    chain: list[tuple[dns.name.Name, dns.name.Name]] = []
    ttls = [MAX_TTL_S]
    here = name
    while here in aliases and len(chain) < MAX_CHAIN:
        target, ttl_s = aliases.pop(here)
        chain.append((here, target))
        ttls.append(ttl_s)
        here = target
        if rdtype == dns.rdatatype.CNAME:
            break
    addresses: list[bytes] = []
    if code == dns.rcode.NOERROR and rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
        for rrset in response.answer:
            if rrset.name == here and rrset.rdtype == rdtype and rrset.rdclass == dns.rdataclass.IN:
                addresses += [pack(rdata.address) for rdata in rrset]
                ttls.append(rrset.ttl)
    if not addresses and not (chain and rdtype == dns.rdatatype.CNAME):
        ttls.append(_negative_ttl_s(response))
    return Answer(code, tuple(chain), tuple(addresses[:MAX_ADDRESSES]), max(0, min(ttls)))


def _negative_ttl_s(response: dns.message.Message) -> int:
    """RFC 2308 section 5: the lesser of the SOA's own TTL and its minimum."""
    found = [min(r.ttl, r[0].minimum) for r in response.authority if r.rdtype == dns.rdatatype.SOA and len(r)]
    return min([*found, MAX_NEGATIVE_TTL_S]) if found else NO_SOA_TTL_S
