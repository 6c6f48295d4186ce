# SPDX-License-Identifier: Apache-2.0
"""Taking over the live sessions of a daemon that is gone: the kernel kept the fence, the files kept the names."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from agentmon.audit.read import latest
from agentmon.daemon.policies import Source
from agentmon.daemon.state import SessionState
from agentmon.engine import Progress, Questions, Session, View
from agentmon.errors import AgentmonError, KernelError, PolicyError
from agentmon.host.freeze import thaw
from agentmon.model.conditions import Risk
from agentmon.model.plans import MAX_STEPS
from agentmon.model.records import GENERATION, Record

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon


def adopt(daemon: Daemon) -> None:
    """Know again every session that the kernel still guards; clear away what is left of ended ones."""
    from agentmon.daemon.app import log

    states: dict[int, SessionState] = {}
    live = daemon.monitor.sessions()
    for state in daemon.directory.load():
        if isinstance(state, str):
            log(state)
            continue
        thaw(state.frozen)
        kernel = live.get(state.slot)
        if kernel is None or kernel[2] != state.serial:
            daemon.directory.remove(state.id)
            continue
        if state.before is not None and kernel[0] == state.before.policy_slot:
            # killed in a reload, before the kernel was told
            state.put_under(state.before)
        states[state.slot] = state
    census = daemon.monitor.census()
    inhabited = {s.session for s in census.processes.values()} | census.newborn if census else live.keys()
    for slot, (policy_slot, _flags, serial) in live.items():
        found = states.get(slot)
        if found is None and slot not in inhabited:
            daemon.monitor.close_session(slot)
            continue
        if found is None:
            # Guarded, but its name is lost: the fence stays.
            found = SessionState(
                daemon.new_session_id(), slot, serial, "unknown", policy_slot, 0, "", "", "", "/", "/", "?", 0, "?",
                time.time_ns(),
            )  # fmt: skip
            log(f"slot {slot} guards processes of a session that has no file; it is now `{found.id}`")
        _take(daemon, found)
    _remember(daemon)
    daemon.holding.adopt()  # first: what is asked in the ring is new, has another id, and is frozen by us
    # what waits in the ring is of these sessions, of those too that ended meanwhile; then those are closed
    daemon.drain()
    for state in daemon.states.values():
        if state.before is not None:
            daemon.engine.forget_generation(state.slot, state.before.generation)
            state.before = None
            daemon.directory.save(state)
    used = {state.policy_slot for state in daemon.states.values()}
    for policy_slot in daemon.monitor.tables.slots().keys() - used:
        daemon.monitor.remove_policy(policy_slot)
    if daemon.engine.sessions:
        log(f"took over {len(daemon.engine.sessions)} live session(s)")


def _remember(daemon: Daemon) -> None:
    """What agents were refused and what they asked, for they may ask again."""
    daemon.questions = Questions(q for q in daemon.directory.load_questions() if q.session in daemon.states)
    records: list[Record] = []
    with contextlib.suppress(AgentmonError):  # a log that was moved aside is told of elsewhere
        records = latest(daemon.audit.path, daemon.states)
        for record in records:
            session = daemon.engine.find(record.session)
            if session is not None and record.blocked and (told := _as_told(record)) is not None:
                session.recall(told)
    for state in daemon.states.values():
        if state.profile:
            _watch(daemon, state, records)


def _as_told(record: Record) -> Record | None:
    """What was blocked, as the session had it then; None: not told, or by another record (a denied approval)."""
    if record.kind == "decision" and "quiet" not in record.flags:
        return record
    if record.kind == "name":
        return record._replace(operation="name")
    if record.kind == "step":
        return record._replace(reason=record.detail)
    return None


def _watch(daemon: Daemon, state: SessionState, records: list[Record]) -> None:
    """Go on watching: the level is as it was, and how far it is comes from the end of the log."""
    session = daemon.engine.find(state.id)
    assert session is not None
    try:
        baseline = daemon.baselines.load(state.profile)
    except AgentmonError as error:
        daemon.unwatched[state.id] = str(error)
        daemon.report(
            Record(
                time.time_ns(), "session", state.id, uid=state.uid, operation="unwatched", object=state.profile,
                detail=f"the risk stays {session.risk}", reason=str(error),
            )
        )  # fmt: skip
        return
    level = Risk[session.risk.upper()]
    # what the operator set is not what was found
    found = level if session.risk != session.floor else Risk.NORMAL
    own = [record for record in records if record.session == state.id and record.time_ns >= state.started_ns]
    daemon.risks.watch(session, baseline, state.home, before=own, level=found)


def _take(daemon: Daemon, state: SessionState) -> None:
    from agentmon.daemon.app import log

    view = View(state.rules, None)
    prepared = None
    if state.file:
        try:
            found = daemon.book.prepare(
                Source(state.file, state.text),
                workspace=state.workspace,
                home=state.home,
                user=state.user,
                plan=Source(state.plan_file, state.plan_text) if state.plan_text else None,
            )
            if found.digest == state.digest:
                # else the packs changed since: names of rules from the file, no cross-check, and no names of hosts
                view, prepared = found.view, found
        except PolicyError:
            pass
    session = Session(
        state.id, state.slot, state.policy, state.uid, state.started_ns, view,
        workspace=state.workspace, command=state.command,
    )  # fmt: skip
    if state.plan_text:
        session.progress = Progress.of(daemon.monitor.steps(state.slot, MAX_STEPS))
        session.paused = state.paused
    daemon.states[state.id] = state
    daemon.book.adopt(state.digest, state.policy_slot, state.generation, prepared)
    session.risk = daemon.monitor.risk(state.slot).word
    session.floor = state.floor if state.profile else session.risk
    daemon.engine.open(session)
    if state.before is not None:
        # decisions from before the reload may wait in the ring
        daemon.engine.new_generation(state.slot, state.before.generation, View(state.before.rules, None))
    if state.first_generation not in (0, state.generation):
        view = replace(view, mark=f"{GENERATION}{state.generation}")
    daemon.engine.new_generation(state.slot, state.generation, view)
    daemon.directory.save(state)
    if prepared is not None:
        daemon.book.clocks.start(daemon.monitor, state.policy_slot, prepared.compiled.conditions)
        try:
            daemon.names.open(state.id, prepared.compiled)
        except KernelError as error:
            log(f"{state.id}: {error}; what it asks for is not answered")


__all__ = ["KernelError", "adopt"]
