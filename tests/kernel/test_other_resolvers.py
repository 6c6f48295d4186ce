# SPDX-License-Identifier: Apache-2.0
"""Name services of the host, which libc asks before any name server: who reaches hosts by name reaches none of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.kernel import libbpf
from agentmon.kernel.host import BPFFS, mount_if_absent
from agentmon.model.operations import Tier
from tests.support.island import ANY_NAME, SERVICES, Island, IslandHost, script, told

POLICY = """
policy: names
default: {exec: allow, read: allow, write: allow, create: allow, connect: deny, bind: allow, unix: allow}
rules:
  - {id: api, on: connect, hosts: ["api.example.com:443"], action: allow}
"""
PLAIN = POLICY.partition("rules:")[0]
#: Takes the place of the rule that nobody wrote.
OWN = POLICY + "  - {id: other-resolvers, on: unix, paths: [/run/elsewhere], action: deny}\n"

#: Each asks one service for `name`; what it says, or the name of the error.
ASK = """
def ask(path, words):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        try:
            sock.connect(path)
            sock.sendall(words)
            said = sock.recv(4096)
            return "9.9.9.9" if b"9.9.9.9" in said or b"[9, 9, 9, 9]" in said else ""
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))

def varlink(name, path="/run/systemd/resolve/io.systemd.Resolve"):
    call = {"method": "io.systemd.Resolve.ResolveHostname", "parameters": {"name": name}}
    return ask(path, json.dumps(call).encode() + bytes(1))

def avahi(name, path="/run/avahi-daemon/socket"):
    return ask(path, b"RESOLVE-HOSTNAME " + name.encode() + b"\\n")
"""
DATA = "c2VjcmV0"


@pytest.fixture(scope="module")
def island() -> Iterator[Island]:
    mount_if_absent("bpf", BPFFS)
    with (
        tempfile.TemporaryDirectory(prefix="agentmon-test-") as directory,
        Island(Path(directory), services=True) as island,
    ):
        yield island


@pytest.fixture(scope="module")
def served(island: Island) -> Iterator[IslandHost]:
    with (
        tempfile.TemporaryDirectory(prefix="agentmon-test-") as directory,
        IslandHost(Path(directory), island) as host,
    ):
        host.start()
        yield host


@pytest.fixture
def refused(tier: Tier) -> None:
    if tier is Tier.REACT and libbpf.missing_functions(["bpf_sock_addr_set_sun_path"]):
        pytest.skip("not required: before Linux 6.7 the react tier can only kill, see the test that says so")


def run(host: IslandHost, body: str, policy: str = POLICY) -> Any:
    path = host.directory / "names.yaml"
    path.write_text(policy)
    return told(host.agentmon("run", "-p", path, "--", *script(ASK + body)))


def every(what: str) -> str:
    """Asks each service for a name with data in it, and says what became of it."""
    return (
        f'told += [lookup("{DATA}.{what}.example"), varlink("{DATA}.{what}.example"), avahi("{DATA}.{what}.example")]\n'
    )


def recorded(host: IslandHost) -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.agentmon("audit", "log", "--json").stdout.splitlines()]


@pytest.mark.parametrize("policy", [PLAIN, OWN], ids=["no-hosts", "own-rule"])
def test_without_the_rule_they_hear_any_name(served: IslandHost, island: Island, policy: str) -> None:
    before = island.told()
    assert run(served, every("open"), policy) == [[ANY_NAME], ANY_NAME, ANY_NAME]
    assert island.told().removeprefix(before).count(f"{DATA}.open.example") == 3


@pytest.mark.usefixtures("refused")
def test_none_hears_a_name_and_libc_asks_agentmons_resolver(served: IslandHost, island: Island) -> None:
    body = every("fenced") + 'told += [lookup("api.example.com", socket.AF_INET), connect("api.example.com", 443)]'
    assert run(served, body) == ["no name", "EPERM", "EPERM", ["8.8.8.8"], ""]
    assert f"{DATA}.fenced.example" not in island.told()
    assert "api.example.com" not in island.told()


@pytest.mark.usefixtures("refused")
def test_another_name_for_the_socket_leads_nowhere(
    served: IslandHost, island: Island, tier: Tier, tmp_path: Path
) -> None:
    body = f"""
for path in {SERVICES!r}:
    name = b"{DATA}.linked.example"
    words = name + b"\\n" + bytes(1)
    link = {str(tmp_path)!r} + "/" + path.replace("/", "-")
    if not os.path.islink(link):
        os.symlink("/run/" + path, link)
    child = os.fork()
    if not child:
        if "nscd" in path:
            words = struct.pack("=3i", 2, 14, len(name)) + name  # GETAI
        os._exit(7 if ask(link, words) == "EPERM" else 8)
    told.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    before = island.told()
    # without a fence around them: nothing of this policy is about names or sockets
    assert run(served, body, PLAIN) == [8] * 3
    after = island.told()
    assert after.removeprefix(before).count(f"{DATA}.linked.example") == 3
    assert run(served, body) == [7 if tier is Tier.LSM else -9] * 3
    assert island.told() == after


@pytest.mark.usefixtures("refused")
def test_it_is_recorded_and_not_announced(served: IslandHost) -> None:
    run(served, 'told.append(varlink("a.recorded.example"))')
    (last,) = [r for r in recorded(served) if r["kind"] == "decision" and r["object"].startswith("/run/systemd")][-1:]
    assert (last["rule"], last["verdict"], "quiet" in last["flags"]) == ("other-resolvers", "deny", True)
    assert not [r for r in recorded(served) if r["kind"] == "mismatch"]


@pytest.mark.tier("react")
def test_where_it_could_only_kill_the_rule_is_left_out(served: IslandHost, island: Island) -> None:
    """Before Linux 6.7, else whoever looks up a name would die where one of these runs."""
    if not libbpf.missing_functions(["bpf_sock_addr_set_sun_path"]):
        pytest.skip("not required: this kernel refuses to connect")
    assert run(served, every("old")) == [[ANY_NAME], ANY_NAME, ANY_NAME]
    assert island.told().count(f"{DATA}.old.example") == 3
