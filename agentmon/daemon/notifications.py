# SPDX-License-Identifier: Apache-2.0
"""Telling people that something is held. Nothing here ever waits: each channel has a thread and a bounded queue."""

from __future__ import annotations

import queue
import shlex
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from agentmon.daemon.channels import Channel, Desktop, Hook, Message, UndeliveredError, Webhook
from agentmon.daemon.config import NotifyConfig
from agentmon.engine import Approval
from agentmon.errors import ConfigError
from agentmon.host import process
from agentmon.model.records import Record
from agentmon.model.text import clean

#: Of one channel. What comes when so many wait is dropped, and counted.
QUEUED = 64
#: Characters of a text that an agent chose.
SHOWN = 1000


class Notifications:
    """One message for each approval that is new, changed or expired."""

    def __init__(self, channels: Sequence[Channel], log: Callable[[str], None]) -> None:
        self._log = log
        self._queues = [(channel, queue.Queue[Message](QUEUED)) for channel in channels]
        self._started = False
        self.sent = 0
        self.dropped = 0
        self.failed = 0

    def warn(self, record: Record, command: str) -> None:
        """Queue the rise of a session's risk (`risk`), or the drift of its baseline (`drift`)."""
        if self._queues:
            self._queue(warning(record, command), record.session)

    def tell(self, event: str, approval: Approval, owner: int, command: Sequence[str] = ()) -> None:
        """Queue it. ``owner``: the user of the session."""
        if not self._queues:
            return
        self._queue(as_message(event, approval, owner, command), approval.id)

    def _queue(self, message: Message, what: str) -> None:
        if not self._started:  # threads cost; most daemons never need one
            self._started = True
            for channel, messages in self._queues:
                threading.Thread(
                    target=self._deliver, args=(channel, messages), name=f"notify-{channel.name}", daemon=True
                ).start()
        for channel, messages in self._queues:
            try:
                messages.put_nowait(message)
            except queue.Full:
                self.dropped += 1
                self._log(f"notify: {channel.name}: {QUEUED} wait already; {what} is not told there")

    def _deliver(self, channel: Channel, messages: queue.Queue[Message]) -> None:
        said = ""
        while True:
            message = messages.get()
            try:
                channel.send(message)
                self.sent += 1
                said = ""
            except Exception as error:  # noqa: BLE001  # the next one may do better
                self.failed += 1
                why = str(error) if isinstance(error, UndeliveredError) else f"{type(error).__name__}: {error}"
                if why != said:
                    self._log(f"notify: {channel.name}: {why}")
                said = why


def as_message(event: str, approval: Approval, owner: int, command: Sequence[str] = ()) -> dict[str, Any]:
    """What all channels tell. An agent chose most of these texts."""
    if not command and approval.waiters:
        command = process.command_line(approval.waiters[0].process.pid)
    return {
        "v": 1, "event": event, "host": socket.gethostname(), "id": approval.id, "session": approval.session,
        "uid": owner, "operation": approval.operation, "does": approval.does,
        "object": _fit(approval.object), "file": _fit(approval.file),
        "rule": approval.rule,
        "reason": _fit(approval.reason), "command": _fit(shlex.join(command) or approval.comm),
        "asked_ns": approval.asked_ns, "deadline_ns": approval.deadline_ns,
    }  # fmt: skip


def warning(record: Record, command: str) -> dict[str, Any]:
    """What all channels tell of a rise of the risk, or of drift. ``command``: the session's."""
    return {
        "v": 1, "event": record.operation, "host": socket.gethostname(), "id": record.session,
        "session": record.session, "uid": record.uid, "operation": record.operation, "object": record.object,
        "rule": "", "reason": _fit(record.reason), "command": _fit(command), "detail": _fit(record.detail),
        "asked_ns": record.time_ns, "deadline_ns": 0,
    }  # fmt: skip


def _fit(text: str) -> str:
    text = clean(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def open_channels(config: NotifyConfig) -> list[Channel]:
    """Those that are configured. Raises `ConfigError`."""
    found: list[Channel] = []
    if config.desktop:
        found.append(Desktop())
    if config.webhook:
        assert config.secret_file is not None
        try:
            secret = config.secret_file.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"`secret_file` of `[notify]`: cannot read `{config.secret_file}`: {error.strerror}"
            ) from error
        if not secret:
            raise ConfigError(
                f"`secret_file` of `[notify]`: `{config.secret_file}` is empty; put a long random word there"
            )
        found.append(Webhook(config.webhook, secret))
    if config.command:
        found.append(Hook(config.command, config.command_user))
    return found
