# SPDX-License-Identifier: Apache-2.0
"""The verbs by which people answer what is held."""

from __future__ import annotations

import pwd
from typing import TYPE_CHECKING, Any

from agentmon.control.protocol import RefusedError
from agentmon.daemon.callers import Caller
from agentmon.daemon.requests import Approve, Deny
from agentmon.engine.holds import Approval
from agentmon.host import process
from agentmon.model.operations import Action

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon


class Held:
    """What is held, as whoever asks may see it. Nobody inside a session gets here (`callers`)."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def waiting(self, caller: Caller) -> list[dict[str, Any]]:
        """What waits for an answer, oldest first."""
        return [_told(approval) | self._under(approval) for approval in self._own(caller)]

    def approve(self, caller: Caller, request: Approve) -> dict[str, Any]:
        """Let it go on."""
        approval = self._find(caller, request.approval)
        scope = "session" if request.for_s else request.scope
        span = f" for {request.for_s:g} s" if request.for_s else " for the session" if scope == "session" else " once"
        how = f"approved by {user_name(caller.peer.uid)}{span}"
        self._daemon.holding.answer(approval, Action.ALLOW, scope, request.for_s, how)
        return {"approval": approval.id, "session": approval.session, "answer": "approved"}

    def deny(self, caller: Caller, request: Deny) -> dict[str, Any]:
        """Refuse it."""
        approval = self._find(caller, request.approval)
        how = f"denied by {user_name(caller.peer.uid)}" + (f": {request.reason}" if request.reason else "")
        self._daemon.holding.answer(approval, Action.DENY, "once", None, how)
        return {"approval": approval.id, "session": approval.session, "answer": "denied"}

    def _under(self, approval: Approval) -> dict[str, Any]:
        """The policy that it is held by, and for whom that speaks: `approve --always` edits it."""
        state = self._daemon.states.get(approval.session)
        if state is None:
            return {}
        return {"policy_file": state.file, "workspace": state.workspace, "home": state.home, "user": state.user}

    def _own(self, caller: Caller) -> list[Approval]:
        self._daemon.drain()
        engine = self._daemon.engine
        return [a for a in engine.holds.open if (s := engine.find(a.session)) is not None and caller.may_see(s)]

    def _find(self, caller: Caller, approval_id: str) -> Approval:
        for approval in self._own(caller):
            if approval.id == approval_id:
                return approval
        raise RefusedError(f"nothing waits under `{approval_id}` (any more); see `agentmon approvals`", "failed")


def _told(approval: Approval) -> dict[str, Any]:
    first = approval.waiters[0].process
    return {
        "id": approval.id, "session": approval.session, "pid": first.pid, "comm": approval.comm,
        "operation": approval.operation, "object": approval.object, "rule": approval.rule,
        "reason": approval.reason, "changed": approval.changed, "asked_ns": approval.asked_ns,
        "deadline_ns": approval.deadline_ns, "waiters": len(approval.waiters),
        "scope_help": f"{approval.operation} of {approval.object}, by whatever this session runs, until it ends",
        "command": process.command_line(first.pid), "parents": process.parents(first.pid),
    }  # fmt: skip


def user_name(uid: int) -> str:
    """As people know it, with its number."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
