# SPDX-License-Identifier: Apache-2.0
"""What is held: freezing it, telling the kernel the answer, and taking over what an earlier daemon held."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from agentmon.daemon import warden
from agentmon.engine.holds import Approval, Waiter
from agentmon.errors import KernelError
from agentmon.host.parking import Parking, ParkingError, empty
from agentmon.kernel.host import cgroup2_root
from agentmon.model.events import ProcessKey
from agentmon.model.operations import Action

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon

SCOPES = ("once", "session")


class Holding:
    """The side of `engine.holds` that touches the kernel."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._lot = warden.lot_name(daemon.config.daemon.pins)
        self._parking = Parking(cgroup2_root(), self._lot)
        self._file = daemon.config.daemon.state / "held.json"
        self._warden: subprocess.Popen[bytes] | None = None

    def park(self, waiter: Waiter) -> None:
        """Freeze its process; what cannot be frozen is denied."""
        try:
            if waiter.process not in self._parking:
                self._parking.park(waiter.process)
            self._daemon.monitor.answers.put(waiter.process, waiter.tid, waiter.held, Action.HOLD)
            if self._warden is None:  # after it, which has to be quick
                self._warden = warden.start(
                    self._daemon.monitor.pin_directory, self._daemon.config.daemon.state, self._lot
                )
        except (ParkingError, KernelError, OSError) as error:
            self._daemon.engine.holds.ended(waiter.process)
            self._daemon.engine.holds.why[waiter.held] = f"it cannot be held: {error}"
            self.settle((waiter,), Action.DENY)
        self._save()

    def settle(self, waiters: tuple[Waiter, ...], action: Action) -> None:
        """Tell the kernel, then let go on who waits for nothing else."""
        for waiter in waiters:
            self._daemon.monitor.answers.put(waiter.process, waiter.tid, waiter.held, action)
        for process in {waiter.process for waiter in waiters}:
            if not self._daemon.engine.holds.of(process):
                self._parking.unpark(process)
        self._save()

    def answer(self, approval: Approval, action: Action, scope: str, for_s: float | None, how: str) -> None:
        """Decide a approval, and with it all that ask the same."""
        daemon = self._daemon
        session = daemon.engine.session(approval.slot)
        if action is Action.ALLOW and scope != "once" and session is not None:
            daemon.monitor.answers.approve(daemon.states[session.id].serial, approval.same, for_s)
        same = [approval]
        if scope != "once":
            same += [
                q
                for q in daemon.engine.holds.open
                if q is not approval and (q.slot, q.same) == (approval.slot, approval.same)
            ]
        for one in same:
            daemon.execute_all(daemon.engine.decide(one, action, how, time.time_ns()))
        daemon.settle()

    def tick(self) -> None:
        """Deny what nobody answered; let go on who was frozen by the way."""
        daemon = self._daemon
        daemon.execute_all(daemon.engine.expire(time.time_ns()))
        self._parking.sweep()

    def ended(self, process: ProcessKey) -> None:
        """It is gone."""
        self._parking.unpark(process)
        self._daemon.monitor.answers.forget_process(process)

    def end(self, why: str) -> None:
        """Nobody will answer any more: deny all."""
        for approval in self._daemon.engine.holds.open:
            self._daemon.execute_all(self._daemon.engine.decide(approval, Action.DENY, why, time.time_ns()))
        if self._warden is not None:
            self._warden.terminate()
            self._warden.wait()

    def adopt(self) -> None:
        """Know again what an earlier daemon held; what it cannot have asked about is denied."""
        daemon = self._daemon
        lots = self._parking.adopt()
        waiting = set(daemon.monitor.answers.waiting())
        for data in self._load():
            approval = Approval(**{**data, "waiters": [Waiter(ProcessKey(*p), t, h) for p, t, h in data["waiters"]]})
            approval.waiters = [w for w in approval.waiters if (w.process, w.tid, w.held) in waiting]
            session = daemon.engine.session(approval.slot)
            if approval.waiters and session is not None and session.id == approval.session:
                daemon.engine.holds.resume(approval)
                for waiter in approval.waiters:
                    waiting.discard((waiter.process, waiter.tid, waiter.held))
                    if waiter.process.pid in lots:
                        self._parking.know(waiter.process, lots[waiter.process.pid])
        for process, tid, held in waiting:
            daemon.monitor.answers.put(process, tid, held, Action.DENY)
        known = {key.pid for approval in daemon.engine.holds.open for key in (w.process for w in approval.waiters)}
        for lot in set(lots.values()):
            if not any(pid in known for pid, where in lots.items() if where == lot):
                empty(lot)
        self._parking.sweep()

    def _save(self) -> None:
        rows = []
        for approval in self._daemon.engine.holds.open:
            row = asdict(approval)
            row["waiters"] = [((w.process.pid, w.process.start_ns), w.tid, w.held) for w in approval.waiters]
            rows.append(row)
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(rows), encoding="utf-8")
        os.replace(new, self._file)

    def _load(self) -> list[dict[str, Any]]:
        try:
            rows = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return rows if isinstance(rows, list) else []
