# SPDX-License-Identifier: Apache-2.0
"""The feed's threads against a daemon that comes and goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmon.cli.live import feed as feeds
from agentmon.cli.live.feed import Feed
from agentmon.cli.live.inbox import Inbox
from agentmon.cli.live.state import State
from agentmon.control.client import Client
from agentmon.model.records import Record
from tests.support.hosts import wait_for
from tests.support.served import Daemon


class Fed:
    """A state that a feed fills."""

    def __init__(self, path: Path) -> None:
        self.state = State()
        self.inbox = Inbox()
        self.feed = Feed(lambda: Client(path, 20.0), self.inbox)

    def until(self, holds: Callable[[State], bool], what: str) -> None:
        def look() -> bool:
            self.state.take(self.inbox.take(), 0)
            return holds(self.state)

        wait_for(look, what, 60)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.setattr(feeds, "POLL_S", 0.02)
    monkeypatch.setattr(feeds, "RECONNECT_S", 0.02)
    daemon = Daemon(tmp_path / "control.sock")
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def fed(daemon: Daemon) -> Iterator[Fed]:
    fed = Fed(daemon.path)
    fed.feed.start()
    wait_for(lambda: daemon.watchers, "the feed to watch")
    yield fed
    fed.feed.stop()
    assert not any(thread.is_alive() for thread in fed.feed._threads)


def test_records_sessions_and_the_unknown_verb(daemon: Daemon, fed: Fed) -> None:
    daemon.publish(Record(1, "decision", "s-1", operation="read", object="/x", verdict="deny"))
    fed.until(lambda s: len(s.stream.shown) == 1 and bool(s.daemon), "a record and the status")
    assert fed.state.link.up
    assert not fed.state.approvals.known


def test_a_restart_is_survived_and_said(daemon: Daemon, fed: Fed) -> None:
    daemon.publish(Record(1, "decision", "s-1", operation="read", object="/before", verdict="deny"))
    fed.until(lambda s: bool(s.stream.shown), "the first record")
    daemon.stop()
    fed.until(lambda s: not s.link.up, "the link to be down")
    assert "daemon is gone, waiting" in fed.state.link.why
    daemon.approvals = [{"id": "a"}]  # the next one knows them
    daemon.start()
    wait_for(lambda: daemon.watchers, "the feed to watch again")
    daemon.publish(Record(2, "decision", "s-1", operation="read", object="/after", verdict="deny"))
    fed.until(lambda s: s.link.up and s.approvals.known and len(s.stream.shown) == 2, "all of it to be back")


def test_answers_reach_the_daemon_and_refusals_come_back(daemon: Daemon, fed: Fed) -> None:
    daemon.stop()
    daemon.approvals = [{"id": "a"}, {"id": "b"}]
    daemon.start()
    fed.until(lambda s: len(s.approvals.items) == 2, "the approvals")
    fed.feed.answer("a", "session")
    fed.feed.answer("b", "deny")
    fed.until(lambda s: not s.approvals.items, "both to be answered")
    assert daemon.told == [{"verb": "approve", "approval": "a", "scope": "session"}, {"verb": "deny", "approval": "b"}]
    fed.feed.answer("a", "once")
    fed.until(lambda s: "no such question" in s.said, "the refusal")


def test_an_answer_to_a_daemon_that_is_gone_is_not_given_to_the_next(daemon: Daemon, fed: Fed) -> None:
    daemon.stop()
    fed.until(lambda s: not s.link.up, "the link to be down")
    fed.feed.answer("a", "session")
    daemon.approvals = [{"id": "a"}]
    daemon.start()
    fed.until(lambda s: len(s.approvals.items) == 1 and "went away" in s.said, "the question and the news")
    assert daemon.told == []
