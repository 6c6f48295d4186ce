# SPDX-License-Identifier: Apache-2.0
"""The screen of `agentmon top`: panes over one state, drawn again a few times a second whatever the stream does."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import ClassVar, Protocol

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Input, Static

from agentmon.cli.live import details, lines
from agentmon.cli.live.inbox import Inbox
from agentmon.cli.live.panes import Asked, Blocked, Header, Pane, Sessions
from agentmon.cli.live.screens import Reading
from agentmon.cli.live.state import State
from agentmon.cli.live.words import tidy

#: Seconds between two looks into the inbox: what comes faster is drawn at once.
TICK_S = 0.2
#: How long the last line says what just happened.
SAID_S = 5.0
KEYS = " q quit  ? help  / search  f session  o operation  space pause  enter details"


def _end_with(terminal: int) -> None:
    """In a thread of its own: where nothing can be written any more, the loop may wait for ever to do so.

    A terminal that hangs up sends SIGHUP only to those whose controlling terminal it is. There is nothing to give back.
    """
    hung_up = select.poll()
    hung_up.register(terminal, 0)  # POLLHUP and POLLERR always come
    hung_up.poll()
    os._exit(128 + signal.SIGHUP)


class Feed(Protocol):
    """Who fills the inbox and takes answers."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End."""

    def answer(self, approval: str, scope: str) -> None:
        """Approve for a scope, or `deny`."""


class Top(App[None]):
    """The live view."""

    ENABLE_COMMAND_PALETTE = False
    ENABLE_SELECT_AUTO_SCROLL = False
    AUTO_FOCUS = "#blocked"
    INLINE_PADDING = 0
    CSS = """
    Screen { background: ansi_default; color: ansi_default; layout: vertical; overflow: hidden; }
    #header { height: 2; }
    #sessions { height: 3; }
    #blocked { height: 1fr; }
    #approvals { height: 8; display: none; }
    #keys { height: 1; }
    #search { height: 1; display: none; }
    #slash { width: 3; }
    Input { width: 1fr; height: 1; border: none; padding: 0; background: ansi_default; }
    VerticalScroll { height: 1fr; scrollbar-size-vertical: 0; }
    #text { padding: 0 1; width: 100%; height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", show=False, priority=False),
        Binding("ctrl+z", "suspend_process", show=False),
        Binding("question_mark", "help", show=False),
        Binding("space", "pause", show=False),
        Binding("slash", "search", show=False, priority=True),  # at once: what is typed next belongs to it
        Binding("f", "session", show=False),
        Binding("o", "operation", show=False),
        Binding("x,escape", "clear", show=False),
        Binding("t", "tree", show=False),
        Binding("p", "postures", show=False),
        Binding("y", "copy", show=False),
        Binding("a", "answer('once')", show=False),
        Binding("s", "answer('session')", show=False),
        Binding("d", "answer('deny')", show=False),
    ]

    def __init__(
        self,
        state: State,
        inbox: Inbox,
        feed: Feed,
        clock: Callable[[], float] = time.monotonic,
        terminal: int | None = None,
    ) -> None:
        """``terminal``: what it is drawn on; when that goes away, so does this."""
        super().__init__(ansi_color=True)
        self._terminal = terminal
        self.theme = "ansi-dark"
        self.state = state
        self._inbox = inbox
        self._feed = feed
        self._clock = clock
        self._second = 0
        self._said_s = 0.0
        self._room = 0  # for the sessions; it only grows, or the stream would jump

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield Header(self.state)
        yield Sessions(self.state)
        yield Blocked(self.state)
        yield Asked(self.state, self._clock)
        with Horizontal(id="search"):
            yield Static(Content(" / "), id="slash")
            yield Input(placeholder="text in any field", compact=True, select_on_focus=False)
        yield Static(id="keys")

    def on_mount(self) -> None:
        """Begin."""
        # else the terminal would stay as it is now
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._terminated)
        if self._terminal is not None:
            threading.Thread(target=_end_with, args=(self._terminal,), daemon=True).start()
        self._feed.start()
        self.set_interval(TICK_S, self.tick)
        self._say("")

    def on_unmount(self) -> None:
        """End."""
        self._feed.stop()

    def _terminated(self) -> None:
        self.exit(return_code=128 + signal.SIGTERM)

    # -- what comes in

    def tick(self) -> None:
        """Take what came, and draw it."""
        batch = self._inbox.take()
        second = int(time.time())
        if not batch and second == self._second:
            return
        self._second = second
        if self.state.take(batch, self._clock()):
            self.bell()
        if batch.answers:
            self._say(self.state.said)
        elif self._said_s and self._clock() - self._said_s > SAID_S:
            self._say("")
        self.show()

    def show(self) -> None:
        """Give each pane its room, and draw."""
        if len(self.screen_stack) > 1:
            return  # something else is being read
        height = self.size.height
        known = self.state.approvals.known
        pending = len(self.state.approvals.items)
        asked = self.query_one(Asked)
        wanted = known and pending > 0
        if asked.has_focus and not wanted:
            self.query_one(Blocked).focus()
        asked.display = wanted
        asked.styles.height = 1 + min(pending, Asked.ROWS) + lines.CONTEXT
        lost = len(lines.top(self.state, 80, lines.moment(0)))
        self.query_one(Header).styles.height = lost
        third = max((height - lost - 1) // 3, 2)
        self._room = max(min(max(self._room, 1 + len(self.state.items)), third), 2)
        self.query_one(Sessions).styles.height = self._room
        for pane in self.query("Header, Sessions, Blocked, Asked"):
            pane.refresh()

    def _say(self, text: str) -> None:
        """The last line: what just happened, or the keys."""
        self._said_s = self._clock() if text else 0.0
        self.query_one("#keys", Static).update(Content(f" {tidy(text)}" if text else KEYS))

    # -- keys

    @property
    def pane(self) -> Pane:
        """The one with the focus, or the stream."""
        return self.focused if isinstance(self.focused, Pane) else self.query_one(Blocked)

    def action_help(self) -> None:
        """Keys."""
        self.push_screen(Reading(details.of_keys()))

    def action_postures(self) -> None:
        """What is enforced."""
        self.push_screen(Reading(details.of_postures(self.state)))

    def action_details(self) -> None:
        """All that is known of the selected row."""
        if said := self.pane.details():
            self.push_screen(Reading(said))

    def action_copy(self) -> None:
        """The selected row, by OSC 52."""
        if text := self.pane.copied():
            self.copy_to_clipboard(text)
            self._say("copied, if your terminal takes it (OSC 52)")

    def action_pause(self) -> None:
        """Stand still, or go on."""
        self.state.stream.pause()
        self._say("")
        self.show()

    def action_session(self) -> None:
        """Only the session of the selected row, or all again."""
        session = "" if self.state.stream.filter.session else self.pane.session()
        self.state.stream.narrow(session=session)
        self.show()

    def action_operation(self) -> None:
        """Only the next operation."""
        self.state.stream.next_operation()
        self.show()

    def action_clear(self) -> None:
        """No filter."""
        self.state.stream.clear()
        self.query_one(Input).value = ""
        self._say("")
        self.show()

    def action_tree(self) -> None:
        """Processes or not."""
        self.state.fold()
        self._room = 0
        self.show()

    def action_answer(self, scope: str) -> None:
        """Answer the approval under the cursor, once it was looked at."""
        pane = self.query_one(Asked)
        if not pane.display:
            return
        if not pane.has_focus:
            pane.focus()
            self._say("look at it, then press again")
            return
        if not self.state.link.up:
            self._say("the daemon is gone: nothing can be answered now")
            return
        item = self.state.approvals.answer(self._clock())
        if item is None:
            self._say("another one came under the cursor: look at it, then press again")
        else:
            self._feed.answer(item.id, scope)
            self._say(f"answering {item.does} {item.object}")
        self.show()

    # -- search

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A slash in the search, or where something else is read, is none of ours."""
        del parameters
        return action != "search" or (len(self.screen_stack) == 1 and not isinstance(self.focused, Input))

    def action_search(self) -> None:
        """Type what to look for."""
        self.query_one("#keys").display = False
        self.query_one("#search").display = True
        field = self.query_one(Input)
        field.value = self.state.stream.filter.text
        self.screen.set_focus(field)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Look for it as it is typed."""
        self.state.stream.narrow(text=event.value)
        self.show()

    def on_input_submitted(self, _: Input.Submitted) -> None:
        """Keep it."""
        self._searched()

    def _searched(self) -> None:
        self.query_one("#search").display = False
        self.query_one("#keys").display = True
        self.screen.set_focus(self.query_one(Blocked))
        self._say("")
        self.show()

    def on_key(self, event: object) -> None:
        """Escape leaves the search without it."""
        if getattr(event, "key", "") == "escape" and isinstance(self.focused, Input):
            self.state.stream.narrow(text="")
            self._searched()
