# SPDX-License-Identifier: Apache-2.0
"""The screen as a person sees and uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from agentmon.cli.live import app as live
from agentmon.cli.live.inbox import Answer, Inbox, Link, Status
from agentmon.cli.live.state import State
from agentmon.model.records import Record

#: 2026-01-02 03:04:05 UTC
BEGAN_NS = 1_767_323_045_000_000_000


class Screen:
    """One live view in a test; the feed is the test."""

    def __init__(self, size: tuple[int, int] = (80, 24)) -> None:
        self.inbox = Inbox()
        self.state = State()
        self.now_s = 100.0
        self.answers: list[tuple[str, str]] = []
        self.running = False
        self.app = live.Top(self.state, self.inbox, self, clock=lambda: self.now_s)
        self.size = size
        self._pilot: Pilot[None] | None = None

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    def answer(self, approval: str, scope: str) -> None:
        self.answers.append((approval, scope))

    def run(self, use: Callable[[Screen], Awaitable[None]]) -> None:
        async def body() -> None:
            async with self.app.run_test(size=self.size) as self._pilot:
                await use(self)

        asyncio.run(body())

    async def press(self, *keys: str) -> None:
        assert self._pilot is not None
        await self._pilot.press(*keys)
        await self.drawn()

    async def drawn(self) -> None:
        """Take what was put in, and draw."""
        assert self._pilot is not None
        self.app.tick()
        await self._pilot.pause()
        await self._pilot.pause()

    def lines(self) -> list[str]:
        return [strip.text.rstrip() for strip in self.app.screen._compositor.render_strips()]

    @property
    def text(self) -> str:
        return "\n".join(self.lines())

    def status(self, **more: Any) -> None:
        processes = [
            {"pid": 10, "ppid": 1, "uid": 1000, "comm": "claude", "blocked": 0},
            {"pid": 11, "ppid": 10, "uid": 1000, "comm": "cat", "blocked": 2},
        ]
        sessions = [
            {
                "session": name, "policy": "coding-agent", "uid": 1000, "workspace": "/w", "command": "claude --go",
                "started_ns": live.time.time_ns() - 15_000 * 10**9,
                "decisions": 9, "blocked": 2, "observed": 0, "risk": "normal",
                "process_count": 2, "processes": processes if name == "s-7f3a" else [],
            }
            for name in ("s-7f3a", "s-80b1")
        ]  # fmt: skip
        reply = {
            "enforcing": True, "tier": "lsm", "version": "0.1.0", "pid": 5, "embedded": False, "sessions": sessions,
            "posture": {"exec": {"posture": "prevents", "note": ""}, "bpf": {"posture": "blind", "note": "not seen"}},
        }  # fmt: skip
        self.inbox.put(Status({**reply, **more}, self.now_s))

    def blocked(self, number: int = 0, **fields: Any) -> None:
        usual: dict[str, Any] = {
            "session": "s-7f3a", "pid": 11, "uid": 1000, "comm": "cat", "operation": "read", "verdict": "deny",
            "object": f"/home/me/.ssh/id_{number}", "rule": "keys", "reason": "SSH keys belong to people",
        }  # fmt: skip
        self.inbox.record(Record(BEGAN_NS + number * 10**9, "decision", **{**usual, **fields}))

    def ask(self, *names: str, **fields: Any) -> None:
        self.inbox.asked(
            [
                {
                    "id": name, "session": "s-7f3a", "pid": 11, "does": "connect", "object": f"{name}.test:443",
                    "rule": "unknown", "reason": "nobody said so", "asked_ns": BEGAN_NS, "deadline_ns": 0,
                    "command": ["git", "push"], "parents": ["10 /usr/bin/claude"], "recent": ["read /w/x"],
                    "scope_help": f"connect to {name}.test", **fields,
                }
                for name in names
            ]
        )  # fmt: skip


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    live.time.tzset()
    monkeypatch.delenv("NO_COLOR", raising=False)


def _streaming(screen: Screen) -> None:
    screen.blocked(0)
    screen.blocked(1, session="s-80b1", verdict="kill", operation="connect", object="203.0.113.66:443", pid=7)
    for _ in range(3):
        screen.blocked(2, rule="", reason="", object="/a/very/long/path/that/does/not/fit/in/its/column/end")


def _asking(screen: Screen) -> None:
    screen.blocked(0)
    screen.ask("one", "two", changed=True)


SCREEN = """\
agentmon  enforcing  lsm tier  daemon 0.1.0 pid 5                       12:00:00
prevents 1  blind 1  (p: which)                0 recorded/s        0 blocked/s
 SESSION  POLICY           UID   AGE PROCS RECS/S BLK/S BLOCKED COMMAND
>s-7f3a   coding-agent    1000    4h     2      0     0       2 claude --go
   `- 10 claude
      `- 11 cat                                                2
 s-80b1   coding-agent    1000    4h     2      0     0       2 claude --go
>BLOCKED, AND NEWS  3
 03:04:05 s-7f3a deny  read    /home/me/.ssh/id_0             keys: SSH keys b..
 03:04:06 s-80b1 kill  connect 203.0.113.66:443               keys: SSH keys b..
>03:04:07 s-7f3a deny  read    /a/very/..n/its/column/end x3  default









 -------------------------------------------------------------------------------
 cat[11] deny read /a/very/long/path/that/does/not/fit/in/its/column/end
 default
 q quit  ? help  / search  f session  o operation  space pause  enter details
"""

SCREEN_WITH_APPROVALS = """\
agentmon  enforcing  lsm tier  daemon 0.1.0 pid 5                       12:00:00
prevents 1  blind 1  (p: which)                0 recorded/s        0 blocked/s
 SESSION  POLICY           UID   AGE PROCS RECS/S BLK/S BLOCKED COMMAND
>s-7f3a   coding-agent    1000    4h     2      0     0       2 claude --go
   `- 10 claude
      `- 11 cat                                                2
 s-80b1   coding-agent    1000    4h     2      0     0       2 claude --go
>BLOCKED, AND NEWS  1
>03:04:05 s-7f3a deny  read    /home/me/.ssh/id_0             keys: SSH keys b..






 APPROVALS  2 pending   a once   s for the session   d deny
>     s-7f3a connect one.test:443  unknown
      s-7f3a connect two.test:443  unknown
 why: CHANGED while it was held; unknown: nobody said so
 by 11: git push
 under: 10 /usr/bin/claude
 before: read /w/x
 s means: connect to one.test
 q quit  ? help  / search  f session  o operation  space pause  enter details
"""


@pytest.mark.parametrize(
    ("put", "wanted"), [(_streaming, SCREEN), (_asking, SCREEN_WITH_APPROVALS)], ids=["stream", "approvals"]
)
def test_the_whole_screen_at_80_by_24(put: Callable[[Screen], None], wanted: str) -> None:
    async def use(screen: Screen) -> None:
        screen.status()
        put(screen)
        await screen.drawn()
        found = screen.lines()
        assert len(found) == 24
        found[0] = found[0][:-8] + "12:00:00"
        assert found == wanted.splitlines()

    Screen().run(use)


def test_the_details_of_an_approval_say_that_it_was_changed() -> None:
    async def use(screen: Screen) -> None:
        screen.status()
        _asking(screen)
        await screen.drawn()
        await screen.press("tab", "enter")
        assert "while it was held: look again" in screen.text

    Screen().run(use)


def test_keys_filter_pause_and_clear() -> None:
    async def use(screen: Screen) -> None:
        screen.status()
        screen.blocked(1)
        screen.blocked(2, session="s-80b1", operation="exec")
        await screen.drawn()
        await screen.press("f")
        assert "1 of 2  only s-80b1" in screen.text
        assert "id_1" not in screen.text
        await screen.press("f")
        assert "id_1" in screen.text
        await screen.press("o")
        assert "only exec" in screen.text
        await screen.press("x")
        assert "only" not in screen.text
        await screen.press("space")
        screen.blocked(3)
        await screen.drawn()
        assert "PAUSED, 1 behind" in screen.text
        assert "id_3" not in screen.text
        await screen.press("space")
        assert "PAUSED" not in screen.text
        assert "id_3" in screen.text

    Screen().run(use)


def test_search_is_typed_kept_and_left() -> None:
    async def use(screen: Screen) -> None:
        screen.blocked(1)
        screen.blocked(2, object="/etc/shadow")
        await screen.drawn()
        await screen.press("question_mark", "slash", "escape")  # nothing is searched for where something is read
        assert not screen.app.query_one("#search").display
        await screen.press("slash", "s", "h", "a", "d")
        assert 'only "shad"' in screen.text
        assert "id_1" not in screen.text
        await screen.press("o", "w", "q", "backspace")  # letters, not keys
        await screen.press("enter")
        assert 'only "shadow"' in screen.text
        await screen.press("slash", "escape")
        assert "only" not in screen.text
        assert "id_1" in screen.text
        await screen.press("q")
        assert screen.app._exit

    Screen().run(use)


def test_details_help_and_postures_open_and_close() -> None:
    async def use(screen: Screen) -> None:
        screen.status()
        screen.blocked(1)
        await screen.drawn()
        await screen.press("enter")
        assert "reason     SSH keys belong to people" in screen.text
        assert "under      claude[10]" in screen.text
        await screen.press("y")
        assert screen.app.clipboard.startswith("deny read /home/me/.ssh/id_1\n")
        await screen.press("escape")
        await screen.press("question_mark")
        assert "pause the stream" in screen.text
        await screen.press("q")
        await screen.press("p")
        assert "bpf        blind     not seen" in screen.text
        await screen.press("escape")
        await screen.press("shift+tab", "enter")
        assert "session s-7f3a" in screen.text
        assert "workspace  /w" in screen.text

    Screen().run(use)


def test_copying_a_row_gives_the_whole_of_it() -> None:
    async def use(screen: Screen) -> None:
        path = "/very/long" * 20
        screen.blocked(1, object=path)
        await screen.drawn()
        await screen.press("y")
        assert screen.app.clipboard == (
            f"2026-01-02 03:04:06.000000 +0000  s-7f3a  cat[11]  deny  read  {path}  keys: SSH keys belong to people"
        )
        assert "copied" in screen.text

    Screen().run(use)


def test_the_newest_is_followed_until_the_cursor_moves() -> None:
    async def use(screen: Screen) -> None:
        for number in range(50):
            screen.blocked(number)
        await screen.drawn()
        assert "id_49" in screen.text
        await screen.press("home")
        screen.blocked(50)
        await screen.drawn()
        assert "id_0 " in screen.text
        assert "id_50" not in screen.text
        await screen.press("j", "j", "k", "enter")
        assert "deny read /home/me/.ssh/id_1" in screen.text
        await screen.press("escape", "end")
        screen.blocked(51)
        await screen.drawn()
        assert "id_51" in screen.text

    Screen().run(use)


def test_what_an_agent_chose_is_no_markup() -> None:
    async def use(screen: Screen) -> None:
        screen.blocked(1, object="/[bold red]x[/]", reason="[link=http://x]y", comm="[b]")
        await screen.drawn()
        assert "/[bold red]x[/]" in screen.text
        await screen.press("enter")
        assert "deny read /[bold red]x[/]" in screen.text
        assert "[link=http://x]y" in screen.text
        await screen.press("escape", "slash", "[", "b", "]", "enter")
        assert 'only "[b]"' in screen.text

    Screen().run(use)


def test_approvals_have_no_pane_until_there_is_one() -> None:
    async def use(screen: Screen) -> None:
        screen.inbox.asked(False)
        await screen.drawn()
        assert "APPROVALS" not in screen.text
        await screen.press("a")
        screen.ask()
        await screen.drawn()
        assert "APPROVALS" not in screen.text
        screen.ask("one", "two")
        await screen.drawn()
        assert "APPROVALS  2 pending" in screen.text
        for context in ("one.test:443", "by 11: git push", "under: 10 /usr/bin/claude", "before: read /w/x"):
            assert context in screen.text
        assert "s means: connect to one.test" in screen.text
        assert screen.answers == []

    Screen().run(use)


def test_one_key_answers_what_was_looked_at() -> None:
    async def use(screen: Screen) -> None:
        screen.status()
        screen.ask("one", "two", "three")
        await screen.drawn()
        await screen.press("a")  # the focus is in the stream: this only goes there
        assert screen.answers == []
        assert "press again" in screen.text
        screen.now_s += 1
        await screen.press("a")
        assert screen.answers == [("one", "once")]
        await screen.press("a")  # `two` only just came under the cursor
        assert screen.answers == [("one", "once")]
        screen.now_s += 1
        await screen.press("s")
        screen.now_s += 1
        await screen.press("d")
        assert screen.answers == [("one", "once"), ("two", "session"), ("three", "deny")]
        assert "APPROVALS" not in screen.text
        screen.inbox.put(Link(up=False, why="gone"))
        screen.ask("four")
        await screen.drawn()
        await screen.press("tab", "d")
        screen.now_s += 1
        await screen.press("d")
        assert "nothing can be answered now" in screen.text
        assert len(screen.answers) == 3
        screen.inbox.put(Link(up=True))
        screen.inbox.put(Answer("three", "denied", "only root may `deny`"))
        screen.ask("three")
        await screen.drawn()
        assert "only root may `deny`" in screen.text
        assert "three.test" in screen.text

    Screen().run(use)


def test_a_daemon_that_is_gone_is_said_and_rows_stay() -> None:
    async def use(screen: Screen) -> None:
        screen.status()
        screen.blocked(1)
        screen.inbox.put(Link(up=False, why="daemon is gone, waiting"))
        await screen.drawn()
        assert "daemon is gone, waiting" in screen.text
        assert "id_1" in screen.text
        screen.inbox.put(Link(up=True))
        screen.blocked(2)
        await screen.drawn()
        assert "gone" not in screen.text
        assert "id_2" in screen.text

    Screen().run(use)


def test_a_burst_keeps_the_buffers_bounded_and_says_what_was_not_shown() -> None:
    async def use(screen: Screen) -> None:
        for number in range(20_000):
            screen.blocked(number)
        await screen.drawn()
        kept = len(screen.state.stream.rows)
        assert kept == screen.state.stream.kept < 20_000
        assert f"{20_000 - kept} never shown" in screen.text
        assert "id_19999" in screen.text

    Screen().run(use)


@pytest.mark.parametrize("size", [(80, 24), (200, 60), (60, 15), (40, 10), (10, 3)])
def test_every_size_can_be_drawn(size: tuple[int, int]) -> None:
    async def use(screen: Screen) -> None:
        screen.status(counters={"decisions": 1, "blocked": 1, "ring_lost": 7})
        for number in range(100):
            screen.blocked(number)
        screen.ask("one", "two", "three", "four")
        await screen.drawn()
        assert len(screen.lines()) == size[1]
        assert screen.text.startswith("agentmon")
        await screen.press("tab", "tab", "enter")
        assert len(screen.lines()) == size[1]

    Screen(size).run(use)


@pytest.mark.parametrize("colour", [True, False])
def test_no_color_is_honoured(colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")

    async def use(screen: Screen) -> None:
        screen.status()
        screen.blocked(1)
        screen.ask("one")
        await screen.drawn()
        colours = set()
        for strip in screen.app.screen._compositor.render_strips():
            sent = strip
            for filter_ in screen.app._filters if not colour else ():
                sent = sent.apply_filter(filter_, screen.app.screen.styles.background)
            for segment in sent:
                for found in (segment.style.color, segment.style.bgcolor) if segment.style else ():
                    colours.add(found is not None and not found.is_default)
        assert (True in colours) is colour
        assert screen.text.count(">") == 4  # the cursors, and the focus, are marked by a sign too

    Screen().run(use)


def test_the_feed_is_stopped_with_the_screen() -> None:
    seen = []

    async def use(screen: Screen) -> None:
        seen.append(screen.running)
        await screen.press("ctrl+c")

    screen = Screen()
    screen.run(use)
    assert (seen, screen.running) == ([True], False)
