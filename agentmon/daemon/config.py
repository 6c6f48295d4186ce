# SPDX-License-Identifier: Apache-2.0
"""``/etc/agentmon/agentmon.toml``. A missing file is fine: the defaults are meant to be used."""

from __future__ import annotations

import difflib
import pwd
import re
import tomllib
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agentmon.errors import ConfigError
from agentmon.kernel.objects import PARK_MS

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


class HoldConfig(_Table):
    """``[hold]``: how long what is held waits, and how much an agent may ask of people."""

    park_ms: int = Field(default=PARK_MS, ge=50, le=60_000)
    """Milliseconds: what is not frozen by then is denied, in the kernel. More for slow hosts."""
    open_per_session: int = Field(default=16, ge=1, le=512)
    """Approvals of one session that may wait at once; what is beyond is denied."""
    asked_per_minute: int = Field(default=60, ge=1, le=100_000)
    """Approvals that one session may ask for within a minute; what is beyond is denied."""
    expire_s: float = Field(default=600.0, ge=1, le=31 * 86400)
    """What nobody answered by then is denied."""


class NotifyConfig(_Table):
    """``[notify]``: who is told that something is held."""

    desktop: bool = False
    """A bubble on the desktop of the session's owner."""
    webhook: str = ""
    secret_file: Path | None = None
    """What the webhook's messages are signed with."""
    command: tuple[str, ...] = ()
    """A hook; the message is on its standard input."""
    command_user: str = ""
    """Whom it runs as, in place of root."""

    @field_validator("webhook")
    @classmethod
    def _check_url(cls, value: str) -> str:
        try:
            url = urlsplit(value)
            good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            good = False
        if value and (
            not good or url.username is not None or not value.isascii() or re.search(r"[\s\x00-\x1f]", value)
        ):
            raise ValueError("is no address of a web server; write such as `https://hooks.example.com/agentmon`")
        return value

    @field_validator("command")
    @classmethod
    def _check_command(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value and not value[0].startswith("/"):
            raise ValueError("must start with the absolute path of a program")
        return value

    @field_validator("command_user")
    @classmethod
    def _check_user(cls, value: str) -> str:
        try:
            if value:
                pwd.getpwnam(value)
        except KeyError:
            raise ValueError(f"there is no user `{value}`") from None
        return value

    @model_validator(mode="after")
    def _check_secret(self) -> Self:
        if self.webhook and self.secret_file is None:
            raise ValueError("`webhook` needs a `secret_file`, to sign what it sends")
        return self


class FingerprintConfig(_Table):
    """``[fingerprint]``: sessions that are watched by what is usual for their agent."""

    directory: Path = Path("/var/lib/agentmon/profiles")
    """Where baselines are."""
    profiles: dict[str, str] = {}
    """The baseline of sessions that name none: by the name of their policy."""
    rate: float = Field(default=0.01, gt=0, lt=1)
    """False alerts per session to accept of the level `high`, if the agent behaves as in its baseline."""
    elevated_rate: float = Field(default=0.05, gt=0, lt=1)
    """The same of `elevated`."""
    alerts_per_day: int = Field(default=20, ge=0, le=10_000)
    """Rises of the risk that one owner is told in a day; what is beyond counts all the same, and is in the log."""

    learn_sessions: int = Field(default=30, ge=10, le=10_000)
    """Sessions of a new agent that its first baseline is made of: n promise no less than one false alert in n + 1."""

    @model_validator(mode="after")
    def _check_rates(self) -> Self:
        if self.elevated_rate < self.rate:
            raise ValueError("`elevated_rate` must not be below `rate`: who is at high risk is at elevated risk")
        return self


class Config(_Table):
    """The whole file."""

    daemon: DaemonConfig = DaemonConfig()
    hold: HoldConfig = HoldConfig()
    notify: NotifyConfig = NotifyConfig()
    fingerprint: FingerprintConfig = FingerprintConfig()


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
    names = [part for part in location if isinstance(part, str)]
    table, key = names[0], names[-1]
    line = _line(text, table, 1)
    if len(names) > 1:
        line = _line(text, key, line)
    if message == "Extra inputs are not permitted":
        tables: dict[str, type[_Table]] = {
            "daemon": DaemonConfig, "hold": HoldConfig, "notify": NotifyConfig, "fingerprint": FingerprintConfig,
        }  # fmt: skip
        known = list(tables[table].model_fields if len(names) > 1 else Config.model_fields)
        near = difflib.get_close_matches(key, known, 1)
        message = f"unknown key `{key}`" + (f", did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}")
    else:
        message = message.removeprefix("Value error, ")
        message = f"`{key}`: {message[:1].lower()}{message[1:]}"
    return f"{path}:{line}:1: {message}"


def _line(text: str, word: str, first: int) -> int:
    """Where a table or key stands, from a line on; that line if it is not found."""
    lines = enumerate(text.splitlines(), 1)
    return next((n for n, line in lines if n >= first and re.match(rf"\s*\[?{re.escape(word)}\b", line)), first)
