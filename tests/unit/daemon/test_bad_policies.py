# SPDX-License-Identifier: Apache-2.0
"""A malformed policy is refused before anything is touched: what is in force stays, in the kernel and in the daemon."""

from __future__ import annotations

import copy
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.control.protocol import Peer
from agentmon.control.server import Connection
from agentmon.daemon.app import Daemon
from agentmon.daemon.config import Config, DaemonConfig
from agentmon.daemon.policies import PolicyBook, Source
from agentmon.daemon.state import SessionState
from agentmon.daemon.verbs import Verbs
from agentmon.engine import Session
from agentmon.errors import PolicyError
from agentmon.host import process
from agentmon.model.tables import CompiledPolicy
from tests.support.corpus import corpus

GOOD = "policy: good\ninclude: [own]\nrules:\n- {id: keys, on: read, action: deny, paths: ~/.ssh/**}\n"
PACK = "policy: own\nrules:\n- {id: logs, on: write, action: deny, paths: /var/log/**}\n"
ROOT = Peer(pid=1, uid=0, gid=0)
#: A request is text; of the rest, what takes no second each.
CASES = [c for c in corpus() if c.kind not in ("cases", "limits", "bytes") and not (c.packs or c.odd)]


class Maps:
    """The kernel's side of policies; counts each step that would change it."""

    refuses_unix = True

    def __init__(self) -> None:
        self.steps: list[str] = []

    def install_policy(self, policy: CompiledPolicy) -> tuple[int, int]:
        self.steps.append(f"install {policy.name}")
        return 3, 7

    def remove_policy(self, slot: int) -> None:
        self.steps.append(f"remove {slot}")

    def processes(self) -> dict[Any, Any]:
        return {}

    def read(self, limit: int) -> list[Any]:
        return []

    def census(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        pytest.fail(f"a malformed policy made the daemon ask the kernel for `{name}`")


@pytest.fixture
def own_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of the operator, which `GOOD` includes."""
    from agentmon.policy import load

    packs = tmp_path / "packs"
    packs.mkdir()
    found = (packs, load.shipped_directory())
    monkeypatch.setattr("agentmon.policy.load.pack_directories", lambda: found)
    monkeypatch.setattr("agentmon.daemon.policies.pack_directories", lambda: found)
    path = packs / "own.yaml"
    path.write_text(PACK)
    return path


@pytest.fixture
def victim() -> Iterator[int]:
    """A process that is to be fenced."""
    with subprocess.Popen(["sleep", "1000"]) as child:
        yield child.pid
        child.kill()


@pytest.fixture
def daemon(tmp_path: Path, own_pack: Path) -> Daemon:
    """A daemon without a kernel, with one session under `GOOD`."""
    maps: Any = Maps()
    config = DaemonConfig(state=tmp_path / "state", audit=tmp_path / "audit", socket=tmp_path / "socket")
    daemon = Daemon(Config(daemon=config), maps)
    prepared = daemon.book.prepare(Source("good.yaml", GOOD), workspace="/w", home="/h", user="u")
    slot, generation = daemon.book.acquire(maps, prepared)
    state = SessionState(
        "s-0001", 1, 2, "good", slot, generation, prepared.digest, GOOD, "good.yaml", "/w", "/h", "u", 0, "cmd", 5,
        list(prepared.compiled.rules),
    )  # fmt: skip
    daemon.states[state.id] = state
    daemon.directory.save(state)
    daemon.engine.open(Session("s-0001", 1, "good", 0, time.time_ns(), prepared.view, workspace="/w", command="cmd"))
    assert maps.steps == ["install good"]
    return daemon


def in_force(daemon: Daemon) -> Any:
    """All that makes a session's policy what it is."""
    maps: Any = daemon.monitor
    files = {path.name: path.read_bytes() for path in daemon.directory.path.iterdir()}
    sessions = [(s.id, s.slot, s.policy, s.view, dict(s.generations)) for s in daemon.engine.sessions]
    book = (list(daemon.book._prepared), daemon.book._slots, daemon.book._users)
    return copy.copy((list(maps.steps), files, sessions, copy.deepcopy(book), copy.deepcopy(daemon.states)))


REQUESTS = {
    "enroll": lambda victim: {"pid": victim, "workspace": "/w"},
    "reload": lambda _: {"session": "s-0001"},
    "a reload's dry run": lambda _: {"session": "s-0001", "dry_run": True},
}


@pytest.mark.parametrize("way", REQUESTS)
def test_each_malformed_policy_is_refused_and_the_one_in_force_stays(daemon: Daemon, victim: int, way: str) -> None:
    verbs, before = Verbs(daemon), in_force(daemon)
    connection = Connection(daemon.server, None, 1, 0)  # type: ignore[arg-type]  # nothing is sent
    connection.start_ticks = process.stat(1).start_ticks
    stays = "\nsession `s-0001` stays under policy `good`, as it was"
    verb, stays = ("enroll", "") if way == "enroll" else ("reload", stays)
    asked = 0
    for case in CASES:
        text = case.text.decode()
        if len(text) > 16 << 10:
            continue
        policy = {"name": f"/home/u/{case.file}", "text": text or "\n"}
        answer = verbs.handle(connection, ROOT, verb, {**REQUESTS[way](victim), "policy": policy})
        assert (answer["ok"], answer["code"]) == (False, "invalid"), case.title
        said = answer["error"].replace("/home/u/", "")
        assert said.startswith(f"{case.file}:{case.expected.partition(';')[0]}"), case.title
        assert said.count(stays) == 1 if stays else "stays under" not in said, case.title
        asked += 1
    assert asked > 400
    assert in_force(daemon) == before


@pytest.mark.parametrize("bad", [b"", b"policy: own\nrulez: []\n", b"\xff", b"policy: [", b"policy: other\n", None])
def test_a_pack_that_becomes_malformed_changes_nothing_in_force(
    daemon: Daemon, own_pack: Path, bad: bytes | None
) -> None:
    before = in_force(daemon)
    own_pack.unlink()
    if bad is None:
        own_pack.symlink_to("nowhere")
    else:
        own_pack.write_bytes(bad)
    for _ in range(2):  # nor is the failure remembered as something
        with pytest.raises(PolicyError, match=r"\.yaml:\d+:\d+: "):
            daemon.book.prepare(Source("good.yaml", GOOD), workspace="/w", home="/h", user="u")
    assert in_force(daemon) == before
    own_pack.unlink()
    own_pack.write_text(PACK)
    mended = daemon.book.prepare(Source("good.yaml", GOOD), workspace="/w", home="/h", user="u")
    assert daemon.book.acquire(daemon.monitor, mended) == (3, 7)  # the same content: the same slot
    assert daemon.monitor.steps == ["install good"]


def test_a_broken_pack_that_nobody_includes_hinders_nobody(own_pack: Path) -> None:
    own_pack.with_name("broken.yaml").write_bytes(b"\xff")
    own_pack.with_name("nowhere.yaml").symlink_to("missing")
    own_pack.with_name("directory.yaml").mkdir()
    assert PolicyBook().prepare(Source("good.yaml", GOOD), workspace="/w", home="/h", user="u").name == "good"
