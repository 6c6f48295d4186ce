# SPDX-License-Identifier: Apache-2.0
"""Sessions to learn from, one after the other, each in a process of its own.

What is left when the daemon ends, the next one does.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmon.daemon.state import SessionState
from agentmon.fingerprint.learning import Outcome, left, words
from agentmon.model.records import Record

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon

#: What one session may take.
LIMIT_S = 1800.0
#: Sessions that may wait; what comes then is not learnt from, and said.
WAITING = 256


class Learning:
    """One object a daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._folder = daemon.config.daemon.state / "learn"
        self._waiting: deque[dict[str, Any]] = deque()
        self._child: subprocess.Popen[str] | None = None
        self._order: dict[str, Any] = {}
        self._since_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether something is to be learnt."""
        return self._child is not None or bool(self._waiting)

    def to_go(self, name: str) -> tuple[int, int]:
        """(sessions, windows) until there is a first baseline."""
        return left(self._daemon.baselines.store, name, self._daemon.config.fingerprint.learn_sessions)

    def note(self, name: str) -> str:
        """What to say of it to who enrols a session."""
        return f"there is no baseline `{name}` yet: it is learnt, with {words(*self.to_go(name))} to go"

    def add(self, state: SessionState) -> None:
        """A session has ended that is to be learnt from."""
        order = {
            "session": state.id, "name": state.learn, "uid": state.uid, "command": state.command,
            "workspace": state.workspace, "home": state.home, "started_ns": state.started_ns, "agent": state.agent,
        }  # fmt: skip
        if len(self._waiting) >= WAITING:
            self._tell(order, Outcome("not-learnt", f"{WAITING} sessions wait to be learnt from already"))
            return
        with contextlib.suppress(OSError):  # without room, the next daemon does not know of it
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._file(order).write_text(json.dumps(order), encoding="utf-8")
        self._waiting.append(order)

    def resume(self) -> None:
        """What an earlier daemon left."""
        for path in sorted(self._folder.glob("s-*.json")):
            try:
                order = json.loads(path.read_text(encoding="utf-8"))
                if self._file(order) == path:
                    self._waiting.append(order)
            except (OSError, ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)

    def tick(self) -> None:
        """Look how far it is, and begin the next."""
        child = self._child
        if child is not None:
            late = time.monotonic() - self._since_s > LIMIT_S
            if child.poll() is None and not late:
                return
            if late:
                child.kill()
            out, errors = child.communicate()
            self._child = None
            self._file(self._order).unlink(missing_ok=True)
            self._tell(self._order, _outcome(child.returncode, out, errors))
        if self._waiting:
            self._begin(self._waiting.popleft())

    def end(self) -> None:
        """The daemon ends: the next one begins this anew."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()

    def _file(self, order: dict[str, Any]) -> Path:
        return self._folder / f"{order['session']}.json"

    def _begin(self, order: dict[str, Any]) -> None:
        config = self._daemon.config
        more = {
            "directory": str(config.fingerprint.directory), "audit": str(self._daemon.audit.path),
            "enough": config.fingerprint.learn_sessions, "tier": self._daemon.tier_word,
        }  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if k not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
        self._order, self._since_s = order, time.monotonic()
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "agentmon.daemon.learner"], text=True, cwd="/", env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._file(order).unlink(missing_ok=True)
            self._tell(order, Outcome("not-learnt", f"cannot start a process: {error}"))
            return
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.stdin:
            child.stdin.write(json.dumps(order | more))  # less than a pipe holds
        child.stdin = None
        self._child = child

    def _tell(self, order: dict[str, Any], outcome: Outcome) -> None:
        record = Record(
            time.time_ns(), "session", order["session"], uid=order["uid"], operation=outcome.how, object=order["name"],
            detail=outcome.text,
        )  # fmt: skip
        self._daemon.report(record)
        if outcome.told:
            self._daemon.notifications.warn(record, order["command"])


def _outcome(status: int, out: str, errors: str) -> Outcome:
    with contextlib.suppress(ValueError, TypeError):
        if status == 0:
            return Outcome(**json.loads(out))
    said = errors.strip().splitlines()
    return Outcome("not-learnt", said[-1][:1000] if said else f"the process ended with status {status}")
