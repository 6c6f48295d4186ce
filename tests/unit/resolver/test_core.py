# SPDX-License-Identifier: Apache-2.0
"""What becomes of queries, by a clock of the test's own."""

from __future__ import annotations

import ipaddress

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest
from dns.rdatatype import AAAA, CNAME, HTTPS, PTR, TXT, A, RdataType
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon.model.names import HostPattern, NameTable, canonical
from agentmon.resolver.answer import Answer, read
from agentmon.resolver.core import MIN_GRANT_S, Ask, Reply, Resolver
from agentmon.resolver.memory import Budget
from agentmon.resolver.message import for_udp
from agentmon.resolver.names import is_public, pack

S = "s-1"


class Names:
    """What a policy with these hosts and addresses would say."""

    def __init__(self, *hosts: str, reachable: tuple[str, ...] = ()) -> None:
        patterns = [HostPattern(h.removeprefix("*."), h.startswith("*.")) for h in hosts]
        self.table = NameTable((p, None) for p in patterns)
        self.addresses = [pack(a) for a in reachable]

    def pattern_for(self, name: str) -> HostPattern | None:
        return next((p for p, _ in self.table.look_up(name)), None)

    def reachable(self, packed: bytes) -> bool:
        return packed in self.addresses


def resolver(*hosts: str, reachable: tuple[str, ...] = (), most: int = 60) -> Resolver:
    made = Resolver(budget=Budget(most))
    made.open(S, Names(*hosts, reachable=reachable))
    return made


def query(name: str, rdtype: RdataType = A, **more: int) -> bytes:
    return dns.message.make_query(name, rdtype, **more).to_wire()


def ask(made: Resolver, name: str, rdtype: RdataType = A, now: float = 0.0) -> Ask:
    step = made.query(S, query(name, rdtype), now)
    assert isinstance(step, Ask)
    return step


def said(step: Reply | Ask) -> dns.message.Message:
    assert isinstance(step, Reply)
    assert step.wire is not None
    return dns.message.from_wire(step.wire)


def addresses(*texts: str, ttl: int = 60) -> Answer:
    return Answer(dns.rcode.NOERROR, (), tuple(pack(t) for t in texts), ttl)


def texts(message: dns.message.Message, rdtype: RdataType = A) -> list[str]:
    return [r.to_text() for rrset in message.answer if rrset.rdtype == rdtype for r in rrset]


def test_a_name_that_no_rule_allows_is_never_forwarded() -> None:
    made = resolver("api.example.com", "*.example.org")
    for name in ("example.com", "x.api.example.com", "example.org", "badexample.org", "secret.evil.test", "com", "."):
        for rdtype in (A, AAAA, CNAME, HTTPS, TXT, PTR):
            assert said(made.query(S, query(name, rdtype), 0)).rcode() == dns.rcode.NXDOMAIN, (name, rdtype)


@pytest.mark.parametrize("name", ["api.example.com", "API.Example.COM", "api.example.com."])
def test_an_exact_name_in_any_case_is_forwarded_as_written_in_the_rule(name: str) -> None:
    assert ask(resolver("api.example.com"), name).name == "api.example.com"


def test_a_dot_inside_a_label_is_no_way_into_a_wildcard() -> None:
    wire = dns.message.make_query(dns.name.Name((b"a.example", b"org", b"")), A).to_wire()
    assert said(resolver("*.example.org", "a.example.org").query(S, wire, 0)).rcode() == dns.rcode.NXDOMAIN


def test_a_wildcard_holds_any_number_of_labels() -> None:
    made = resolver("*.example.org")
    assert ask(made, "a.example.org").name == "a.example.org"
    assert ask(made, "b.a.example.org").name == "b.a.example.org"


def test_addresses_are_granted_with_the_answer() -> None:
    made = resolver("api.example.com")
    step = made.answered(ask(made, "api.example.com"), addresses("203.0.113.7".replace("203.0.113", "8.8.8")), 0)
    assert step.grant is not None
    assert (step.grant.name, step.grant.addresses, step.grant.ttl_s) == ("api.example.com", (pack("8.8.8.7"),), 60)
    assert texts(said(step)) == ["8.8.8.7"]


def test_a_grant_outlasts_a_short_ttl() -> None:
    made = resolver("a.example.com")
    step = made.answered(ask(made, "a.example.com"), addresses("8.8.8.8", ttl=0), 0)
    assert step.grant is not None
    assert step.grant.ttl_s == MIN_GRANT_S
    assert said(step).answer[0].ttl == 0


def test_an_answer_is_kept_for_its_ttl_and_granted_for_what_is_left() -> None:
    made = resolver("a.example.com")
    made.answered(ask(made, "a.example.com", now=100), addresses("8.8.8.8", ttl=60), 100)
    again = made.query(S, query("a.example.com"), 130)
    assert isinstance(again, Reply)
    assert again.grant is not None
    assert again.grant.ttl_s == 30
    assert said(again).answer[0].ttl == 30
    assert ask(made, "a.example.com", now=160)


def test_that_a_name_does_not_exist_is_remembered_too() -> None:
    made = resolver("no.example.com")
    response = dns.message.from_text(
        "id 1\nflags QR\nrcode NXDOMAIN\n;QUESTION\nno.example.com. IN A\n;AUTHORITY\n"
        "example.com. 900 IN SOA ns.example.com. me.example.com. 1 2 3 4 100\n"
    )
    answer = read(response, dns.name.from_text("no.example.com."), A)
    first = made.answered(ask(made, "no.example.com"), answer, 0)
    assert said(first).rcode() == dns.rcode.NXDOMAIN
    assert first.grant is None
    assert said(made.query(S, query("no.example.com"), 99)).rcode() == dns.rcode.NXDOMAIN
    assert ask(made, "no.example.com", now=100)


def test_a_failure_of_the_servers_is_not_remembered() -> None:
    made = resolver("a.example.com")
    assert said(made.answered(ask(made, "a.example.com"), None, 0)).rcode() == dns.rcode.SERVFAIL
    assert ask(made, "a.example.com", now=1)


PRIVATE = [
    "10.0.0.1",
    "172.16.9.9",
    "192.168.1.1",
    "127.0.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",  # an address to be refused
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "::ffff:10.0.0.1",
    "::10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_rebinding_to_a_private_address_is_dropped(address: str) -> None:
    rdtype = AAAA if ":" in address else A
    public = "2606:4700::1111" if rdtype == AAAA else "1.1.1.1"
    made = resolver("a.example.com")
    step = made.answered(ask(made, "a.example.com", rdtype), addresses(address, public), 0)
    assert step.grant is not None
    assert step.grant.addresses == (pack(public),)
    assert texts(said(step), rdtype) == [public]
    assert "private" in step.refused
    alone = resolver("a.example.com")
    step = alone.answered(ask(alone, "a.example.com", rdtype), addresses(address), 0)
    assert step.grant is None
    assert not said(step).answer


def test_a_private_address_that_a_cidr_rule_allows_may_have_a_name_but_is_not_granted_by_it() -> None:
    made = resolver("git.corp.example", reachable=("10.1.2.3",))
    step = made.answered(ask(made, "git.corp.example"), addresses("10.1.2.3", "10.1.2.4"), 0)
    assert texts(said(step)) == ["10.1.2.3"]
    assert step.grant is None


@pytest.mark.parametrize("address", ["8.8.4.4", "2001:4860:4860::8844", "64:ff9b::808:404", "2002:808:404::1"])
def test_a_public_address_that_is_here_is_private(address: str) -> None:
    rdtype = AAAA if ":" in address else A
    far = "2606:4700::1111" if rdtype == AAAA else "1.1.1.1"
    at_home = {pack("8.8.4.4"), pack("2001:4860:4860::8844")}
    made = Resolver(here=at_home.__contains__)
    made.open(S, Names("a.example.com"))
    step = made.answered(ask(made, "a.example.com", rdtype), addresses(address, far), 0)
    assert step.grant is not None
    assert step.grant.addresses == (pack(far),)
    assert "private" in step.refused
    made.open(S, Names("a.example.com", reachable=(address,)))
    step = made.query(S, query("a.example.com", rdtype), 0)
    assert set(texts(said(step), rdtype)) == {str(ipaddress.ip_address(address)), far}
    assert isinstance(step, Reply)
    assert step.grant is not None
    assert step.grant.addresses == (pack(far),)


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808", "2002:808:808::1"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(pack(address))


def test_names_below_a_wildcard_are_limited_per_minute_and_the_limit_is_said() -> None:
    made = resolver("*.example.org", most=3)
    for i in range(3):
        ask(made, f"{i}.example.org", now=i)
    refused = made.query(S, query("leak.example.org"), 5)
    assert said(refused).rcode() == dns.rcode.REFUSED
    assert isinstance(refused, Reply)
    assert "3 names below `*.example.org`" in refused.refused
    assert ask(made, "2.example.org", now=5)  # counted already
    assert ask(made, "leak.example.org", now=60)  # the first one is a minute old
    assert said(made.query(S, query("more.example.org"), 60)).rcode() == dns.rcode.REFUSED


def test_the_limit_is_each_sessions_own() -> None:
    made = resolver("*.example.org", most=1)
    made.open("s-2", Names("*.example.org"))
    ask(made, "a.example.org")
    assert isinstance(made.query("s-2", query("b.example.org"), 0), Ask)


def test_a_chain_of_aliases_is_followed_and_handed_on() -> None:
    made = resolver("www.example.com")
    response = dns.message.from_text(
        "id 1\nflags QR\n;QUESTION\nwww.example.com. IN A\n;ANSWER\n"
        "cdn.example.net. 30 IN A 8.8.4.4\n"
        "www.example.com. 300 IN CNAME edge.example.net.\n"
        "edge.example.net. 300 IN CNAME cdn.example.net.\n"
        "other.example.net. 300 IN A 8.8.8.8\n"
    )
    answer = read(response, dns.name.from_text("www.example.com."), A)
    step = made.answered(ask(made, "www.example.com"), answer, 0)
    assert step.grant is not None
    assert (step.grant.name, step.grant.addresses, step.grant.ttl_s) == ("www.example.com", (pack("8.8.4.4"),), 30)
    assert texts(said(step), CNAME) == ["edge.example.net.", "cdn.example.net."]
    assert texts(said(step)) == ["8.8.4.4"]


def test_an_endless_chain_ends() -> None:
    response = dns.message.from_text(
        "id 1\nflags QR\n;QUESTION\na.example. IN A\n;ANSWER\n"
        "a.example. 30 IN CNAME b.example.\nb.example. 30 IN CNAME a.example.\n"
    )
    answer = read(response, dns.name.from_text("a.example."), A)
    assert answer is not None
    assert not answer.addresses


def test_other_records_of_an_allowed_name_are_not_asked_for() -> None:
    made = resolver("a.example.com")
    assert said(made.query(S, query("a.example.com", TXT), 0)).rcode() == dns.rcode.REFUSED
    empty = said(made.query(S, query("a.example.com", HTTPS), 0))
    assert empty.rcode() == dns.rcode.NOERROR
    assert not empty.answer


def test_the_name_of_an_address_is_told_only_if_it_was_granted() -> None:
    made = resolver("a.example.com")
    reverse = dns.reversename.from_address("8.8.8.8").to_text()
    assert said(made.query(S, query(reverse, PTR), 0)).rcode() == dns.rcode.NXDOMAIN
    made.answered(ask(made, "a.example.com"), addresses("8.8.8.8"), 0)
    assert texts(said(made.query(S, query(reverse, PTR), 0)), PTR) == ["a.example.com."]
    made.open("s-2", Names("a.example.com"))
    assert said(made.query("s-2", query(reverse, PTR), 0)).rcode() == dns.rcode.NXDOMAIN


def test_localhost_is_this_host() -> None:
    made = resolver()
    assert texts(said(made.query(S, query("localhost"), 0))) == ["127.0.0.1"]
    assert texts(said(made.query(S, query("localhost", AAAA), 0)), AAAA) == ["::1"]
    reverse = dns.reversename.from_address("127.0.0.1").to_text()
    assert texts(said(made.query(S, query(reverse, PTR), 0)), PTR) == ["localhost."]


def test_a_refusal_says_why_to_those_who_speak_edns() -> None:
    message = said(resolver().query(S, query("evil.test", use_edns=0), 0))
    assert [o.text for o in message.options] == ["no rule allows this name"]
    assert not said(resolver().query(S, query("evil.test"), 0)).options


def test_a_policy_change_counts_at_once_also_for_what_is_cached_or_under_way() -> None:
    made = resolver("a.example.com", "b.example.com")
    made.answered(ask(made, "a.example.com"), addresses("8.8.8.8"), 0)
    under_way = ask(made, "b.example.com")
    made.open(S, Names("c.example.com"))
    assert said(made.query(S, query("a.example.com"), 1)).rcode() == dns.rcode.NXDOMAIN
    late = made.answered(under_way, addresses("8.8.8.8"), 1)
    assert late.grant is None
    assert said(late).rcode() == dns.rcode.NXDOMAIN


def test_a_session_that_ended_gets_nothing() -> None:
    made = resolver("a.example.com")
    under_way = ask(made, "a.example.com")
    made.close(S)
    assert made.query(S, query("a.example.com"), 0) == Reply(None)
    assert made.answered(under_way, addresses("8.8.8.8"), 0) == Reply(None)


def test_what_does_not_fit_a_datagram_is_truncated() -> None:
    made = resolver("a.example.com")
    step = made.answered(ask(made, "a.example.com", AAAA), addresses(*(f"2606:4700::{i}" for i in range(1, 30))), 0)
    assert step.wire is not None
    assert step.question is not None
    assert len(step.wire) > 512
    short = dns.message.from_wire(for_udp(step.question, step.wire))
    assert short.flags & dns.flags.TC
    assert len(texts(said(step), AAAA)) == 29


def test_an_update_is_not_implemented_and_a_response_is_not_answered() -> None:
    made = resolver("a.example.com")
    notify = dns.message.make_query("a.example.com", A)
    notify.set_opcode(dns.opcode.NOTIFY)
    assert said(made.query(S, notify.to_wire(), 0)).rcode() == dns.rcode.NOTIMP
    response = dns.message.make_response(dns.message.make_query("a.example.com", A)).to_wire()
    assert made.query(S, response, 0) == Reply(None)


VALID = [query("a.example.com", use_edns=0), query("8.8.8.8.in-addr.arpa", PTR), query("x.example.org", AAAA)]


@given(
    st.one_of(
        st.binary(max_size=600),
        st.tuples(st.sampled_from(VALID), st.binary(max_size=40)).map(lambda t: t[0] + t[1]),
        st.tuples(st.sampled_from(VALID), st.integers(0, 60)).map(lambda t: t[0][: t[1]]),
        st.tuples(st.sampled_from(VALID), st.integers(0, 28), st.binary(min_size=1, max_size=4)).map(
            lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + len(t[2]) :]
        ),
    )
)
@settings(max_examples=1000, deadline=None)
def test_no_packet_raises_and_none_but_an_allowed_name_is_forwarded(wire: bytes) -> None:
    step = resolver("a.example.com", "*.example.org").query(S, wire, 0)
    if isinstance(step, Ask):
        assert step.name == "a.example.com" or step.name.endswith(".example.org")
    elif step.wire is not None:
        assert step.wire[:2] == wire[:2]
        assert dns.message.from_wire(step.wire).flags & dns.flags.QR


RESPONSE = dns.message.from_text(
    "id 1\nflags QR\n;QUESTION\na.example.com. IN A\n;ANSWER\na.example.com. 30 IN CNAME b.example.net.\n"
    "b.example.net. 30 IN A 8.8.8.8\n;AUTHORITY\nexample.com. 900 IN SOA ns.example.com. me.example.com. 1 2 3 4 100\n"
).to_wire()


@given(
    st.lists(st.tuples(st.integers(2, len(RESPONSE) - 1), st.integers(0, 255)), max_size=6), st.sampled_from([A, AAAA])
)
@settings(max_examples=1500, deadline=None)
def test_no_response_of_a_server_raises_or_opens_a_private_address(
    changes: list[tuple[int, int]], rdtype: RdataType
) -> None:
    wire = bytearray(RESPONSE)
    for at, byte in changes:
        wire[at] = byte
    try:
        response = dns.message.from_wire(bytes(wire), ignore_trailing=True)
    except Exception:  # noqa: BLE001  # not a message: `upstream` waits for another
        return
    made = resolver("a.example.com")
    step = made.answered(
        ask(made, "a.example.com", rdtype), read(response, dns.name.from_text("a.example.com"), rdtype), 0
    )
    assert said(step).flags & dns.flags.QR
    if step.grant:
        assert all(is_public(a) for a in step.grant.addresses)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_no_reverse_name_raises(label: bytes) -> None:
    labels = [label[i : i + 9] for i in range(0, len(label), 9)][:20]
    for zone in ((b"in-addr", b"arpa", b""), (b"ip6", b"arpa", b"")):
        wire = dns.message.make_query(dns.name.Name((*(one for one in labels if one), *zone)), PTR).to_wire()
        assert said(resolver().query(S, wire, 0)).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("name", ["", ".", "a..b", "-a.b", "a-.b", "ä.example", "a b", "x" * 64, "a." * 127 + "a"])
def test_what_no_host_can_be_called_has_no_canonical_form(name: str) -> None:
    assert canonical(name) is None
