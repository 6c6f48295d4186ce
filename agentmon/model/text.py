# SPDX-License-Identifier: Apache-2.0
"""Text that somebody else chose, made fit to be shown."""

from __future__ import annotations


def clean(text: str) -> str:
    """Names come from an agent: control characters and broken bytes must reach neither a terminal nor a log."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text
    )


def attempt(operation: str, name: str) -> str:
    """An operation with its object, if it has one: `signal` has none."""
    return f"{operation} {name}" if name else operation
