# SPDX-License-Identifier: Apache-2.0
"""Hot reload: a live session under another policy, by one store in the kernel (docs/design/0005-reload.md).

Whatever happens on the way, and wherever this process is killed, one of the two policies is in force, whole. The
session's file names both from before that store until nothing of the old one is left.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agentmon.control.protocol import Peer, RefusedError
from agentmon.daemon.enrolment import check_size
from agentmon.daemon.policies import Prepared, Source
from agentmon.daemon.requests import Reload
from agentmon.daemon.state import InForce, SessionState
from agentmon.engine import Session
from agentmon.errors import KernelError, PolicyError
from agentmon.model.records import GENERATION, Record
from agentmon.policy.changes import changes

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon

#: Comparing holds up the whole daemon: this much takes two seconds.
COMPARED_STATES = 100_000
#: Differences in an answer; more are only counted.
LISTED_CHANGES = 500
#: Of a digest, as much as people compare.
SHORT = 12


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What came of it. ``changed``: False if the policy in force is already this one."""

    old: InForce
    new: InForce
    changed: bool


def prepare(daemon: Daemon, peer: Peer, request: Reload, state: SessionState) -> Prepared:
    """The policy for this session. Raises `RefusedError` that says that nothing changed."""
    source = Source(request.policy.name, request.policy.text)
    try:
        check_size(peer, source)
        plan = Source(state.plan_file, state.plan_text) if state.plan_text else None  # it stays
        return daemon.book.prepare(source, workspace=state.workspace, home=state.home, user=state.user, plan=plan)
    except (PolicyError, RefusedError) as error:
        raise _refused(state, str(error)) from error


def dry_run(daemon: Daemon, state: SessionState, prepared: Prepared) -> dict[str, Any]:
    """What would change, as `policy diff` has it."""
    now = daemon.book.in_force(state.digest)
    answer: dict[str, Any] = {"policy": prepared.name, "changed": prepared.digest != state.digest}
    if now is None:
        return {**answer, "comparable": False, "complete": False, "changes": [], "more": 0}
    found, complete = changes(now.bound, prepared.bound, limit=COMPARED_STATES)
    more = max(0, len(found) - LISTED_CHANGES)
    return {**answer, "comparable": True, "complete": complete, "changes": found[:LISTED_CHANGES], "more": more}


def reload(daemon: Daemon, peer: Peer, request: Reload, session: Session, prepared: Prepared) -> Reloaded:
    """Swap. Raises `RefusedError`; then the policy in force is untouched."""
    state = daemon.states[session.id]
    old = state.in_force
    name, text, file = prepared.name, request.policy.text, request.policy.name
    if prepared.digest == old.digest:
        state.text, state.file = text, file
        daemon.directory.save(state)
        return Reloaded(old, state.in_force, False)
    try:
        slot, generation = daemon.book.acquire(daemon.monitor, prepared)
    except KernelError as error:
        raise _refused(state, f"{file}:1:1: {error}") from error
    new = InForce(name, slot, generation, prepared.digest, text, file, list(prepared.compiled.rules))
    _swap(daemon, session, state, prepared, new)
    # Every record of the old policy is in the ring once its last decision is over, and known once that is read.
    daemon.monitor.settle()
    daemon.report(_record(session, peer, old, new))
    daemon.drain()
    _forget(daemon, session, state, old)
    daemon.settle()
    return Reloaded(old, new, True)


def _swap(daemon: Daemon, session: Session, state: SessionState, prepared: Prepared, new: InForce) -> None:
    old = state.in_force
    try:
        view = replace(prepared.view, mark=f"{GENERATION}{new.generation}")
        daemon.engine.new_generation(state.slot, new.generation, view)
        state.put_under(new)
        state.before = old
        daemon.directory.save(state)
        daemon.names.open(session.id, prepared.compiled)
        daemon.monitor.change_policy(state.slot, new.policy_slot)
    except (KernelError, OSError) as error:
        state.put_under(old)
        state.before = None
        daemon.engine.new_generation(state.slot, old.generation, session.generations[old.generation])
        _forget(daemon, session, state, new)
        raise _refused(state, f"{new.file}:1:1: {error}") from error
    session.policy = new.policy


def _forget(daemon: Daemon, session: Session, state: SessionState, gone: InForce) -> None:
    """Nothing of one of the two policies is needed any more. Meanwhile the session may have ended."""
    daemon.engine.forget_generation(state.slot, gone.generation)
    daemon.monitor.grants.forget(state.serial, gone.generation)
    if daemon.states.get(session.id) is state:
        state.before = None
        with contextlib.suppress(OSError):  # what the file says stays true
            daemon.directory.save(state)
    with contextlib.suppress(KernelError):
        daemon.book.release(daemon.monitor, gone.policy_slot)


def _refused(state: SessionState, why: str) -> RefusedError:
    return RefusedError(f"{why}\nsession `{state.id}` stays under policy `{state.policy}`, as it was", "invalid")


def _record(session: Session, peer: Peer, old: InForce, new: InForce) -> Record:
    return Record(
        time.time_ns(), "session", session.id, peer.pid, uid=session.uid, operation="reloaded", object=new.file,
        detail=f"policy {old.policy} {old.digest[:SHORT]} (generation {old.generation}) → {new.policy}"
        f" {new.digest[:SHORT]} (generation {new.generation}), by uid {peer.uid}",
    )  # fmt: skip
