# SPDX-License-Identifier: Apache-2.0
"""``/etc/agentmon/agentmon.toml``. A missing file is fine: the defaults are meant to be used."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentmon.errors import ConfigError

PATH = Path("/etc/agentmon/agentmon.toml")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DaemonConfig(_Table):
    """``[daemon]``"""

    socket: Path = Path("/run/agentmon/control.sock")
    state: Path = Path("/run/agentmon")
    audit: Path = Path("/var/lib/agentmon/audit.db")
    pins: Path = Path("/sys/fs/bpf/agentmon")
    group: str = "agentmon"
    """Members may release and loosen, as root may."""
    sessions_per_user: int = Field(default=64, ge=1, le=1024)
    """Live sessions of one ordinary user."""


class Config(_Table):
    """The whole file."""

    daemon: DaemonConfig = DaemonConfig()


def load(path: Path = PATH, *, required: bool = False) -> Config:
    """Read the file. Raises `ConfigError` with one ``file:line: message`` per mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if required:
            raise ConfigError(f"there is no configuration file `{path}`") from None
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read `{path}`: {error}") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+), column (\d+)", str(error))
        where = f"{path}:{place[1]}:{place[2]}" if place else str(path)
        raise ConfigError(f"{where}: {str(error).partition(' (at')[0].lower()}") from error
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_mistake(path, text, item["loc"], item["msg"]) for item in error.errors())
        ) from error


def _mistake(path: Path, text: str, location: tuple[int | str, ...], message: str) -> str:
    key = str(location[-1])
    line = next(
        (n for n, line in enumerate(text.splitlines(), 1) if re.match(rf"\s*\[?{re.escape(key)}\b", line)),
        1,
    )
    if message == "Extra inputs are not permitted":
        known = list(DaemonConfig.model_fields if len(location) > 1 else Config.model_fields)
        near = difflib.get_close_matches(key, known, 1)
        message = f"unknown key `{key}`" + (f", did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}")
    else:
        message = f"`{key}`: {message[:1].lower()}{message[1:]}"
    return f"{path}:{line}:1: {message}"
