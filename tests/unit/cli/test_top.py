# SPDX-License-Identifier: Apache-2.0
"""`agentmon top` and `watch` as started in a terminal, with a daemon that the test plays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.cli import watch
from agentmon.cli.main import main
from agentmon.control.client import Client
from agentmon.control.protocol import UnreachableError
from agentmon.model.records import Record
from tests.support.hosts import REPOSITORY, wait_for
from tests.support.served import Daemon
from tests.support.terminal import Terminal


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    (tmp_path / "agentmon.toml").write_text(f'[daemon]\nsocket = "{tmp_path}/control.sock"\n')
    daemon = Daemon(tmp_path / "control.sock")
    daemon.start()
    yield daemon
    daemon.stop()


def command(daemon: Daemon, *arguments: str) -> list[str]:
    config = daemon.path.parent / "agentmon.toml"
    return [sys.executable, "-m", "agentmon.cli.main", "--config", str(config), *arguments]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLORTERM")}
    return kept | {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color"} | more


@pytest.mark.parametrize("more", [{"TERM": "vt100"}, {"NO_COLOR": "1"}, {}])
def test_it_draws_follows_a_restart_and_ends(daemon: Daemon, more: dict[str, str]) -> None:
    with Terminal(command(daemon, "top"), environment(**more)) as terminal:
        terminal.until("no live sessions")  # before, it only asks whether it may watch
        wait_for(lambda: daemon.watchers, "top to watch")
        daemon.publish(Record(1, "decision", "s-7f3a", 5, operation="read", object="/etc/shadow", verdict="deny"))
        terminal.until("/etc/shadow")
        terminal.type("/etc/sha")  # faster than people
        terminal.until('only "etc/sha"')
        terminal.type("/a")
        terminal.until('only "etc/sha/a"')  # Escape ends this: in one go with it, it may never be drawn
        terminal.type("\x1b")
        daemon.stop()
        terminal.until("daemon is gone, waiting")
        daemon.start()
        wait_for(lambda: daemon.watchers, "top to watch again")
        daemon.publish(Record(2, "decision", "s-7f3a", 5, operation="read", object="/after", verdict="deny"))
        terminal.until("/after")
        terminal.type("q")
        assert terminal.ended() == 0
    # a colour: 30-37, 40-47, 90-107, or 38;5;n and 38;2;r;g;b
    sgr = re.findall(r"\x1b\[([\d;]*)m", terminal.raw)
    coloured = any(re.search(r"(^|;)(3[0-8]|4[0-8]|9\d|10[0-7])(;|$)", codes) for codes in sgr)
    assert coloured is (not more)


def test_when_it_is_terminated_the_terminal_is_given_back(daemon: Daemon) -> None:
    with Terminal(command(daemon, "top"), environment()) as terminal:
        terminal.until("no live sessions")
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.ended() == 128 + signal.SIGTERM
    assert terminal.raw.count("\x1b[?1049h") == terminal.raw.count("\x1b[?1049l") == 1


def test_when_its_terminal_is_gone_so_is_it(daemon: Daemon) -> None:
    with Terminal(command(daemon, "top"), environment()) as terminal:
        terminal.until("no live sessions")
        assert terminal.hang_up() == 128 + signal.SIGHUP


def test_when_its_terminal_is_gone_so_is_it_though_nobody_read_what_it_drew(daemon: Daemon) -> None:
    with Terminal(command(daemon, "top"), environment()) as terminal:
        terminal.until("no live sessions")
        for _ in range(100):
            terminal.type("?")  # a whole screen each, and the terminal takes a few
            time.sleep(0.02)
        assert terminal.hang_up() == 128 + signal.SIGHUP


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_draw_is_told_of_watch(daemon: Daemon, term: str) -> None:
    with Terminal(command(daemon, "top"), environment(TERM=term)) as terminal:
        assert terminal.ended() == 1
    assert "agentmon watch" in terminal.text


def test_no_terminal_is_an_error(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        command(daemon, "top"), capture_output=True, text=True, check=False, env=environment(), stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "needs a terminal" in done.stderr
    assert "agentmon watch" in done.stderr


def test_without_a_daemon_the_remedy_is_said_before_the_screen_is_taken(daemon: Daemon) -> None:
    daemon.stop()
    with Terminal(command(daemon, "top"), environment()) as terminal:
        assert terminal.ended() == 1
    assert "systemctl start agentmon" in terminal.text
    assert "\x1b[?1049h" not in terminal.raw


def test_textual_is_imported_by_nothing_else() -> None:
    script = (
        "import sys\nfrom agentmon.cli.main import build_parser\nbuild_parser()\nimport agentmon.cli.render\n"
        "import agentmon.cli.live.feed, agentmon.cli.live.state, agentmon.cli.live.details\n"
        "print([m for m in sys.modules if m.startswith('textual')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "[]\n"


class Reset(Client):
    """A daemon that dies with something of ours unread: the connection is not closed, but reset."""

    def stream(self, verb: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        yield {"ok": True}
        raise UnreachableError("the daemon went away: connection reset by peer")


def test_watch_says_once_that_it_waits_after_a_reset_too(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = UnreachableError("nobody")
    coming: list[Any] = [Reset(daemon.path), nobody, nobody, Reset(daemon.path), KeyboardInterrupt()]

    def connect(_: Any) -> Client:
        found = coming.pop(0)
        if isinstance(found, BaseException):
            raise found
        assert isinstance(found, Client)
        return found

    monkeypatch.setattr(watch, "connect", connect)
    monkeypatch.setattr(watch, "RECONNECT_S", 0)
    assert main(["watch"]) == 130
    said = capsys.readouterr().err.splitlines()
    waiting = "agentmon: the daemon went away; waiting for the next (the fence stays)"
    assert said == ["agentmon: watching", waiting, "agentmon: the daemon is back", waiting]
