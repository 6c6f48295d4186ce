# SPDX-License-Identifier: Apache-2.0
"""Taking over the live sessions of a daemon that is gone: the kernel kept the fence, the files kept the names."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agentmon.daemon.policies import Source
from agentmon.daemon.state import SessionState
from agentmon.engine import Session, View
from agentmon.errors import KernelError, PolicyError
from agentmon.host.freeze import thaw

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
    for policy_slot in _unused(daemon, {policy for policy, _, _ in live.values()}):
        daemon.monitor.remove_policy(policy_slot)
    # what waits in the ring is of these sessions, of those too that ended meanwhile; then those are closed
    daemon.drain()
    if daemon.engine.sessions:
        log(f"took over {len(daemon.engine.sessions)} live session(s)")


def _take(daemon: Daemon, state: SessionState) -> None:
    view = View(state.rules, None)
    if state.file:
        try:
            prepared = daemon.book.prepare(
                Source(state.file, state.text), workspace=state.workspace, home=state.home, user=state.user
            )
            if prepared.digest == state.digest:
                view = prepared.view  # else the packs changed since: names from the file, no cross-check
        except PolicyError:
            pass
    session = Session(
        state.id, state.slot, state.policy, state.uid, state.started_ns, view,
        workspace=state.workspace, command=state.command,
    )  # fmt: skip
    daemon.states[state.id] = state
    daemon.book.adopt(state.digest, state.policy_slot, state.generation)
    daemon.engine.open(session)
    daemon.engine.new_generation(state.slot, state.generation, view)
    daemon.directory.save(state)


def _unused(daemon: Daemon, slots: set[int]) -> set[int]:
    return slots - {state.policy_slot for state in daemon.states.values()}


__all__ = ["KernelError", "adopt"]
