# SPDX-License-Identifier: Apache-2.0
"""Programs that are held: whether somebody opened one for writing since people may look at it.

Whoever does is let go on at once, but it is known: what was shown is asked for again. Once it was approved, who wants
to write it waits until it has been started, and is refused by the kernel then (`ETXTBSY`), or is too late.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Collection

from agentmon.host.shown import Lease, lease_at

#: How long who was approved may take to start.
STARTS_S = 1.0


class Untouched:
    """The leases of what waits, by the ids of approvals."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease | None] = {}
        self._let: list[Lease] = []

    def keep(self, approval: str, lease: Lease | None) -> None:
        """From now on. None: nobody can tell."""
        self._release(self._leases.get(approval))
        self._leases[approval] = lease

    def keep_soon(self, approval: str, path: bytes) -> None:
        """The same, by a thread of its own: a file system may be the agent's, and may never answer."""
        if approval in self._leases:
            return
        self._leases[approval] = None
        loop = asyncio.get_running_loop()

        def take() -> None:
            lease = lease_at(path)
            try:
                loop.call_soon_threadsafe(self._kept, approval, lease)
            except RuntimeError:  # the daemon has ended
                self._release(lease)

        threading.Thread(target=take, name="lease", daemon=True).start()

    def _kept(self, approval: str, lease: Lease | None) -> None:
        if approval in self._leases:
            self._leases[approval] = lease
        else:
            self._release(lease)

    def knows(self, approval: str) -> bool:
        """Whether it is looked after."""
        return approval in self._leases

    def was_opened(self, approval: str) -> bool:
        """Whether somebody had it open for writing, then or since."""
        lease = self._leases.get(approval)
        return lease is not None and lease.look()

    def is_open(self, approval: str) -> bool:
        """Whether somebody has it open for writing right now."""
        lease = self._leases.get(approval)
        return lease is not None and lease.is_open()

    def let(self, approval: str) -> None:
        """It was approved, and starts now."""
        lease = self._leases.pop(approval, None)
        if lease is not None:
            self._let.append(lease)
            asyncio.get_running_loop().call_later(STARTS_S, self._started)

    def _started(self) -> None:
        if self._let:
            self._release(self._let.pop(0))

    def end(self) -> None:
        """Of all. `SIGIO` that nobody handles would end the daemon."""
        self.forget_others(())
        while self._let:
            self._started()

    def heard(self) -> None:
        """`SIGIO`: somebody wants to write to one of them."""
        for lease in self._leases.values():
            if lease is not None:
                lease.look()

    def forget_others(self, open_: Collection[str]) -> None:
        """Only these wait yet."""
        for approval in self._leases.keys() - open_:
            self._release(self._leases.pop(approval))

    @staticmethod
    def _release(lease: Lease | None) -> None:
        if lease is not None:
            lease.close()


def root_path(pid: int, path: str) -> bytes:
    """Of a path as a process sees it."""
    return b"/proc/%d/root%s" % (pid, os.fsencode(path))
