# SPDX-License-Identifier: Apache-2.0
"""A plan as it was written, checked."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agentmon.model.operations import PART_OF_WRITE, Action, Operation
from agentmon.policy.rules import Host, Pattern, Place, Rule

#: Kinds of operations: what a step's rules allow of one closes the rest of it.
RUNS: Final = (Operation.EXEC, Operation.ANON_EXEC)
CHANGES: Final = (Operation.WRITE, Operation.CREATE, *PART_OF_WRITE)
REACHES: Final = (Operation.CONNECT, Operation.SEND)
SERVES: Final = (Operation.BIND, Operation.LISTEN)
NETWORK: Final = (*REACHES, *SERVES)
KINDS: Final = (RUNS, (Operation.READ,), CHANGES, REACHES, SERVES, (Operation.UNIX,))


class OnViolation(enum.StrEnum):
    """What happens to an action that a plan forbids."""

    DENY = "deny"
    HOLD = "hold"
    KILL = "kill"
    PAUSE = "pause"  # denied, and the session is frozen until somebody lets it go on

    @property
    def action(self) -> Action:
        """What becomes of the action itself."""
        return {OnViolation.HOLD: Action.HOLD, OnViolation.KILL: Action.KILL}.get(self, Action.DENY)


@dataclass(frozen=True, slots=True)
class Start:
    """One way to start a step. ``argv`` None: whatever the arguments are."""

    place: Place
    exe: tuple[Pattern, ...] = ()
    argv: tuple[Pattern, ...] | None = None
    mark: bool = False

    @property
    def text(self) -> str:
        """In one line, for people."""
        if self.mark:
            return "mark"
        names = ",".join(pattern.text for pattern in self.exe)
        words = [] if self.argv is None else [pattern.text or "''" for pattern in self.argv]
        return " ".join([names, *words])


@dataclass(frozen=True, slots=True)
class Limits:
    """Constraints that are counted. None: as much as one likes."""

    max_write_bytes: int | None = None
    max_files: int | None = None
    max_procs: int | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What may be done. ``defaults``: whether an operation that no rule names is left to the policy."""

    rules: tuple[Rule, ...] = ()
    defaults: Mapping[Operation, bool] = field(default_factory=dict)
    read_only: bool = False
    no_network: bool = False
    no_exec: bool = False
    hosts: tuple[Host, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One step. ``needs``: steps that must be done; ``after``: that must have ended, done or not.

    ``exits`` None: any status counts as done.
    """

    id: str
    place: Place
    part: Part
    starts: tuple[Start, ...]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    description: str = ""
    limits: Limits = Limits()
    once: bool = False
    repeat: bool = False
    exits: frozenset[int] | None = frozenset({0})
    on_violation: OnViolation = OnViolation.DENY

    @property
    def waits(self) -> tuple[str, ...]:
        """The steps that come before it."""
        return (*self.needs, *self.after)

    @property
    def constraints(self) -> list[str]:
        """In words, for people."""
        part, limits = self.part, self.limits
        words = {
            "read-only": part.read_only, "no-network": part.no_network, "no-exec": part.no_exec,
            "once": self.once, "repeat": self.repeat,
        }  # fmt: skip
        said = [word for word, so in words.items() if so]
        said += [f"hosts {', '.join(host.text for host in part.hosts)}"] if part.hosts else []
        numbers = (("max-write", limits.max_write_bytes, " B"), ("max-files", limits.max_files, ""),
                   ("max-procs", limits.max_procs, ""), ("timeout", limits.timeout_s, " s"))  # fmt: skip
        said += [f"{word} {number:.0f}{unit}" for word, number, unit in numbers if number is not None]
        if self.exits != frozenset({0}):
            said.append("exit " + ("any" if self.exits is None else ",".join(map(str, sorted(self.exits)))))
        if self.on_violation is not OnViolation.DENY:
            said.append(f"on-violation {self.on_violation}")
        return said


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan, its steps as in the file."""

    name: str
    file: str
    steps: tuple[Step, ...]
    agent: Part = Part()
    description: str = ""
    on_violation: OnViolation = OnViolation.DENY

    def needed(self) -> dict[str, tuple[str, ...]]:
        """By step, the steps that it waits for."""
        return {step.id: step.waits for step in self.steps}
