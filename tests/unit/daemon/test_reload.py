# SPDX-License-Identifier: Apache-2.0
"""The swap of a session's policy, with a kernel that can be made to fail, or to be left, at each of its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentmon.control.protocol import Peer, RefusedError
from agentmon.daemon import adoption, reload
from agentmon.daemon.policies import PolicyBook, Source
from agentmon.daemon.requests import PolicyRef, Reload
from agentmon.daemon.state import SessionState, StateDirectory
from agentmon.engine import Engine, Questions, Session
from agentmon.errors import KernelError
from agentmon.model.conditions import Risk
from agentmon.model.events import Decision, Event, Flag, ProcessKey
from agentmon.model.operations import Action, Operation, Reason, Tier
from agentmon.model.records import Record
from agentmon.model.tables import CompiledPolicy

ROOT = Peer(1, 0, 0)


class Killed(BaseException):
    """The daemon is no more."""


def text(rule: str, name: str = "p") -> str:
    return (
        f"policy: {name}\ndefault: {{exec: allow, read: allow, write: deny, create: deny, connect: deny}}\n"
        f"rules:\n  - {{id: {rule}, on: read, paths: [/{rule}], action: deny}}\n"
    )


class Kernel:
    """What survives the daemon: installed policies, one session, the ring."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.policy = 0
        self.ring: list[Event] = []
        self.fail: dict[str, BaseException] = {}
        self.calls: list[str] = []
        self.generation = 0
        self.tables = SimpleNamespace(slots=lambda: dict(self.slots))
        self.grants = SimpleNamespace(forget=lambda serial, generation: self._step("forget"))

    def _step(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise self.fail[name]

    def install_policy(self, policy: CompiledPolicy) -> tuple[int, int]:
        self._step("install")
        slot = next(slot for slot in range(64) if slot not in self.slots)
        self.generation += 1
        self.slots[slot] = self.generation
        return slot, self.generation

    def remove_policy(self, slot: int) -> None:
        self._step("remove")
        assert slot != self.policy, "the policy in force is never removed"
        del self.slots[slot]

    def change_policy(self, session: int, slot: int) -> None:
        self._step("change")
        self.policy = slot

    def settle(self) -> None:
        self._step("settle")

    def sessions(self) -> dict[int, tuple[int, int, int]]:
        return {1: (self.policy, 1, 5)}

    def census(self) -> None:
        return None

    def risk(self, session: int) -> Risk:
        return Risk.NORMAL

    def set_clock(self, slot: int, spans: Sequence[tuple[int, int]]) -> None:
        assert slot in self.slots
        self.calls.append("clock")


class Daemon:
    """As much of one as a reload needs."""

    def __init__(self, kernel: Kernel, path: Path) -> None:
        self.holding = SimpleNamespace(adopt=lambda: None)  # nothing is held
        self.monitor = kernel
        self.engine = Engine()
        self.book = PolicyBook()
        self.directory = StateDirectory(path)
        self.audit = SimpleNamespace(path=path / "audit.db")
        self.questions = Questions()
        self.states: dict[str, SessionState] = {}
        self.records: list[Record] = []
        self.names = SimpleNamespace(open=lambda *_: kernel._step("names"))

    def enrol(self, policy: str) -> Session:
        prepared = self.book.prepare(Source("/p.yaml", policy), workspace="/w", home="/h", user="u")
        slot, generation = self.book.acquire(self.monitor, prepared)
        self.monitor.policy = slot
        session = Session("s-1", 1, prepared.name, 0, 0, prepared.view)
        session.generations[generation] = prepared.view
        self.engine.open(session)
        self.states["s-1"] = SessionState(
            "s-1", 1, 5, prepared.name, slot, generation, prepared.digest, policy, "/p.yaml", "/w", "/h", "u", 0, "c",
            0, list(prepared.compiled.rules), first_generation=generation,
        )  # fmt: skip
        self.directory.save(self.states["s-1"])
        return session

    def reload(self, policy: str) -> reload.Reloaded:
        request = Reload(session="s-1", policy=PolicyRef(name="/p.yaml", text=policy))
        session = self.engine.find("s-1")
        assert session is not None
        prepared = reload.prepare(cast(Any, self), ROOT, request, self.states["s-1"])
        return reload.reload(cast(Any, self), ROOT, request, session, prepared)

    def report(self, record: Record) -> None:
        self.records.append(record)

    def drain(self) -> None:
        events, self.monitor.ring = self.monitor.ring, []
        for event in events:
            for command in self.engine.handle(event, 0):
                self.records.append(cast(Any, command).record)

    def settle(self) -> None: ...


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def daemon(kernel: Kernel, tmp_path: Path) -> Daemon:
    return Daemon(kernel, tmp_path)


def denial(path: bytes, generation: int) -> Decision:
    return Decision(
        time_ns=0, process=ProcessKey(7, 1), tid=7, ppid=1, uid=0, comm="c", tier=Tier.LSM, session=1,
        generation=generation, operation=Operation.READ, verdict=Action.DENY, rule=0, reason=Reason.RULE,
        flags=Flag(0), exe_tags=0, inode=(0, 0, 0), object=path,
    )  # fmt: skip


def test_records_that_wait_in_the_ring_have_the_names_of_their_own_rules(daemon: Daemon, kernel: Kernel) -> None:
    session = daemon.enrol(text("old"))
    kernel.ring = [denial(b"/old", 1), denial(b"/new", 2), denial(b"/old", 1)]
    done = daemon.reload(text("new", "q"))
    told = [(r.rule, r.flags) for r in daemon.records if r.kind == "decision"]
    assert told == [("old", ""), ("new", "generation-2"), ("old", "")]
    assert not [r for r in daemon.records if r.kind == "mismatch"]
    (swap,) = [r for r in daemon.records if r.operation == "reloaded"]
    assert swap.detail == (
        f"policy p {done.old.digest[:12]} (generation 1) → q {done.new.digest[:12]} (generation 2), by uid 0"
    )
    assert list(session.generations) == [2]
    assert session.policy == "q"
    assert list(kernel.slots) == [kernel.policy]
    (state,) = daemon.directory.load()
    assert isinstance(state, SessionState)
    assert (state.policy, state.generation, state.before, state.first_generation) == ("q", 2, None, 1)


def test_the_same_policy_is_left_alone(daemon: Daemon, kernel: Kernel) -> None:
    daemon.enrol(text("old"))
    assert daemon.reload(text("old") + "# a remark\n").changed is False
    assert "change" not in kernel.calls
    assert daemon.states["s-1"].text.endswith("# a remark\n")


@pytest.mark.parametrize("step", ["install", "names", "change"])
def test_a_step_that_fails_leaves_the_policy_in_force(daemon: Daemon, kernel: Kernel, step: str) -> None:
    session = daemon.enrol(text("old"))
    before = daemon.states["s-1"].in_force
    kernel.fail = {step: KernelError("it does not fit: end other sessions")}
    with pytest.raises(RefusedError) as caught:
        daemon.reload(text("new", "q"))
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith("/p.yaml:1:1: it does not fit: end other sessions")
    assert "session `s-1` stays under policy `p`" in str(caught.value)
    assert daemon.states["s-1"].in_force == before
    assert list(daemon.directory.load()) == [daemon.states["s-1"]]
    assert (session.policy, list(session.generations)) == ("p", [1])
    assert kernel.slots == {0: 1}
    kernel.fail = {}
    assert daemon.reload(text("new", "q")).changed


def test_a_bad_policy_says_that_nothing_changed(daemon: Daemon, kernel: Kernel) -> None:
    daemon.enrol(text("old"))
    with pytest.raises(RefusedError, match=r"(?s)/p\.yaml:1:1: .*stays under policy `p`") as caught:
        daemon.reload("polciy: q\n")
    assert caught.value.code == "invalid"
    assert kernel.calls == ["install"]


@pytest.mark.parametrize(
    ("step", "in_force"),
    [
        ("install", "p"),
        ("save", "p"),
        ("names", "p"),
        ("change", "p"),
        ("settle", "q"),
        ("forget", "q"),
        ("remove", "q"),
    ],
)
def test_the_next_daemon_finds_one_of_the_two(
    daemon: Daemon, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, in_force: str
) -> None:
    daemon.enrol(text("old"))
    if step == "save":
        monkeypatch.setattr(daemon.directory, "save", _killed)
    kernel.fail = {step: Killed()}
    with pytest.raises(Killed):
        daemon.reload(text("new", "q"))
    kernel.fail = {}
    late = step == "remove"  # every record of the old policy had been read
    old, new = denial(b"/old", 1), denial(b"/new", 2)
    kernel.ring = [old] if in_force == "p" else [new] if late else [old, new]
    following = Daemon(kernel, tmp_path)
    adoption.adopt(cast(Any, following))
    assert list(kernel.slots) == [kernel.policy]
    session = following.engine.find("s-1")
    assert session is not None
    assert session.policy == following.states["s-1"].policy == in_force
    assert list(following.directory.load()) == [following.states["s-1"]]
    assert following.states["s-1"].before is None
    rules = [r.rule for r in following.records if r.kind == "decision"]
    assert rules == (["old"] if in_force == "p" else ["new"] if late else ["old", "new"])
    assert following.reload(text("third", "r")).changed
    assert list(kernel.slots) == [kernel.policy]


def _killed(*_: object) -> None:
    raise Killed


def test_a_session_that_ends_meanwhile_leaves_nothing(
    daemon: Daemon, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.enrol(text("old"))
    drain: Callable[[], None] = daemon.drain

    def ends() -> None:
        drain()
        state = daemon.states.pop("s-1")
        daemon.directory.remove("s-1")
        kernel.policy = -1
        daemon.book.release(kernel, state.policy_slot)

    monkeypatch.setattr(daemon, "drain", ends)
    daemon.reload(text("new", "q"))
    assert kernel.slots == {}
    assert list(daemon.directory.load()) == []
