# SPDX-License-Identifier: Apache-2.0
"""Runs something inside a fence of the tests' own and tells what came of it: no daemon, only the kernel side."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentmon.daemon.clocks import Clocks
from agentmon.kernel.monitor import Monitor
from agentmon.model.events import Decision, Event, ProcessEvent, ProcessKey
from agentmon.model.operations import OPERATIONS, PART_OF_WRITE, Action, Operation, Tier
from agentmon.model.tables import NO_RULE, CompiledPolicy
from agentmon.plan.fence import Fenced
from agentmon.plan.load import load_text as load_plan
from agentmon.plan.plan import Plan
from agentmon.policy.bind import bind_policy
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.load import load_text
from agentmon.policy.rules import Policy, Variables

#: Emulated guests are slow; native hosts never wait this long.
PATIENCE_S = 180.0
ALLOW_ALL = f"default: {{{', '.join(f'{o.word}: allow' for o in OPERATIONS if o not in PART_OF_WRITE)}}}\n"

Body = Callable[[], Any] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a fenced child ended. ``status``: exit status, or minus the signal that killed it."""

    status: int
    value: Any  # what its function returned; of a program, its standard output
    errno: int  # of the OSError that its function raised, else 0
    events: list[Event]
    policy: CompiledPolicy

    @property
    def decisions(self) -> list[Decision]:
        return [e for e in self.events if isinstance(e, Decision)]

    @property
    def changes(self) -> list[ProcessEvent]:
        return [e for e in self.events if isinstance(e, ProcessEvent)]

    def told(self, least: Action = Action.AUDIT) -> list[tuple[str, str, str]]:
        """Operation, verdict and rule of each decision at least that severe, in order."""
        return [
            (d.operation.word, d.verdict.word, rule_id(self.policy, d.rule))
            for d in self.decisions
            if d.verdict >= least
        ]

    def stopped(self, tier: Tier, *, network: bool = False) -> bool:
        """Whether what it tried was denied, as this tier denies: EPERM, or death before the result could be used."""
        if tier is Tier.LSM or network:
            return self.errno == errno.EPERM
        return self.status == -signal.SIGKILL


def closed(plain: Outcome) -> str:
    """Why a test of rings does not run."""
    return f"not required: {plain.value.decode().strip()} on this host, for everybody"


def rule_id(policy: CompiledPolicy, rule: int) -> str:
    """The name of a rule; empty if there is none."""
    return "" if rule == NO_RULE else policy.rules[rule].id


@dataclass(slots=True)
class Child:
    """A forked child that waits for the word to begin."""

    pid: int
    go: int
    result: int
    is_program: bool
    output: bytearray = field(default_factory=bytearray)


class Session:
    """One policy in force for whatever is enrolled in it."""

    def __init__(
        self,
        monitor: Monitor,
        policy: Policy,
        variables: Variables,
        *,
        split: bool | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.plan = plan
        self.monitor = monitor
        self.tier = monitor.tier
        #: By generation, each policy that the session was ever under.
        self.evaluators: dict[int, Evaluator] = {}
        self._install(policy, variables, split=split)
        self.slot, self.serial = monitor.open_session(self.policy_slot)
        self.events: list[Event] = []

    def _install(self, policy: Policy, variables: Variables, *, split: bool | None = None) -> None:
        if self.plan is None:
            bound = bind_policy(policy, variables)
            self.compiled = compile_policy(bound, split=split)
        else:
            fenced = Fenced(policy, self.plan, variables)
            bound, self.compiled = fenced.policy, fenced.compile(split=split)
        self.evaluator = Evaluator(bound)
        self.policy_slot, self.generation = self.monitor.install_policy(self.compiled)
        Clocks().start(self.monitor, self.policy_slot, self.compiled.conditions)
        self.evaluators[self.generation] = self.evaluator

    def swap(self, policy: Policy, ready: Callable[[], None] = lambda: None) -> None:
        """Puts what is enrolled under another policy; `ready` is called just before, with that one's generation."""
        old = self.policy_slot
        self._install(policy, self.evaluator.bound.variables)
        ready()
        self.monitor.change_policy(self.slot, self.policy_slot)
        self.monitor.remove_policy(old)

    def enroll(self, *pids: int) -> list[ProcessKey]:
        return self.monitor.enroll(pids, self.slot)

    def live(self) -> list[ProcessKey]:
        """The processes of this session that the kernel knows."""
        return [k for k, state in self.monitor.processes().items() if state.session == self.slot]

    def drain(self) -> list[Event]:
        """Takes what is in the ring; what is not of this session is dropped."""
        fresh = [e for e in self.monitor.read(1_000_000) if e.session == self.slot]
        self.events += fresh
        return fresh

    def fork(self, body: Body) -> Child:
        """A child that is not enrolled and waits."""
        go_read, go_write = os.pipe()
        result_read, result_write = os.pipe()
        pid = os.fork()
        if pid:
            os.close(go_read)
            os.close(result_write)
            return Child(pid, go_write, result_read, not callable(body))
        status = 127
        try:
            os.close(go_write)
            os.close(result_read)
            os.read(go_read, 1)
            os.close(go_read)
            status = _act(body, result_write)
        finally:
            os._exit(status)

    def start(self, body: Body) -> Child:
        """A child that is enrolled and has begun."""
        child = self.fork(body)
        added = self.enroll(child.pid)
        assert child.pid in [k.pid for k in added]  # and a child that others of the session have just forked
        self.begin(child)
        return child

    def begin(self, child: Child) -> None:
        os.write(child.go, b"!")
        os.close(child.go)

    def finish(self, child: Child, timeout_s: float = PATIENCE_S, *, drain: bool = True) -> Outcome:
        """Waits for its end, reading records meanwhile, or only then."""
        deadline = time.monotonic() + timeout_s
        while True:
            ready, _, _ = select.select([child.result], [], [], 0.02)
            if drain:
                self.drain()
            if ready:
                piece = os.read(child.result, 1 << 16)
                if not piece:
                    break
                child.output += piece
            if time.monotonic() > deadline:
                os.kill(child.pid, signal.SIGKILL)
        os.close(child.result)
        _, status = os.waitpid(child.pid, 0)
        assert time.monotonic() < deadline, f"a fenced child took longer than {timeout_s} s"
        self.drain()
        value, number = _result(child)
        events, self.events = self.events, []
        return Outcome(os.waitstatus_to_exitcode(status), value, number, events, self.compiled)

    def run(self, body: Body) -> Outcome:
        """Fences a child from its first instruction on, and waits for it."""
        return self.finish(self.start(body))

    def close(self) -> None:
        for key in self.live():
            with contextlib.suppress(ProcessLookupError):
                os.kill(key.pid, signal.SIGKILL)
        self.monitor.close_session(self.slot)
        self.monitor.remove_policy(self.policy_slot)
        self.drain()


class Fence:
    """An open monitor, and policies given as text."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.tier = monitor.tier

    @contextlib.contextmanager
    def session(
        self,
        policy: str | Policy,
        variables: Variables | None = None,
        *,
        split: bool | None = None,
        plan: str | None = None,
    ) -> Iterator[Session]:
        """A session under a policy: whole YAML, or only its rules if everything else is to be allowed.

        ``split``: in several automata, as large policies are. ``plan``: whole YAML, for the session to follow.
        """
        if isinstance(policy, str):
            text = policy if "policy:" in policy else f"policy: test\n{ALLOW_ALL}rules:\n{policy}"
            policy = load_text(text, "test.yaml")
        opened = Session(
            self.monitor,
            policy,
            variables or Variables.of(workspace="/nonexistent", home="/nonexistent", user="nobody"),
            split=split,
            plan=None if plan is None else load_plan(plan, "plan.yaml"),
        )
        try:
            yield opened
        finally:
            opened.close()

    def without(self, body: Body) -> Outcome:
        """One child that is not enrolled: the effect that a test has to see first."""
        with self.session("  []\n") as session:
            child = session.fork(body)
            session.begin(child)
            return session.finish(child)

    def run(self, policy: str, body: Body) -> Outcome:
        """One child in a session of its own."""
        with self.session(policy) as session:
            return session.run(body)


def attempt(function: Callable[[], object]) -> int:
    """The errno of what it raises, 0 if nothing."""
    try:
        function()
    except OSError as error:
        return error.errno or -1
    return 0


def in_child(function: Callable[[], object]) -> tuple[int, int]:
    """Does it in a child of the caller: (errno, signal that killed the child)."""
    pid = os.fork()
    if not pid:
        number = 255
        try:
            number = attempt(function)
        finally:
            os._exit(number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return (code, 0) if code >= 0 else (0, -code)


def blocked(tier: Tier) -> tuple[int, int]:
    """What `in_child` returns for a denied path operation."""
    return (errno.EPERM, 0) if tier is Tier.LSM else (0, signal.SIGKILL)


def object_path(decision: Decision) -> bytes:
    """The object of a path decision."""
    assert decision.operation < Operation.CONNECT
    assert isinstance(decision.object, bytes)
    return decision.object


def _act(body: Body, result: int) -> int:
    if not callable(body):
        os.dup2(result, 1)
        os.close(result)
        words = [os.fspath(w) for w in body]
        os.execv(words[0], words)
    report: tuple[str, Any]
    try:
        report = ("value", body())
    except OSError as error:
        report = ("errno", error.errno)
    except BaseException:  # noqa: BLE001  # told by the parent
        report = ("raised", traceback.format_exc())
    data = pickle.dumps(report)
    while data:
        data = data[os.write(result, data) :]
    return 0


def _result(child: Child) -> tuple[Any, int]:
    if child.is_program:
        return bytes(child.output), 0
    if not child.output:
        return None, 0
    kind, value = pickle.loads(bytes(child.output))
    assert kind != "raised", f"the fenced child raised:\n{value}"
    return (None, value) if kind == "errno" else (value, 0)
