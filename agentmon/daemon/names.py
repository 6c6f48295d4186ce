# SPDX-License-Identifier: Apache-2.0
"""Names of hosts for the daemon's sessions: their resolver, and the addresses that it puts in force."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

from agentmon.errors import KernelError
from agentmon.model.records import Record
from agentmon.policy.hosts import PolicyNames

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon
    from agentmon.model.tables import CompiledPolicy
    from agentmon.resolver.service import Service
    from agentmon.resolver.upstream import Server

#: How often addresses that have run out are removed from the kernel; they do not count meanwhile.
SWEEP_S: Final = 60.0
#: Addresses that one session may have in force: an eighth of what the kernel holds.
MAX_ADDRESSES: Final = 2048


class SessionNames:
    """The resolver, begun when the first session whose policy names hosts needs it."""

    def __init__(self, daemon: Daemon, servers: Callable[[], Sequence[Server]] | None = None) -> None:
        """``servers``: the name servers to ask; those of the host if None."""
        self._daemon = daemon
        self._servers = servers
        self._service: Service | None = None
        self._names: dict[str, PolicyNames] = {}
        #: Of each session's plan: the parts that name hosts, by their numbers.
        self._parts: dict[str, tuple[tuple[int, PolicyNames], ...]] = {}
        #: What each session was told, to put it in force again under another policy: name -> addresses, end.
        self._told: dict[str, dict[str, tuple[tuple[bytes, ...], float]]] = {}
        self._swept = time.monotonic()

    def open(self, session_id: str, policy: CompiledPolicy) -> None:
        """Resolve names for a session by a policy that is in force; again, when another one is.

        What it was told before is in force under this policy too, as far as that names it: call this before the session
        is put under it, with its generation in the session's state. Nothing to do where neither names any.
        Raises KernelError, with everything as it was, when no port is free, the kernel has no room, or this host's
        addresses cannot be known.
        """
        before = self._names.get(session_id)
        parts = policy.plan.parts if policy.plan is not None else ()
        if not policy.hosts and not any(part.hosts for part in parts) and before is None:
            return
        of_parts = self._parts.get(session_id, ())
        self._parts[session_id] = tuple((i, PolicyNames(part)) for i, part in enumerate(parts) if part.hosts)
        names = self._names[session_id] = PolicyNames(policy)
        try:
            told = self._told.setdefault(session_id, {})
            now = time.monotonic()
            for name, (addresses, ends) in told.items():
                if ends > now:
                    self._put(session_id, name, addresses, ends - now)
            if self._service is None:
                self._service = self._begin()
            port = self._service.open(session_id, names)
        except (KernelError, OSError) as error:
            if before is None:
                self.close(session_id)
            else:
                self._names[session_id], self._parts[session_id] = before, of_parts
            raise KernelError(f"the session's policy names hosts, but its resolver cannot start: {error}") from error
        self._daemon.monitor.serve_names(self._daemon.states[session_id].slot, port)

    def close(self, session_id: str) -> None:
        """The session ended."""
        self._told.pop(session_id, None)
        self._parts.pop(session_id, None)
        if self._names.pop(session_id, None) is not None and self._service is not None:
            self._service.close(session_id)

    def end(self) -> None:
        """The daemon ends: nothing answers any more."""
        for session_id in list(self._names):
            self.close(session_id)

    def sweep(self) -> None:
        """Forget what has run out, now and then."""
        now = time.monotonic()
        if not self._names or now - self._swept < SWEEP_S:
            return
        self._swept = now
        self._daemon.monitor.grants.sweep()
        for session_id, told in self._told.items():
            self._told[session_id] = {name: given for name, given in told.items() if given[1] > now}

    def counts(self) -> dict[str, int]:
        """How often each thing happened to a query, for `ps`."""
        return dict(self._service.counts) if self._service else {}

    def _begin(self) -> Service:
        # dnspython alone takes as long to import as all the rest of the daemon
        from agentmon.host.interfaces import Interfaces
        from agentmon.resolver.core import Resolver
        from agentmon.resolver.service import Service
        from agentmon.resolver.upstream import HostServers, Upstream

        resolver = Resolver(here=Interfaces().hold)
        return Service(resolver, Upstream(self._servers or HostServers()), self._grant, note=self._refused)

    async def _grant(self, session_id: str, name: str, addresses: tuple[bytes, ...], ttl_s: int) -> None:
        """Raises KernelError if it is not in force."""
        told = self._told[session_id]
        now = time.monotonic()
        mine = {address for given, ends in told.values() if ends > now for address in given}
        if len(mine.union(addresses)) > MAX_ADDRESSES:
            raise KernelError(f"a session may have {MAX_ADDRESSES} addresses at a time")
        self._put(session_id, name, addresses, ttl_s)
        told.pop(name, None)
        told[name] = addresses, now + ttl_s

    def _put(self, session_id: str, name: str, addresses: Collection[bytes], ttl_s: float) -> None:
        state = self._daemon.states[session_id]
        monitor = self._daemon.monitor
        found = [(state.generation, self._names[session_id].entries(name))]
        if parts := self._parts.get(session_id):
            generations = monitor.tables.part_generations(state.policy_slot)
            found += [(generations[number], names.entries(name)) for number, names in parts]
        # nothing names it: the default allows connecting anyway, or the plan does not
        found = [(generation, entries) for generation, entries in found if entries]
        grants = monitor.grants
        for generation, entries in found:
            try:
                grants.grant(state.serial, generation, addresses, entries, ttl_s)
            except KernelError:
                if not grants.sweep():
                    raise
                grants.grant(state.serial, generation, addresses, entries, ttl_s)
        if not found:
            return
        session = self._daemon.engine.find(session_id)
        if session is not None:
            session.name_addresses(name, addresses)

    def _refused(self, session_id: str, name: str, why: str) -> None:
        daemon = self._daemon
        session = daemon.engine.find(session_id)
        if session is None:
            return
        record = Record(
            time.time_ns(), "name", session_id, uid=session.uid, operation="refused", object=name,
            verdict="deny", reason=why,
        )  # fmt: skip
        session.count_blocked(record._replace(operation="name"))
        daemon.report(record)
