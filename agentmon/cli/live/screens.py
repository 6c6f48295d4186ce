# SPDX-License-Identifier: Apache-2.0
"""A text over the whole screen: details, postures, help."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from agentmon.cli.live.details import Text, as_text, folded


class Reading(Screen[None]):
    """Scrolls; any of the usual keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,question_mark", "app.pop_screen", show=False),
        Binding("y", "copy", show=False),
        Binding("k", "scroll(-1)", show=False),
        Binding("j", "scroll(1)", show=False),
    ]

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        """The text and one line on the keys."""
        with VerticalScroll():
            yield Static(id="text")
        yield Static(Content(" escape back   up down scroll   y copy"), id="keys")

    def on_resize(self, event: events.Resize) -> None:
        """Fold it to the width."""
        self.query_one("#text", Static).update(Content("\n".join(folded(self.text, event.size.width - 2))))

    def action_scroll(self, by: int) -> None:
        """A line."""
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)

    def action_copy(self) -> None:
        """All of the text."""
        self.app.copy_to_clipboard(as_text(self.text))
        self.query_one("#keys", Static).update(Content(" copied   escape back"))
