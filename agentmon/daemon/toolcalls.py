# SPDX-License-Identifier: Apache-2.0
"""Steps that an agent program's tool calls begin and end: its hooks say so, and it is the agent program that is marked.

A hook is run by a shell that the agent program starts, and is gone before the call is made. Whom it marks opens nothing
to anybody: it is a process of the hook's own session, outside of all steps, that could begin the same step by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Protocol

from agentmon.control.protocol import RefusedError
from agentmon.daemon.callers import Caller
from agentmon.daemon.requests import ToolStep
from agentmon.engine import Session
from agentmon.engine.plans import PlanView
from agentmon.host import process
from agentmon.model.events import ProcessKey

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon

#: Programs that a hook is run by: with `-c`, they are there for that alone.
SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "busybox", "zsh", "ksh", "mksh", "yash", "fish", "tcsh", "csh"})
#: Between a hook and its agent program there are a shell or two.
MOST_ANCESTORS: Final = 32
#: Calls under way at once in one step.
MOST_CALLS: Final = 256
#: Of a call that never said how it ended.
UNKNOWN_STATUS: Final = 1


class Mark(Protocol):
    """Has the kernel begin a step of a process, or end it. Raises `RefusedError`."""

    def __call__(self, session: Session, key: ProcessKey, number: int, *, ends: bool, status: int = 0) -> None: ...


@dataclass(slots=True)
class _Under:
    """A step that an agent program is in by its tool calls. ``status``: the first that does not say 0."""

    serial: int  # of the session
    step: int
    calls: set[str] = field(default_factory=set)
    status: int = 0


class ToolCalls:
    """The answers. One object a daemon; what it knows is lost with it, see `_end`."""

    def __init__(self, daemon: Daemon, mark: Mark) -> None:
        self._daemon = daemon
        self._mark = mark
        self._under: dict[ProcessKey, _Under] = {}

    def step(self, caller: Caller, request: ToolStep) -> dict[str, Any]:
        """Begin, or end. Raises `RefusedError`: it may not begin, and why."""
        session = caller.own
        if session is None:
            raise RefusedError("only a process inside a session marks a step of its plan", "forbidden")
        plan = session.view.plan
        if plan is None:
            raise RefusedError(f"session `{session.id}` has no plan", "usage")
        names = [step.id for step in plan.compiled.steps]
        for name in request.steps:
            if name not in names and not request.ends:
                raise RefusedError(f"the plan has no step `{name}`; it has {', '.join(names)}", "denied")
        numbers = [names.index(name) for name in request.steps if name in names]
        key = self._agent(session, caller.peer.pid, request.program)
        self._forget()
        if request.ends:
            ended = self._end(session, key, numbers, request)
            return {"session": session.id, "step": plan.name(ended), "ends": True}
        self._begin(session, plan, key, numbers[0], request.call or "")
        return {"session": session.id, "step": request.steps[0], "ends": False}

    def _begin(self, session: Session, plan: PlanView, key: ProcessKey, number: int, call: str) -> None:
        """Calls of one step may be under way at once; that of another ends it: one process is in one step."""
        state = self._daemon.monitor.process(key)
        if state is None:
            raise RefusedError("the agent program has ended", "failed")
        under = self._under.get(key)
        if under and under.step == state.step == number:
            if len(under.calls) >= MOST_CALLS:
                raise RefusedError(f"step {plan.name(number)} has {MOST_CALLS} tool calls under way already", "denied")
            under.calls.add(call)
            return
        if under:
            del self._under[key]
            if under.step == state.step:
                self._mark(session, key, under.step, ends=True, status=under.status or UNKNOWN_STATUS)
        if under or state.step != number:  # else it is in it from before a restart of ours
            self._mark(session, key, number, ends=False)
        self._under[key] = _Under(state.serial, number, {call})

    def _end(self, session: Session, key: ProcessKey, numbers: list[int], request: ToolStep) -> int:
        """The step that has ended, or -1. After a restart of the daemon nobody knows of calls: what is named ends."""
        state = self._daemon.monitor.process(key)
        under = self._under.get(key)
        step, status = state.step if state else -1, request.status
        if under and under.step == step:
            if request.call is None:
                status = under.status or UNKNOWN_STATUS
            elif request.call not in under.calls:
                return -1
            else:
                under.calls.remove(request.call)
                under.status = status = under.status or request.status
                if under.calls:
                    return -1
        elif step not in numbers:
            return -1
        elif request.call is None:
            status = UNKNOWN_STATUS
        self._under.pop(key, None)
        self._mark(session, key, step, ends=True, status=status)
        return step

    def _agent(self, session: Session, pid: int, program: str | None) -> ProcessKey:
        """The agent program: of the ancestors in the session, the first of that name; without one, the first that is no
        shell with `-c`.
        """
        monitor = self._daemon.monitor
        listed = {key.pid: key for key in monitor.listed()}
        for ancestor in islice(_ancestors(pid), MOST_ANCESTORS):
            key = listed.get(ancestor.pid)
            if key is None or not process.is_this(key, ancestor.pid, ancestor.start_ticks):
                break
            state = monitor.process(key)
            if state is None or state.session != session.slot:
                break
            if program in _names(ancestor) if program else not _runs_text(ancestor.pid):
                return key
        who = f"no process called `{program}`" if program else "nothing but shells"
        raise RefusedError(
            f"{who} has run this hook inside of the session; name the agent program by --agent", "failed"
        )

    def _forget(self) -> None:
        """Those that have ended."""
        for key, under in list(self._under.items()):
            state = self._daemon.monitor.process(key)
            if state is None or state.serial != under.serial:
                del self._under[key]


def _ancestors(pid: int) -> Iterator[process.Stat]:
    """Nearest first; none is looked at once one of them is gone."""
    try:
        found = process.stat(pid)
        while found.ppid > 1:
            found = process.stat(found.ppid)
            yield found
    except ProcessLookupError:
        return


def _names(found: process.Stat) -> set[str]:
    """What a program is called: by the kernel, by its file, by its first argument."""
    words = process.command_line(found.pid)
    exe = (process.executable(found.pid) or b"").decode("utf-8", "surrogateescape")
    return {found.comm, PurePath(exe).name, *(PurePath(word).name for word in words[:1])}


def _runs_text(pid: int) -> bool:
    """Whether it is a shell that runs a command line: `sh -c TEXT`."""
    exe = (process.executable(pid) or b"").decode("utf-8", "surrogateescape")
    if PurePath(exe).name not in SHELLS:
        return False
    for word in process.command_line(pid)[1:]:
        if not word.startswith(("-", "+")):
            break
        if not word.startswith("--") and "c" in word:
            return True
    return False
