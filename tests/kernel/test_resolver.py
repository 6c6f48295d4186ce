# SPDX-License-Identifier: Apache-2.0
"""Names of hosts as an agent meets them: a daemon, its resolver, and a network without anyone else in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.kernel.host import BPFFS, mount_if_absent
from tests.support.hosts import PATIENCE_S, wait_for
from tests.support.island import Island, IslandHost, script, told

POLICY = """
policy: names
default: {exec: allow, read: allow, write: allow, create: allow, connect: deny, bind: allow, unix: allow}
rules:
  - {id: api, on: connect, hosts: ["api.example.com:443", "two.example.com:443"], action: allow}
  - {id: other, on: connect, hosts: [inward.example.com, home.example.com, "*.wide.example"], action: allow}
"""
LOCAL = POLICY + '  - {id: local, on: [connect, send], cidrs: [127.0.0.0/8, "::1"], action: allow}\n'
PLAIN = POLICY.partition("rules:")[0]


@pytest.fixture(scope="module")
def island() -> Iterator[Island]:
    mount_if_absent("bpf", BPFFS)  # here too, not in the island alone
    with tempfile.TemporaryDirectory(prefix="agentmon-test-") as directory, Island(Path(directory)) as island:
        yield island


@pytest.fixture(scope="module")
def served(island: Island) -> Iterator[IslandHost]:
    with (
        tempfile.TemporaryDirectory(prefix="agentmon-test-") as directory,
        IslandHost(Path(directory), island) as host,
    ):
        host.start()
        yield host


def run(host: IslandHost, body: str, policy: str = POLICY) -> Any:
    return told(host.agentmon("run", "-p", policy_file(host, policy), "--", *script(body)))


def policy_file(host: IslandHost, text: str) -> Path:
    path = host.directory / "names.yaml"
    path.write_text(text)
    return path


def recorded(host: IslandHost) -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.agentmon("audit", "log", "--json").stdout.splitlines()]


def names_refused(host: IslandHost) -> list[tuple[str, str]]:
    return [(r["object"], r["reason"]) for r in recorded(host) if r["kind"] == "name"]


def by_name(host: IslandHost, name: str) -> list[tuple[str, str]]:
    """Rule and address of each decision on an address that was asked for by the name."""
    return [(r["rule"], r["object"]) for r in recorded(host) if r["detail"] == f"name {name}"]


def test_the_first_connect_by_name_succeeds_where_everything_else_is_denied(served: IslandHost) -> None:
    body = """
for family in (socket.AF_INET, socket.AF_INET6):
    told.append(connect(lookup("api.example.com", family)[0], 443))
told.append(connect("two.example.com", 443))
told.append([connect("8.8.8.8", 444), connect("9.9.9.9", 444), connect("127.0.0.1", 443)])
"""
    assert run(served, body) == ["", "", "", ["EPERM", "EPERM", "EPERM"]]


def test_an_address_is_denied_until_its_name_was_asked_for(served: IslandHost) -> None:
    body = """
told.append(connect("8.8.8.8", 443))
told.append(lookup("api.example.com", socket.AF_INET))
told.append(connect("8.8.8.8", 443))
"""
    assert run(served, body) == ["EPERM", ["8.8.8.8"], ""]
    assert run(served, 'told.append(connect("8.8.8.8", 443))') == ["EPERM"]  # another session


def test_other_names_do_not_exist_and_are_asked_of_nobody(served: IslandHost, island: Island) -> None:
    body = """
told.append([lookup("evil.example.net"), lookup("c2VjcmV0.api.example.com"), lookup("nothing.wide.example")])
"""
    assert run(served, body) == [["no name"] * 3]
    asked = set(island.asked())
    assert "nothing.wide.example" in asked
    assert not {"evil.example.net", "c2vjcmv0.api.example.com"} & asked
    assert ("evil.example.net", "no rule allows this name") in names_refused(served)


def test_every_server_is_the_resolver_and_seems_to_be_itself(served: IslandHost) -> None:
    """By UDP and TCP, connected or not, by IPv4, IPv6 and IPv4 in IPv6."""
    body = """
for family, server in ((2, "9.9.9.9"), (2, "192.0.2.1"), (10, "2001:db8::1"), (10, "::ffff:9.9.9.9")):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(family, kind) as sock:
            sock.settimeout(10)
            sock.connect((server, 53))
            wire = query("api.example.com")
            sock.sendall(wire if kind == socket.SOCK_DGRAM else struct.pack("!H", len(wire)) + wire)
            data = sock.recv(4096) if kind == socket.SOCK_DGRAM else sock.recv(2) and sock.recv(4096)
            told.append([*sock.getpeername()[:2], *said(data)])
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(query("api.example.com"), (server, 53))
        data, source = sock.recvfrom(4096)
        told.append([*source[:2], *said(data)])
"""
    servers = ["9.9.9.9", "192.0.2.1", "2001:db8::1", "::ffff:9.9.9.9"]
    assert run(served, body) == [[server, 53, 0, 1] for server in servers for _ in range(3)]


def test_a_name_server_of_the_agents_own_is_not_reached(served: IslandHost, island: Island) -> None:
    """It may not listen on port 53; another port is not open; what it says opens no address."""
    body = """
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    own.bind(("127.0.0.2", 53))
except PermissionError:
    told.append("no server")
    own.bind(("127.0.0.2", 0))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(10)
    sock.sendto(query("evil.example.net"), ("127.0.0.2", 53))
    told.append(said(sock.recvfrom(4096)[0]))
    try:
        sock.sendto(query("evil.example.net"), ("9.9.9.9", 5353))
    except OSError as error:
        told.append(errno.errorcode[error.errno])
own.setblocking(False)
try:
    told.append(len(own.recv(4096)))
except BlockingIOError:
    told.append("nothing came")
told.append(connect("9.9.9.9", 443))
"""
    assert run(served, body) == ["no server", [3, 0], "EPERM", "nothing came", "EPERM"]


def test_odd_ways_to_a_name_server_lead_to_the_resolver_or_nowhere(served: IslandHost) -> None:
    """TCP fast open, multipath TCP, UDP-Lite."""
    body = """
def ask(protocol, kind, flags):
    try:
        with socket.socket(socket.AF_INET, kind, protocol) as sock:
            sock.settimeout(10)
            wire = query("api.example.com")
            if kind == socket.SOCK_DGRAM:
                sock.sendto(wire, ("9.9.9.9", 53))
                return said(sock.recv(4096))
            wire = struct.pack("!H", len(wire)) + wire
            if flags:
                sock.settimeout(None)
                sock.sendto(wire, flags, ("9.9.9.9", 53))
            else:
                sock.connect(("9.9.9.9", 53))
                sock.sendall(wire)
            return said(sock.recv(2) and sock.recv(4096))
    except OSError as error:
        return errno.errorcode[error.errno]
told.append(ask(0, socket.SOCK_STREAM, socket.MSG_FASTOPEN))
told.append(ask(262, socket.SOCK_STREAM, 0))
told.append(ask(136, socket.SOCK_DGRAM, 0))
"""
    fast_open, multipath, lite = run(served, body)
    assert fast_open == [0, 1]
    absent = ("EPROTONOSUPPORT", "ENOPROTOOPT")
    assert multipath in ([0, 1], "EPERM", *absent)
    assert lite in ("EPERM", *absent)


def test_a_name_that_points_inward_leads_nowhere(served: IslandHost) -> None:
    body = """
told.append(lookup("inward.example.com"))
told += [connect(host, 443) for host in ("127.0.0.1", "10.0.0.1", "::1")]
"""
    assert run(served, body)[1:] == ["EPERM"] * 3
    # where a rule allows the address, that rule says which ports
    addresses, *rest = run(
        served, body, POLICY + '  - {id: local, on: connect, cidrs: ["127.0.0.1:443"], action: allow}\n'
    )
    assert (addresses, rest) == (["127.0.0.1"], ["", "EPERM", "EPERM"])


def test_a_name_that_points_at_a_public_address_of_this_host_or_its_network_leads_nowhere(served: IslandHost) -> None:
    body = """
told.append(lookup("home.example.com"))
told += [connect(host, 443) for host in ("4.4.4.1", "4.4.4.77")]
"""
    assert run(served, body)[1:] == ["EPERM"] * 2
    addresses, *rest = run(served, body, POLICY + "  - {id: local, on: connect, cidrs: [4.4.4.1], action: allow}\n")
    assert (addresses, rest) == (["4.4.4.1"], ["", "EPERM"])


RESOLVERS = """
def ports(kind, state):
    rows = [line.split() for line in open("/proc/net/" + kind)][1:]
    return {int(r[1].split(":")[1], 16) for r in rows if r[1].startswith("0100007F") and r[3] == state} - {53}
def send(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(query("api.example.com"), ("127.0.0.1", port))
        except OSError as error:
            return errno.errorcode[error.errno]
doors = ports("udp", "07") & ports("tcp", "0A")
"""


def test_no_resolver_is_reached_by_its_port(served: IslandHost) -> None:
    """Not even where a rule allows all of loopback: else a session could ask as another."""
    policy = policy_file(served, LOCAL)
    other = served.spawn("run", "-p", policy, "--", "sleep", "600", stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: served.json("ps")["sessions"], "the other session")
        found = run(
            served, RESOLVERS + "told += [len(doors), [[send(p), connect('127.0.0.1', p)] for p in doors]]", LOCAL
        )
        assert found == [2, [["EPERM", "EPERM"]] * 2]
    finally:
        other.terminate()
        other.wait(PATIENCE_S)


def test_a_session_whose_policy_names_no_host_has_no_resolver(served: IslandHost, island: Island) -> None:
    before = island.asked()
    body = RESOLVERS + 'told += [len(doors), lookup("api.example.com")]'
    assert run(served, body, PLAIN) == [0, "again"]
    policy = PLAIN + 'rules: [{id: dns, on: [connect, send], cidrs: ["127.0.0.1:53"], action: allow}]\n'
    assert run(served, 'told.append(lookup("two.example.com", socket.AF_INET))', policy) == [["9.9.9.9"]]
    assert island.asked() == [*before, "two.example.com"]


def test_what_a_name_led_to_is_recorded_with_it(served: IslandHost) -> None:
    run(served, 'told.append(connect("api.example.com", 443))')
    wait_for(lambda: by_name(served, "api.example.com"), "its record")
    (rule, object_) = by_name(served, "api.example.com")[-1]
    assert rule == "api"
    assert object_ in ("8.8.8.8:443", "[2001:4860:4860::8888]:443")
    assert not [r for r in recorded(served) if r["kind"] == "mismatch"]


def test_without_its_daemon_a_session_gets_no_answers_and_the_next_daemon_gives_them(
    island: Island, tmp_path: Path
) -> None:
    body = """
for line in sys.stdin:
    print(json.dumps([lookup("api.example.com", socket.AF_INET), connect("9.9.9.9", 443)]), flush=True)
"""
    with IslandHost(tmp_path, island) as host:
        daemon = host.start()
        policy = policy_file(host, POLICY)
        agent = host.spawn("run", "-p", policy, "--", *script(body), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert agent.stdin is not None
        assert agent.stdout is not None

        def ask() -> Any:
            assert agent.stdin is not None
            assert agent.stdout is not None
            agent.stdin.write("\n")
            agent.stdin.flush()
            return json.loads(agent.stdout.readline())

        try:
            assert ask() == [["8.8.8.8"], "EPERM"]
            (pid,) = host.daemon_pids()
            os.kill(pid, signal.SIGKILL)
            daemon.wait()
            assert ask() == ["again", "EPERM"]
            host.start()
            assert ask() == [["8.8.8.8"], "EPERM"]
        finally:
            agent.stdin.close()
            agent.wait(PATIENCE_S)


def test_what_was_asked_for_stays_reachable_through_a_reload(island: Island, tmp_path: Path) -> None:
    """By an address that the agent holds, without asking again; names that came with the policy are answered."""
    body = """
told.append(lookup("api.example.com", socket.AF_INET))
print(json.dumps([]), flush=True)
for line in sys.stdin:
    name = line.strip()
    print(json.dumps([lookup(name, socket.AF_INET) if name else [], connect("8.8.8.8", 443)]), flush=True)
"""
    wider = POLICY.replace(" two.example.com:443", "two.example.com:443").replace(
        "rules:", 'rules:\n  - {id: first, on: connect, cidrs: ["192.0.2.0/24"], action: deny}'
    )
    without = POLICY.replace("api.example.com:443", "elsewhere.example.com:443")
    with IslandHost(tmp_path, island) as host:
        host.start()
        policy = policy_file(host, PLAIN.replace("names", "plain"))
        agent = host.spawn("run", "-p", policy, "--", *script(body), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert agent.stdin is not None
        assert agent.stdout is not None

        def ask(name: str = "") -> Any:
            assert agent.stdin is not None
            assert agent.stdout is not None
            agent.stdin.write(name + "\n")
            agent.stdin.flush()
            return json.loads(agent.stdout.readline())

        def reload(text: str) -> None:
            assert host.json("reload", session, "-p", policy_file(host, text))["changed"]

        try:
            agent.stdout.readline()
            session = host.json("ps")["sessions"][0]["session"]
            assert ask("api.example.com") == ["again", "EPERM"]  # its policy names no host: no resolver
            reload(POLICY)
            assert ask("api.example.com") == [["8.8.8.8"], ""]
            for text in (wider, POLICY, wider):
                reload(text)
                assert ask() == [[], ""]
            assert ask("other.wide.example")[1] == ""
            reload(without)
            assert ask() == [[], "EPERM"]
            assert ask("api.example.com")[1] == "EPERM"
            reload(POLICY)
            assert ask("api.example.com") == [["8.8.8.8"], ""]
        finally:
            agent.stdin.close()
            agent.wait(PATIENCE_S)
        assert not [r for r in recorded(host) if r["kind"] == "mismatch"]
