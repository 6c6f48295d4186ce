# SPDX-License-Identifier: Apache-2.0
"""What becomes of a query: refused, answered from memory, or to be asked of the host's name servers.

No socket and no clock: `Resolver.query` gives a `Reply` or an `Ask`; the answer to an `Ask` goes to
`Resolver.answered`, which gives the `Reply`. A reply's `grant` must be in force before its bytes leave.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import dns.exception
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from agentmon.resolver.answer import Answer
from agentmon.resolver.memory import Budget, Cache, Reverse
from agentmon.resolver.message import Question, parse, reply
from agentmon.resolver.names import Names, is_public, nowhere, pack

#: A grant lasts at least so long: between an answer and the connect that uses it lie other addresses, and scheduling.
MIN_GRANT_S: Final = 5
#: TTL of what we say of ourselves (localhost, names of granted addresses).
OWN_TTL_S: Final = 60

_FORWARDED: Final = (dns.rdatatype.A, dns.rdatatype.AAAA, dns.rdatatype.CNAME)
#: Answered with nothing: they name other ports and addresses, which clients do well without (RFC 9460 section 3).
_EMPTY: Final = (dns.rdatatype.HTTPS, dns.rdatatype.SVCB)
_LOCALHOST: Final = {dns.rdatatype.A: "127.0.0.1", dns.rdatatype.AAAA: "::1"}


@dataclass(frozen=True, slots=True)
class Granted:
    """Addresses (16 bytes, IPv4 mapped) to put in force for a name."""

    name: str
    addresses: tuple[bytes, ...]
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What to send (None: nothing), what must be in force before, and why it was refused (empty: it was not)."""

    wire: bytes | None
    question: Question | None = None
    grant: Granted | None = None
    refused: str = ""

    def failed(self) -> Reply:
        """The same, if the grant could not be put in force."""
        assert self.question is not None
        return Reply(reply(self.question, dns.rcode.SERVFAIL, why="the addresses could not be allowed"), self.question)


@dataclass(frozen=True, slots=True)
class Ask:
    """A question for the name servers. ``name`` is canonical."""

    session: str
    question: Question
    name: str
    rdtype: dns.rdatatype.RdataType


@dataclass(slots=True)
class _Session:
    names: Names
    reverse: Reverse = field(default_factory=Reverse.empty)


class Resolver:
    """Decides for all sessions. ``counts`` says how often each thing happened.

    ``here``: whether an address, though public, is this host's or on a link with it.
    """

    def __init__(
        self, cache: Cache | None = None, budget: Budget | None = None, here: Callable[[bytes], bool] = nowhere
    ) -> None:
        self._here = here
        self._cache = cache or Cache()
        self._budget = budget or Budget()
        self._sessions: dict[str, _Session] = {}
        self.counts: Counter[str] = Counter()

    def open(self, session: str, names: Names) -> None:
        """Answer a session by these names; again, to replace them when its policy changed."""
        if session in self._sessions:
            self._sessions[session].names = names
        else:
            self._sessions[session] = _Session(names)

    def close(self, session: str) -> None:
        """The session ended: whatever it still asks gets no reply."""
        self._sessions.pop(session, None)
        self._budget.forget(session)

    def query(self, session: str, wire: bytes, now_s: float) -> Reply | Ask:
        """What becomes of a query. Times are seconds of any clock that does not go back. Never raises."""
        self.counts["queries"] += 1
        state = self._sessions.get(session)
        question = parse(wire)
        if state is None or not isinstance(question, Question):
            self.counts["malformed"] += state is not None
            return Reply(question if state and isinstance(question, bytes) else None)
        name, rdtype = question.name, question.rdtype
        if name is not None and rdtype == dns.rdatatype.PTR:
            return self._by_address(state, question)
        if name == "localhost":
            address = _LOCALHOST.get(rdtype)
            here = question.message.question[0].name
            own = (dns.rrset.from_text(here, OWN_TTL_S, "IN", rdtype, address),) if address else ()
            return Reply(reply(question, answer=own), question)
        pattern = state.names.pattern_for(name) if name is not None else None
        if name is None or pattern is None:
            # Not REFUSED: libc would ask each server again and not go on with its search list.
            return self._refuse(question, dns.rcode.NXDOMAIN, "no rule allows this name")
        if rdtype in _EMPTY:
            return Reply(reply(question), question)
        if rdtype not in _FORWARDED:
            word = dns.rdatatype.to_text(rdtype)
            return self._refuse(question, dns.rcode.REFUSED, f"records of type {word} are not answered")
        ask = Ask(session, question, name, rdtype)
        kept = self._cache.get(name, rdtype, now_s)
        if kept is not None:
            self.counts["cached"] += 1
            return self._give(state, ask, *kept)
        if not self._budget.spend(session, pattern, name, now_s):
            why = f"more than {self._budget.most} names below `{pattern}` in a minute"
            return self._refuse(question, dns.rcode.REFUSED, why)
        self.counts["forwarded"] += 1
        return ask

    def answered(self, ask: Ask, answer: Answer | None, now_s: float) -> Reply:
        """The reply to a question that was asked; None if no name server answered."""
        if answer is not None:
            self._cache.put(ask.name, ask.rdtype, answer, now_s)
        state = self._sessions.get(ask.session)
        if state is None:
            return Reply(None)
        if state.names.pattern_for(ask.name) is None:  # the policy changed meanwhile
            return self._refuse(ask.question, dns.rcode.NXDOMAIN, "no rule allows this name")
        if answer is None:
            self.counts["failed"] += 1
            return Reply(reply(ask.question, dns.rcode.SERVFAIL), ask.question)
        return self._give(state, ask, answer, answer.ttl_s)

    def _give(self, state: _Session, ask: Ask, answer: Answer, ttl_s: int) -> Reply:
        honest = {a for a in answer.addresses if is_public(a, self._here)}
        addresses = tuple(a for a in answer.addresses if a in honest or state.names.reachable(a))
        dropped = len(answer.addresses) - len(addresses)
        here = ask.question.message.question[0].name
        chain = []
        for _, target in answer.chain:
            chain.append(dns.rrset.from_text(here, ttl_s, "IN", "CNAME", target.to_text()))
            here = target
        why = ""
        if dropped:
            self.counts["private"] += dropped
            why = (
                f"{dropped} private address{'es' if dropped > 1 else ''} of `{ask.name}` left out; name them in `cidrs`"
            )
        if not addresses:
            wire = reply(ask.question, answer.code, tuple(chain), why)
            return Reply(wire, ask.question, refused=why)
        state.reverse.note(ask.name, addresses)
        texts = [
            str(ipaddress.IPv4Address(a[12:]) if ask.rdtype == dns.rdatatype.A else ipaddress.IPv6Address(a))
            for a in addresses
        ]
        found = dns.rrset.from_text_list(here, ttl_s, "IN", ask.rdtype, texts)
        # A private address is reached by its own rule, at its own ports: a name must not open others there.
        public = tuple(a for a in addresses if a in honest)
        grant = Granted(ask.name, public, max(MIN_GRANT_S, ttl_s)) if public else None
        return Reply(reply(ask.question, answer.code, (*chain, found), why), ask.question, grant, why)

    def _by_address(self, state: _Session, question: Question) -> Reply:
        """Only what the session was told: a question to the owner of an address is a way out as well."""
        here = question.message.question[0].name
        try:
            packed = pack(dns.reversename.to_address(here))
        except (dns.exception.DNSException, ValueError):
            packed = b""
        loopback = packed and ipaddress.IPv6Address(packed) in _LOOPBACKS
        name = "localhost" if loopback else state.reverse.names.get(packed)
        if name is None or (state.names.pattern_for(name) is None and not loopback):
            return self._refuse(question, dns.rcode.NXDOMAIN, "no name with this address was asked for")
        return Reply(reply(question, answer=(dns.rrset.from_text(here, OWN_TTL_S, "IN", "PTR", name + "."),)), question)

    def _refuse(self, question: Question, code: dns.rcode.Rcode, why: str) -> Reply:
        self.counts["refused"] += 1
        return Reply(reply(question, code, why=why), question, refused=why)


_LOOPBACKS: Final = frozenset((ipaddress.IPv6Address("::1"), ipaddress.IPv6Address("::ffff:127.0.0.1")))
