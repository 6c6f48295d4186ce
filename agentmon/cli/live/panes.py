# SPDX-License-Identifier: Apache-2.0
"""The panes: each draws the lines that are in sight and no more, so that long lists cost nothing."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widget import Widget

from agentmon.cli.live import details, lines
from agentmon.cli.live.state import State
from agentmon.cli.live.words import Line

#: Names of styles -> the terminal's own sixteen colours; each is told from the others by its words, too.
STYLES = {
    "": "", "bold": "bold", "dim": "dim", "good": "bold ansi_green", "bad": "bold ansi_red", "warn": "ansi_yellow",
    "name": "ansi_cyan", "alarm": "bold reverse",
}  # fmt: skip


def content(line: Line, cells: int, style: str = "") -> Content:
    """A line of exactly that many cells. What is in it is never markup."""
    made = Content.assemble(*((text, "" if style else STYLES[name]) for text, name in line if text))
    made = made.truncate(cells, pad=True)
    return made.stylize(style) if style else made


class Header(Widget):
    """The daemon and its host."""

    def __init__(self, state: State) -> None:
        super().__init__(id="header")
        self.state = state

    def render(self) -> Content:
        """Draw."""
        cells = self.size.width
        found = lines.top(self.state, cells, dt.datetime.now().astimezone())
        return Content("\n").join(content(line, cells) for line in found)


class Pane(Widget, can_focus=True):
    """A title and a list with a cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "first", show=False),
        Binding("end,G", "last", show=False),
        Binding("enter", "app.details", show=False),
    ]

    def __init__(self, state: State, name: str) -> None:
        super().__init__(id=name)
        self.state = state
        self._top = 0

    # -- what each has its own of

    def title(self) -> Line:
        """The line above."""
        raise NotImplementedError

    def count(self) -> int:
        """Rows."""
        raise NotImplementedError

    def line(self, index: int, cells: int) -> Line:
        """A row."""
        raise NotImplementedError

    def place(self) -> int:
        """Where the cursor is."""
        raise NotImplementedError

    def select(self, index: int) -> None:
        """Move the cursor; the index is in range."""
        raise NotImplementedError

    def below(self, cells: int, height: int) -> Sequence[Line]:
        """Lines under the list, if the pane is high enough for them."""
        del cells, height
        return ()

    def empty(self) -> str:
        """What is said when there is no row."""
        return ""

    def details(self) -> details.Text:
        """All that is known of the selected row."""
        raise NotImplementedError

    def copied(self) -> str:
        """What is copied of it."""
        return details.as_text(self.details())

    def session(self) -> str:
        """The session of the selected row."""
        raise NotImplementedError

    # -- drawing

    def render(self) -> Content:
        """Draw what is in sight."""
        cells, height = self.size
        below = self.below(cells - 1, height)
        rows = max(height - 1 - len(below), 0)
        count, place = self.count(), self.place()
        self._top = max(min(self._top, place, count - rows), place - rows + 1, 0)
        mark = ">" if self.has_focus else " "
        drawn = [content([(mark, ""), *self.title()], cells, "bold reverse" if self.has_focus else "reverse")]
        for index in range(self._top, min(self._top + rows, count)):
            here = index == place
            line = [(">" if here else " ", ""), *self.line(index, cells - 1)]
            drawn.append(content(line, cells, "reverse" if here and self.has_focus else ""))
        if not count and rows and self.empty():
            drawn.append(content([(" " + self.empty(), "dim")], cells))
        drawn += [Content(" " * cells)] * (1 + rows - len(drawn))
        drawn += [content([(" ", ""), *line], cells) for line in below]
        return Content("\n").join(drawn)

    def _go(self, index: int) -> None:
        if self.count():
            self.select(max(0, min(index, self.count() - 1)))
        self.refresh()

    def action_move(self, by: int) -> None:
        """Up, down."""
        self._go(self.place() + by)

    def action_page(self, by: int) -> None:
        """A page."""
        self._go(self.place() + by * max(self.size.height - 2, 1))

    def action_first(self) -> None:
        """The first row."""
        self._go(0)

    def action_last(self) -> None:
        """The last row."""
        self._go(self.count())

    def on_click(self, event: events.Click) -> None:
        """Where the mouse is used."""
        if 0 < event.y <= min(self.count() - self._top, self.size.height - 1):
            self._go(self._top + event.y - 1)


class Sessions(Pane):
    """Sessions with their processes."""

    def __init__(self, state: State) -> None:
        super().__init__(state, "sessions")
        self._key: tuple[str, int] = ("", 0)
        self._last = 0

    def title(self) -> Line:
        """The columns."""
        return [(lines.SESSION_HEAD, "")]

    def empty(self) -> str:
        """No session."""
        return "no live sessions: agentmon run -- COMMAND" if self.state.daemon else "asking the daemon"

    def count(self) -> int:
        """Sessions and processes."""
        return len(self.state.items)

    def line(self, index: int, cells: int) -> Line:
        """One of them."""
        return lines.item(self.state, self.state.items[index], cells, time.time_ns())

    def place(self) -> int:
        """Where what was selected is now; when it is gone, what took its place."""
        for index, item in enumerate(self.state.items):
            if item.key == self._key:
                self._last = index
                break
        else:
            self._last = max(min(self._last, self.count() - 1), 0)
        return self._last

    def select(self, index: int) -> None:
        """Keep to it."""
        self._key, self._last = self.state.items[index].key, index

    def details(self) -> details.Text:
        """A session or a process."""
        return details.of_item(self.state.items[self.place()], self.state) if self.state.items else []

    def session(self) -> str:
        """Its own."""
        return self.state.items[self.place()].session["session"] if self.state.items else ""


class Blocked(Pane):
    """The stream of blocked operations. The newest is followed until the cursor is moved up."""

    #: With that many lines there is room for the selected row in full.
    HIGH = 9

    def __init__(self, state: State) -> None:
        super().__init__(state, "blocked")
        self._number: int | None = None  # of the selected row; None: the newest

    def title(self) -> Line:
        """What is shown, and what not."""
        return lines.stream_title(self.state)

    def empty(self) -> str:
        """Nothing."""
        return "nothing that the filter shows" if self.state.stream.filter else "nothing was blocked since this began"

    def count(self) -> int:
        """Rows that pass the filter."""
        return len(self.state.stream.shown)

    def line(self, index: int, cells: int) -> Line:
        """One of them."""
        return lines.row(self.state.stream.shown[index], cells)

    def place(self) -> int:
        """The selected row, or the next that is still kept."""
        if self._number is None:
            return max(self.count() - 1, 0)
        return self.state.stream.index(self._number)

    def select(self, index: int) -> None:
        """Keep to it, or follow."""
        self._number = None if index == self.count() - 1 else self.state.stream.shown[index].number

    def below(self, cells: int, height: int) -> Sequence[Line]:
        """The selected row in full."""
        shown = self.state.stream.shown
        if not shown or height < self.HIGH:
            return ()
        return [[("-" * cells, "dim")], *lines.full(shown[self.place()], cells)]

    def details(self) -> details.Text:
        """The record."""
        shown = self.state.stream.shown
        return details.of_row(shown[self.place()], self.state) if shown else []

    def copied(self) -> str:
        """One line."""
        shown = self.state.stream.shown
        return details.one_line(shown[self.place()]) if shown else ""

    def session(self) -> str:
        """The record's."""
        shown = self.state.stream.shown
        return shown[self.place()].record.session if shown else ""


class Asked(Pane):
    """Pending approvals, with what one needs to decide on the selected one."""

    #: Rows of the list; the rest scrolls.
    ROWS = 3

    def __init__(self, state: State, clock: Callable[[], float]) -> None:
        super().__init__(state, "approvals")
        self._clock = clock

    def title(self) -> Line:
        """How many."""
        return lines.approvals_title(self.state.approvals)

    def count(self) -> int:
        """Pending."""
        return len(self.state.approvals.items)

    def empty(self) -> str:
        """None."""
        return "none"

    def line(self, index: int, cells: int) -> Line:
        """One of them."""
        return lines.approval(self.state.approvals.items[index], cells, time.time_ns())

    def place(self) -> int:
        """Where the cursor is."""
        return self.state.approvals.index

    def select(self, index: int) -> None:
        """Move it."""
        self.state.approvals.select(index, self._clock())

    def below(self, cells: int, height: int) -> Sequence[Line]:
        """The context."""
        del height
        chosen = self.state.approvals.selected
        return lines.context(chosen, cells) if chosen else ()

    def details(self) -> details.Text:
        """All of it."""
        chosen = self.state.approvals.selected
        return details.of_approval(chosen) if chosen else []

    def session(self) -> str:
        """Its own."""
        chosen = self.state.approvals.selected
        return chosen.session if chosen else ""
