# SPDX-License-Identifier: Apache-2.0
"""The verbs by which people answer what is held."""

from __future__ import annotations

import os
import pwd
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentmon.control.protocol import RefusedError
from agentmon.daemon.callers import Caller
from agentmon.daemon.requests import Approve, Deny
from agentmon.engine.holds import Approval, Outcome, Waiter
from agentmon.host import process
from agentmon.host.calls import starts_with
from agentmon.model.events import ProcessKey
from agentmon.model.operations import Action
from agentmon.model.text import cut, cut_words

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon


#: Processes beside the first that are told of, of those that wait for the same.
OTHERS = 8
#: How long reading what a process is about to do may take; and how many are given up before nobody is tried any more.
READ_S = 0.2
UNREADABLE = 64
#: Characters of a command, and of what matters less: an agent with long ones could make the list too long to be sent.
COMMAND, LESS = 2000, 300


class Held:
    """What is held, as whoever asks may see it. Nobody inside a session gets here (`callers`)."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._unreadable: set[ProcessKey] = set()

    def waiting(self, caller: Caller) -> list[dict[str, Any]]:
        """What waits for an answer, oldest first."""
        return [_told(approval, self._arguments) | self._under(approval) for approval in self._own(caller)]

    def approve(self, caller: Caller, request: Approve) -> dict[str, Any]:
        """Let it go on."""
        approval = self._find(caller, request.approval)
        scope = "session" if request.for_s else request.scope
        span = f" for {request.for_s:g} s" if request.for_s else " for the session" if scope == "session" else " once"
        how = f"approved by {user_name(caller.peer.uid)}{span}"
        if new := self._daemon.holding.changed(approval):
            message = f"`{approval.object}` was changed while it was held: look at it again; it is asked as `{new.id}`"
            raise RefusedError(message, "failed")
        self._daemon.holding.answer(approval, Action.ALLOW, scope, request.for_s, how)
        return _answered(approval, "approved") | {"scope": scope, "for_s": request.for_s}

    def deny(self, caller: Caller, request: Deny) -> dict[str, Any]:
        """Refuse it."""
        approval = self._find(caller, request.approval)
        how = f"denied by {user_name(caller.peer.uid)}" + (f": {request.reason}" if request.reason else "")
        self._daemon.holding.answer(approval, Action.DENY, "once", None, how)
        return _answered(approval, "denied")

    def _under(self, approval: Approval) -> dict[str, Any]:
        """The policy that it is held by, and for whom that speaks: `approve --always` edits it."""
        state = self._daemon.states.get(approval.session)
        if state is None:
            return {}
        return {"policy_file": state.file, "workspace": state.workspace, "home": state.home, "user": state.user}

    def _arguments(self, waiter: Waiter, most: int) -> list[str] | None:
        """Those that a program is to be started with, as of now; None: it was started, and they are its command line.

        In a thread of its own: memory that is a file's may take its owner's time to be read.
        """
        if waiter.halted or waiter.process in self._unreadable or len(self._unreadable) > UNREADABLE:
            return None
        found: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        threading.Thread(target=lambda: found.put(starts_with(waiter.tid)), daemon=True).start()
        try:
            words = found.get(timeout=READ_S)
        except queue.Empty:
            self._unreadable.add(waiter.process)
            return None
        return cut_words(words[1:], most) if words is not None else None

    def _own(self, caller: Caller) -> list[Approval]:
        self._daemon.drain()
        engine = self._daemon.engine
        return [a for a in engine.holds.open if (s := engine.find(a.session)) is not None and caller.may_see(s)]

    def _find(self, caller: Caller, approval_id: str) -> Approval:
        for approval in self._own(caller):
            if approval.id == approval_id:
                return approval
        outcome = self._daemon.engine.holds.outcome(approval_id)
        if outcome is not None and self._may_know(caller, outcome.approval.session):
            raise RefusedError(self._too_late(outcome), "failed", {"approval": approval_id, "state": outcome.how})
        if self._daemon.questions.find(approval_id) is not None:
            raise RefusedError(f"`{approval_id}` is a question: use `agentmon answer {approval_id} TEXT`", "failed")
        raise RefusedError(
            f"there is no approval `{approval_id}`; `agentmon approvals` lists what waits,"
            " and `agentmon audit log` has what was", "failed", {"approval": approval_id, "state": "unknown"},
        )  # fmt: skip

    def _may_know(self, caller: Caller, session_id: str) -> bool:
        session = self._daemon.engine.find(session_id) or self._daemon.ended.get(session_id)
        return caller.privileged if session is None else caller.may_see(session)

    def _too_late(self, outcome: Outcome) -> str:
        """Why it cannot be answered any more, and what to do."""
        id_, again = outcome.approval.id, "if the agent tries again, it is asked under another id"
        match outcome.how:
            case "answered":
                seconds = max(0.0, (time.time_ns() - outcome.at_ns) / 1e9)
                return f"`{id_}` is answered already: {outcome.why}, {seconds:.0f} s ago; see `agentmon approvals`"
            case "expired":
                return f"`{id_}` was denied: {outcome.why}; {again}: see `agentmon approvals`"
            case "changed":
                return f"`{id_}` changed while it was held, and is asked again; look at it in `agentmon approvals`"
            case "missed":
                limit = f"{self._daemon.config.hold.park_ms} ms (`park_ms`)"
                return f"`{id_}` was denied by the kernel: it was not frozen within {limit}; {again}"
        return f"nothing waits under `{id_}` any more: who asked has ended, or gave up; see `agentmon approvals`"


def _answered(approval: Approval, answer: str) -> dict[str, Any]:
    return {
        "approval": approval.id, "session": approval.session, "answer": answer, "operation": approval.operation,
        "does": approval.does, "object": approval.object,
    }  # fmt: skip


def _told(approval: Approval, arguments: Callable[[Waiter, int], list[str] | None]) -> dict[str, Any]:
    first, *others = dict.fromkeys(waiter.process for waiter in approval.waiters)
    program = process.executable(first.pid)
    return {
        "id": approval.id, "session": approval.session, "pid": first.pid, "comm": approval.comm,
        "operation": approval.operation, "also_read": approval.also_read, "does": approval.does,
        "object": approval.object, "file": approval.file, "rule": approval.rule,
        "reason": approval.reason, "changed": approval.changed, "asked_ns": approval.asked_ns,
        "deadline_ns": approval.deadline_ns, "waiters": len(approval.waiters),
        "scope_help": _scope(approval), "arguments": arguments(approval.waiters[0], COMMAND),
        "command": cut_words(process.command_line(first.pid), COMMAND), "program": os.fsdecode(program or b""),
        "directory": process.directory(first.pid), "parents": process.parents(first.pid),
        "others": [
            {
                "pid": waiter.process.pid, "command": cut_words(process.command_line(waiter.process.pid), LESS),
                "arguments": arguments(waiter, LESS),
            }
            for waiter in approval.waiters if waiter.process in others[:OTHERS]
        ],
        "processes": 1 + len(others),
        "recent": [deed | {"object": cut(str(deed["object"]), LESS)} for deed in approval.recent],
    }  # fmt: skip


def _scope(approval: Approval) -> str:
    told = ", with any arguments" if approval.operation == "exec" else ""
    return f"{approval.does} of {approval.object}{told}, by whatever this session runs, until it ends"


def user_name(uid: int) -> str:
    """As people know it, with its number."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
