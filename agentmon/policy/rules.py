# SPDX-License-Identifier: Apache-2.0
"""A policy as it was written, checked and merged with its packs; and the variables that make it concrete."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from agentmon.errors import PolicyError
from agentmon.model.operations import Action, Operation
from agentmon.policy.glob import Template


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something is written. Lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


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
class Rule:
    """One rule. Empty ``paths`` and ``networks`` match every object; on exec, ``exe`` is already in ``paths``."""

    id: str
    pack: str
    place: Place
    operations: tuple[Operation, ...]
    action: Action
    reason: str = ""
    quiet: bool = False
    paths: tuple[Pattern, ...] = ()
    exe: tuple[Pattern, ...] = ()
    networks: tuple[Network, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    except_paths: tuple[Pattern, ...] = ()
    except_exe: tuple[Pattern, ...] = ()
    except_networks: tuple[Network, ...] = ()


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
                    f"`{{{name}}}` is `{os.fsdecode(value)}`: give an absolute path"
                    " without `.`, `..`, `//` or a final `/`"
                )
        if not self.user or b"/" in self.user or self.user in (b".", b".."):
            raise PolicyError(f"`{{user}}` is `{os.fsdecode(self.user)}`: give a user name")

    @classmethod
    def of(cls, *, workspace: str, home: str, user: str, tmp: str = "/tmp") -> Variables:  # noqa: S108  # a name
        """From text as the operating system gives it."""
        return cls(*(os.fsencode(v) for v in (workspace, home, user, tmp)))

    def mapping(self) -> dict[str, bytes]:
        """Variable name to value."""
        return {"workspace": self.workspace, "home": self.home, "user": self.user, "tmp": self.tmp}


@dataclass(slots=True)
class Complaints:
    """Errors of one policy, collected so that all are shown at once."""

    found: list[tuple[Place, str]] = field(default_factory=list)

    def add(self, place: Place, message: str) -> None:
        """Note one error."""
        self.found.append((place, message))

    def raise_if_any(self) -> None:
        """Raise a PolicyError with one ``file:line:column: message`` a line, in the order of the text."""
        if self.found:
            raise PolicyError("\n".join(f"{place}: {message}" for place, message in sorted(set(self.found))))
