# SPDX-License-Identifier: Apache-2.0
"""Who asks: rights are those of the sender of this very message, as it is now."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentmon.control.protocol import Peer, RefusedError
from agentmon.control.server import Connection
from agentmon.daemon.requests import VERBS
from agentmon.engine import Session
from agentmon.host import peers, process

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a message.

    ``inside``: a session that it is, or may be, in; "" if it surely is in none. ``own``: the session that it is in,
    beyond doubt. ``privileged``: it may see and do everything.
    """

    peer: Peer
    inside: str
    own: Session | None
    privileged: bool

    def may_see(self, session: Session) -> bool:
        """Who is fenced sees its own session only, whatever its user."""
        if self.inside:
            return session is self.own
        return self.privileged or session.uid == self.peer.uid


class Callers:
    """Tells who sent a message. One object a daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @staticmethod
    def opened(connection: Connection, sock: socket.socket) -> None:
        """Remember which process this is, not only its PID."""
        connection.start_ticks = peers.start_ticks(sock, connection.pid)

    def check(self, connection: Connection, peer: Peer, verb: str) -> Caller:
        """Raises `RefusedError`: the sender may not ask for this."""
        from agentmon.daemon.app import is_group_member

        _, harmless, operators_only = VERBS[verb]
        inside = self._session_of(peer.pid)
        if inside is None and connection.pid != peer.pid:
            # root may claim any PID as a message's sender (unix(7)), but not as who connected
            inside = self._session_of(connection.pid)
        if inside is not None:
            if not harmless:
                raise RefusedError(
                    f"a process inside session `{inside}` may not ask for `{verb}`; do it from outside", "forbidden"
                )
            return Caller(peer, inside, self._own(connection, peer), False)
        if not _still_there(connection):
            # a child that it left in a session could speak for it
            raise RefusedError("the process that opened this connection has ended; connect again", "forbidden")
        group = self._daemon.config.daemon.group
        privileged = peer.uid == 0 or is_group_member(peer.uid, group)
        if operators_only and not privileged:
            raise RefusedError(f"only root and members of the group `{group}` may `{verb}`; use sudo", "forbidden")
        return Caller(peer, "", None, privileged)

    def _session_of(self, pid: int) -> str | None:
        """The session of a sender: by the kernel's own table, and for one that ended since, by what we remember."""
        # First what costs little: a session that asks without end must not keep the daemon busy.
        if known := self._daemon.engine.was_enrolled(pid, time.time_ns()):
            return known
        for key, state in self._daemon.monitor.processes().items():
            if key.pid == pid:
                session = self._daemon.engine.session(state.session)
                return session.id if session else f"slot-{state.session}"
        # It may have sent this and ended at once; its end is in the ring by now.
        self._daemon.drain()
        return self._daemon.engine.was_enrolled(pid, time.time_ns())

    def _own(self, connection: Connection, peer: Peer) -> Session | None:
        """Only of who connected itself, is alive, and is enrolled as this very process: a PID alone proves nothing."""
        ticks = connection.start_ticks
        if peer.pid != connection.pid or ticks is None or not _still_there(connection):
            return None
        for session in self._daemon.engine.sessions:
            if any(process.is_this(key, peer.pid, ticks) for key in session.processes):
                return session
        for key, state in self._daemon.monitor.processes().items():
            if process.is_this(key, peer.pid, ticks):
                return self._daemon.engine.session(state.session)
        return None


def _still_there(connection: Connection) -> bool:
    try:
        found = process.stat(connection.pid)
    except ProcessLookupError:
        return False
    return found.state not in "ZX" and found.start_ticks == connection.start_ticks
