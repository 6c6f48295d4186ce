# SPDX-License-Identifier: Apache-2.0
"""Amounts as plans write them."""

from __future__ import annotations

import re
from typing import Final

#: As coreutils has it: `K` and `KiB` are 1,024 bytes, `kB` 1,000.
_UNITS: Final = {
    "": 1, "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3,
    "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
}  # fmt: skip
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "day": 86_400}
MOST_BYTES: Final = 1 << 50
MOST: Final = 1 << 30
MOST_SECONDS: Final = 366 * 86_400


def parse_size(text: str) -> int:
    """Bytes, of such as ``64KiB``, ``10M`` or ``500``. Raises `ValueError`."""
    form = re.fullmatch(r"([0-9]{1,15}) ?([A-Za-z]*)", text, re.ASCII)
    if not form or form[2] not in _UNITS or int(form[1]) * _UNITS[form[2]] > MOST_BYTES:
        raise ValueError(f"`{text}` is not an amount of bytes; write such as `64KiB`, `10MiB`, or `1GB`")
    return int(form[1]) * _UNITS[form[2]]


def parse_count(text: str) -> int:
    """A number. Raises `ValueError`."""
    if not re.fullmatch("[0-9]{1,10}", text, re.ASCII) or int(text) > MOST:
        raise ValueError(f"`{text}` is not a number; write such as `20`")
    return int(text)


def parse_duration(text: str) -> float:
    """Seconds, of such as ``90s``, ``10min``, ``2h`` or ``1day``. Raises `ValueError`."""
    form = re.fullmatch(r"([0-9]{1,9}) ?(s|min|h|day)", text, re.ASCII)
    if not form or int(form[1]) * _SECONDS[form[2]] > MOST_SECONDS:
        raise ValueError(f"`{text}` is not a time; write such as `90s`, `10min`, `2h`, at most 366 days")
    return float(int(form[1]) * _SECONDS[form[2]])
