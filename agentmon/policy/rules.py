# SPDX-License-Identifier: Apache-2.0
"""A policy as it was written, checked and merged with its packs; and the variables that make it concrete."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NoReturn

from agentmon.errors import PolicyError
from agentmon.model.conditions import Hours, Risk
from agentmon.model.names import HostPattern
from agentmon.model.operations import Action, Operation
from agentmon.model.text import clean
from agentmon.policy.glob import Template

#: Characters of one message. What a policy quotes can be as long as the policy.
MAX_MESSAGE: Final = 600
_QUOTE: Final = re.compile("`([^`]*)`")
_PLACE: Final = re.compile(r"(.+?):(\d+):(\d+): ")
#: Errors that are looked for, and that are shown.
MAX_COMPLAINTS: Final = 100
SHOWN_COMPLAINTS: Final = 20


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something is written. Lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def error(self, message: str) -> PolicyError:
        """The error that something is wrong here, in one line that is fit to be shown."""
        return PolicyError(self.told(message))

    def told(self, message: str) -> str:
        """``file:line:column: message``. Policies are other people's text: it may be long, or move a cursor."""
        message = _QUOTE.sub(lambda m: f"`{m[1][:80]}…`" if len(m[1]) > 100 else m[0], message)
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE // 3]} … {message[-MAX_MESSAGE // 2 :]}"  # the remedy is at the end
        return clean(f"{self}: {message}")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A path pattern: its text, and its flat alternatives."""

    text: str
    place: Place
    alternatives: tuple[Template, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """An address range, with its own ports if it names them.

    ``address`` and ``length_bits`` are in the folded IPv6 space (IPv4 below ``::ffff:0:0/96``); ``family`` keeps
    the two apart, so that ``::/0`` does not mean IPv4.
    """

    text: str
    place: Place
    family: int  # 4 or 6
    address: int
    length_bits: int
    ports: tuple[int, int] | None = None  # inclusive


@dataclass(frozen=True, slots=True)
class Host:
    """A host by its name, or all hosts below a domain; with its own ports if it names them."""

    text: str
    place: Place
    pattern: HostPattern
    ports: tuple[int, int] | None = None  # inclusive


@dataclass(frozen=True, slots=True)
class User:
    """A user of the host: a name, a number, or ``{user}``. Which one that is, is known when the policy is bound."""

    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class Time:
    """Hours of the week."""

    text: str
    place: Place
    hours: Hours


@dataclass(frozen=True, slots=True)
class Requirement:
    """A mark that the session must have, and since what."""

    text: str
    place: Place
    mark: str
    since: str = ""


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a rule lets something through: so many at once, and one more each interval."""

    text: str
    place: Place
    count: int
    interval_s: float


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Empty ``paths``, or ``networks`` and ``hosts``, match every object. ``observe``: it blocks nothing yet.

    On exec, ``exe`` is already in ``paths``.
    """

    id: str
    pack: str
    place: Place
    operations: tuple[Operation, ...]
    action: Action
    reason: str = ""
    quiet: bool = False
    observe: bool = False
    paths: tuple[Pattern, ...] = ()
    exe: tuple[Pattern, ...] = ()
    argv: tuple[Pattern, ...] | None = None  # None: whatever they are
    parent: tuple[Pattern, ...] = ()
    users: tuple[User, ...] = ()
    risk: Risk | None = None
    times: tuple[Time, ...] = ()
    requires: tuple[Requirement, ...] = ()
    rate: Rate | None = None
    marks: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    hosts: tuple[Host, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    except_paths: tuple[Pattern, ...] = ()
    except_exe: tuple[Pattern, ...] = ()
    except_argv: tuple[Pattern, ...] | None = None
    except_parent: tuple[Pattern, ...] = ()
    except_users: tuple[User, ...] = ()
    except_risk: Risk | None = None
    except_times: tuple[Time, ...] = ()
    except_requires: tuple[Requirement, ...] = ()
    except_networks: tuple[Network, ...] = ()
    implied: bool = False  # nobody wrote it


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy with its packs merged. Its own rules come first, then each include's, as listed."""

    name: str
    description: str
    file: str
    rules: tuple[Rule, ...]
    defaults: Mapping[Operation, Action]  # what was said, here or in a pack
    packs: tuple[str, ...]  # everything merged, this policy first
    files: tuple[str, ...]
    observe: bool = False  # nothing at all is blocked


@dataclass(frozen=True, slots=True)
class Variables:
    """What ``{workspace}``, ``~`` and the others mean for one session. Paths are true absolute paths.

    Raises:
        PolicyError: a value is not absolute and normalised, or ``user`` is not a plain name.
    """

    workspace: bytes
    home: bytes
    user: bytes
    tmp: bytes = b"/tmp"

    def __post_init__(self) -> None:
        for name in ("workspace", "home", "tmp"):
            value: bytes = getattr(self, name)
            normal = value == os.path.normpath(value) and not value.startswith(b"//")
            if not value.startswith(b"/") or not normal or b"\0" in value:
                raise PolicyError(
                    f"`{{{name}}}` is `{os.fsdecode(value)}`; give an absolute path"
                    " without `.`, `..`, `//` or a final `/`"
                )
        if not self.user or b"/" in self.user or self.user in (b".", b".."):
            raise PolicyError(f"`{{user}}` is `{os.fsdecode(self.user)}`; give a user name")

    @classmethod
    def of(cls, *, workspace: str, home: str, user: str, tmp: str = "/tmp") -> Variables:  # noqa: S108  # a name
        """From text as the operating system gives it."""
        return cls(*(os.fsencode(v) for v in (workspace, home, user, tmp)))

    def mapping(self) -> dict[str, bytes]:
        """Variable name to value."""
        return {"workspace": self.workspace, "home": self.home, "user": self.user, "tmp": self.tmp}


@dataclass(slots=True)
class Complaints:
    """Errors of one policy, collected so that all are shown at once (of very many, the first)."""

    found: list[tuple[Place, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # lines of errors that were raised elsewhere

    def add(self, place: Place, message: str) -> None:
        """Note one error. Raises `PolicyError` if there are so many that looking for more would only take time."""
        self.found.append((place, message))
        if len(self.found) >= MAX_COMPLAINTS:
            self.raise_if_any()

    def adopt(self, error: PolicyError) -> None:
        """Note one that was raised."""
        self.others += str(error).splitlines()

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Note a `PolicyError` that is raised meanwhile, and go on."""
        try:
            yield
        except PolicyError as error:
            self.adopt(error)

    def stop(self, place: Place, message: str) -> NoReturn:
        """Note the last one: what comes after it cannot be looked at. Raises `PolicyError`."""
        self.found.append((place, message))
        self.raise_if_any()
        raise AssertionError("there is one")

    def raise_if_any(self) -> None:
        """Raise a PolicyError with one ``file:line:column: message`` a line, in the order of the text."""
        told = sorted(set(self.found))
        if len(told) > SHOWN_COMPLAINTS:
            place, _ = told[SHOWN_COMPLAINTS]
            told[SHOWN_COMPLAINTS:] = [(place, "more errors from here on; mend those above first")]
        others = sorted(dict.fromkeys(self.others), key=_written)[:SHOWN_COMPLAINTS]
        if told or others:
            raise PolicyError("\n".join([*(place.told(message) for place, message in told), *others]))


def _written(line: str) -> tuple[str, int, int]:
    """Where what a line of an error is of stands."""
    place = _PLACE.match(line)
    return (place[1], int(place[2]), int(place[3])) if place else ("", 0, 0)
