# SPDX-License-Identifier: Apache-2.0
"""Text that somebody else chose, made fit to be shown."""

from __future__ import annotations


def clean(text: str) -> str:
    """Names come from an agent: control characters and broken bytes must reach neither a terminal nor a log."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text
    )
