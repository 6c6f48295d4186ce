# SPDX-License-Identifier: Apache-2.0
"""`agentmon reload`: who may, what is told, and what is left when the daemon is killed in the middle."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from agentmon.control.client import reachable
from agentmon.kernel.tables import MAX_POLICIES, POLICY, U32, open_maps
from tests.support.hosts import Host, wait_for

#: Each takes a daemon that starts: a second, in an emulated guest twenty.
KILLS = int(os.environ.get("AGENTMON_INSTANTS", "34")) // 4


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="agentmon-test-") as directory, Host(Path(directory)) as host:
        for name in ("a", "b"):
            (host.directory / name).write_text(name)
        yield host


def closed(host: Host, name: str, policy: str = "test") -> Path:
    """A policy that denies reading one of our files; 30 more rules make it take time to install."""
    more = "".join(
        f"  - {{id: more-{i}, on: read, paths: ['/nonexistent/{name}{i}/**'], action: deny}}\n" for i in range(30)
    )
    return host.policy(
        f"{more}  - {{id: no-{name}, on: read, paths: ['{host.directory}/{name}'], action: deny}}", policy
    )


class Agent:
    """A process that forks to read our files whenever it is told to."""

    SCRIPT = """
import os, sys
for line in sys.stdin:
    got = ""
    for name in ("a", "b"):
        if os.fork() == 0:
            try:
                open(sys.argv[1] + "/" + name).read()
            except PermissionError:
                os._exit(1)
            os._exit(0)
        got += "" if os.wait()[1] else name
    print(got, flush=True)
"""

    def __init__(self, host: Host) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT, str(host.directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=host.directory,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def reads(self) -> str:
        """The files that it could read."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def enrol(host: Host, agent: Agent, policy: Path) -> str:
    return str(host.json("enroll", str(agent.process.pid), "-p", policy, "--accept", "all")["session"])


def audit(host: Host) -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.agentmon("audit", "log", "--json").stdout.splitlines()]


def installed(host: Host) -> int:
    """Policy slots in use, by the kernel's own table."""
    (build,) = host.pins.iterdir()
    maps = open_maps(build / "maps", ("policies",))
    try:
        headers = [POLICY.unpack(maps["policies"].lookup(U32.pack(slot)) or b"") for slot in range(MAX_POLICIES)]
        return sum(1 for header in headers if header[0])
    finally:
        maps["policies"].close()


def test_an_edited_or_another_policy_is_put_in_force(host: Host) -> None:
    daemon = host.start()
    policy = closed(host, "a")
    with Agent(host) as agent:
        session = enrol(host, agent, policy)
        assert agent.reads() == "b"
        closed(host, "b")  # the same file
        dry = host.json("reload", session, "--dry-run")
        changes = {(c["kind"], c.get("rule") or c.get("object")) for c in dry["changes"]}
        assert {("rule", "no-a"), ("rule", "no-b"), ("verdict", f"{host.directory}/a")} <= changes
        assert "added rule no-b of test: deny read" in host.agentmon("reload", session, "--dry-run").stdout
        assert agent.reads() == "b"
        done = host.json("reload", session)
        assert (done["changed"], done["policy"]) == (True, "test")
        assert done["digest"] != done["was_digest"]
        assert agent.reads() == "a"
        assert host.json("reload", session)["changed"] is False
        other = closed(host, "a", "other")
        assert "policy other (was test)" in host.agentmon("reload", "--all", "-p", other).stdout
        assert agent.reads() == "b"
        assert host.json("ps")["sessions"][0]["policy"] == "other"
        assert installed(host) == 1

        records = audit(host)
        swaps = [r for r in records if r["operation"] == "reloaded"]
        assert [r["session"] for r in swaps] == [session] * 2
        assert swaps[0]["detail"].startswith(f"policy test {done['was_digest'][:12]} (generation ")
        assert f"→ test {done['digest'][:12]} (generation {done['generation']}), by uid 0" in swaps[0]["detail"]
        told = [(r["object"], r["rule"], r["flags"]) for r in records if r["verdict"] == "deny"]
        paths = [(os.path.basename(path), rule) for path, rule, _ in told]
        assert paths == [("a", "no-a"), ("a", "no-a"), ("b", "no-b"), ("a", "no-a")]
        assert f"generation-{done['generation']}" in told[2][2].split(",")
        assert not [r for r in records if r["kind"] == "mismatch"]

        daemon.terminate()
        daemon.wait()
        host.start()
        assert agent.reads() == "b"
        listed = host.json("ps")["sessions"][0]
        assert (listed["session"], listed["policy"]) == (session, "other")
        assert host.json("reload", session, "-p", policy)["changed"]
        assert agent.reads() == "a"
        assert installed(host) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("policy: test\nrulse: []\n", "bad.yaml:2:1: unknown key `rulse`; did you mean `rules`?"),
        ("policy: test\n# " + "x" * (600 << 10), "bad.yaml:1:1: the policy is 614,415 bytes long; at most"),
        ("policy: [\n", "bad.yaml:2:1: "),
    ],
)
def test_what_cannot_be_used_changes_nothing(host: Host, text: str, words: str) -> None:
    host.start()
    bad = host.directory / "bad.yaml"
    bad.write_text(text)
    with Agent(host) as agent:
        session = enrol(host, agent, closed(host, "a"))
        for options in ([], ["--dry-run"]):
            done = host.agentmon("reload", session, "-p", bad, *options)
            assert done.returncode == 3, done.stderr
            assert words in done.stderr
            assert f"session `{session}` stays under " in done.stderr
        assert agent.reads() == "b"
        assert installed(host) == 1
        (host.directory / "test.yaml").unlink()
        done = host.agentmon("reload", session)
        assert (done.returncode, "test.yaml" in done.stderr) == (3, True)
        assert host.agentmon("reload", "s-none", "-p", "base").returncode == 1
        assert agent.reads() == "b"


def test_only_operators_and_nobody_inside(host: Host) -> None:
    host.directory.chmod(0o755)
    host.start()
    policy = closed(host, "a")
    with Agent(host) as agent:
        session = enrol(host, agent, policy)
        words = host.command("reload", session, "-p", "no-network")
        inside = host.agentmon("run", "-p", policy, "--", *words)
        assert inside.returncode == 2
        assert "do it from outside" in inside.stderr
        user = subprocess.run(
            ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-c", ASK,
             str(host.socket), session], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "only root and members of the group" in user.stdout, user.stderr
        assert agent.reads() == "b"


#: Speaks to the socket by itself: an ordinary user may not read a checkout in a private place.
ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.sendmsg([b'{"v":1,"id":1,"verb":"reload","session":"%s","policy":{"name":"base"}}\\n' % sys.argv[2].encode()])
    print(sock.recv(65536).decode())
"""


def test_a_daemon_killed_in_the_middle_leaves_one_of_the_two(host: Host) -> None:
    random.seed(4711)
    policies = [closed(host, "a", "first"), closed(host, "b", "second")]
    expected = {"first": "b", "second": "a"}
    stop, done, turns = threading.Event(), threading.Event(), itertools.count(1)

    def reload_for_ever(session: str) -> None:
        while not stop.is_set():
            if not reachable(host.socket):
                continue
            try:
                with host.client() as client:
                    while not stop.is_set():
                        file = policies[next(turns) % 2]
                        client.call("reload", session=session, policy={"name": str(file), "text": file.read_text()})
                        done.set()
            except Exception:  # noqa: BLE001  # the daemon is being killed
                time.sleep(0.01)

    daemon = host.start()
    closed_then = set()
    with Agent(host) as agent:
        session = enrol(host, agent, policies[0])
        client = threading.Thread(target=reload_for_ever, args=(session,))
        client.start()
        try:
            for _ in range(KILLS):
                wait_for(done.is_set, "a reload")
                time.sleep(random.uniform(0, 0.4))
                daemon.kill()
                daemon.wait()
                between = agent.reads()
                assert between in ("a", "b")
                closed_then |= {"a", "b"} - {between}
                stop.set()
                client.join()
                daemon = host.start()
                listed = host.json("ps")["sessions"]
                assert [s["session"] for s in listed] == [session], host.log()
                assert agent.reads() == between == expected[listed[0]["policy"]]
                wait_for(lambda: installed(host) == 1, "the other policy to be removed")
                stop.clear()
                done.clear()
                client = threading.Thread(target=reload_for_ever, args=(session,))
                client.start()
        finally:
            stop.set()
            client.join()
        records = audit(host)
        assert len([r for r in records if r["operation"] == "reloaded"]) >= KILLS
        assert not [r for r in records if r["kind"] == "mismatch"]
        denied = {(os.path.basename(r["object"]), r["rule"]) for r in records if r["verdict"] == "deny"}
        assert denied == {(name, f"no-{name}") for name in closed_then}
