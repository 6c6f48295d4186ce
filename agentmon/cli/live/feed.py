# SPDX-License-Identifier: Apache-2.0
"""Two threads that talk to the daemon, and start again when it does."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

from agentmon.cli.live.inbox import Answer, Inbox, Link, Status
from agentmon.control.client import Client
from agentmon.control.protocol import RefusedError
from agentmon.errors import AgentmonError
from agentmon.model.records import Record

#: Between questions, and at least this many times what the answer took: a crowded daemon is asked less.
POLL_S = 1.0
POLL_SHARE = 10
RECONNECT_S = 0.5
GONE = "daemon is gone, waiting (the fence stays)"

_LATE = "the daemon went away before it took the answer"


class Feed:
    """Follows the stream in one thread; asks for sessions and approvals, and answers them, in the other."""

    def __init__(
        self, connect: Callable[[], Client], inbox: Inbox, *, everything: bool = False, session: str | None = None
    ) -> None:
        self._connect = connect
        self._inbox = inbox
        self._everything = everything
        self._session = session
        self._stop = threading.Event()
        self._answers: queue.SimpleQueue[tuple[str, str, str] | None] = queue.SimpleQueue()
        self._clients: set[Client] = set()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._follow, self._ask)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, whatever is waited for."""
        self._stop.set()
        self._answers.put(None)
        for client in list(self._clients):
            client.interrupt()
        for thread in self._threads:
            thread.join(1.0)

    def answer(self, approval: str, scope: str) -> None:
        """Approve for a scope (`once`, `session`), or `deny`."""
        self._answers.put((approval, scope, f"{'denied' if scope == 'deny' else f'approved, {scope}'}"))

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Client]:
        """A connection that `stop` can end."""
        with self._connect() as client:
            self._clients.add(client)
            if self._stop.is_set():
                client.interrupt()
            try:
                yield client
            finally:
                self._clients.discard(client)

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                with self._connected() as client:
                    self._read(client)
                why = GONE
            except RefusedError as error:
                why = str(error)
            except AgentmonError:
                why = GONE
            self._inbox.put(Link(up=False, why=why))
            self._stop.wait(RECONNECT_S)

    def _read(self, client: Client) -> None:
        for message in client.stream("watch", all=self._everything, session=self._session):
            if message.get("ok"):
                self._inbox.put(Link(up=True))
            elif "dropped" in message:
                self._inbox.missed(message["dropped"])
            elif "event" in message:
                try:
                    self._inbox.record(Record.from_json(message["event"]))
                except (KeyError, TypeError):  # of another version
                    self._inbox.missed(1)

    def _ask(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(AgentmonError), self._connected() as client:
                self._converse(client)
            self._stop.wait(RECONNECT_S)

    def _converse(self, client: Client) -> None:
        self._give_up()
        approvals = True
        while not self._stop.is_set():
            began = time.monotonic()
            self._inbox.put(Status(client.call("ps"), time.monotonic()))
            if approvals:
                approvals = self._approvals(client)
            wait = max(POLL_S, POLL_SHARE * (time.monotonic() - began))
            with contextlib.suppress(queue.Empty):
                if (answer := self._answers.get(timeout=wait)) is not None:
                    self._send(client, *answer)

    def _give_up(self) -> None:
        """Answers that were given to a daemon that went away are not for the next one."""
        with contextlib.suppress(queue.Empty):
            while True:
                if (answer := self._answers.get_nowait()) is not None:
                    self._inbox.put(Answer(answer[0], answer[2], _LATE))

    def _approvals(self, client: Client) -> bool:
        """Whether the daemon knows them."""
        try:
            self._inbox.asked(client.call("approvals").get("approvals", []))
        except RefusedError as error:
            if error.code != "usage":  # not allowed to this user
                self._inbox.asked([])
                return True
            self._inbox.asked(False)
            return False
        return True

    def _send(self, client: Client, approval: str, scope: str, said: str) -> None:
        # not `id`: that is the number of the message
        try:
            if scope == "deny":
                client.call("deny", approval=approval)
            else:
                client.call("approve", approval=approval, scope=scope)
            self._inbox.put(Answer(approval, said))
        except RefusedError as error:
            self._inbox.put(Answer(approval, said, str(error)))
        except AgentmonError:
            self._inbox.put(Answer(approval, said, _LATE))
            raise
