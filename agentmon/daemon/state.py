# SPDX-License-Identifier: Apache-2.0
"""What the next daemon must know of live sessions if this one is killed: one JSON file a session."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from agentmon.engine import Question
from agentmon.errors import AgentmonError
from agentmon.model.events import ProcessKey
from agentmon.model.operations import Action
from agentmon.model.tables import RuleInfo

_VERSION = 1


@dataclass(slots=True)
class InForce:
    """What a session's file says of the policy that it is under."""

    policy: str
    policy_slot: int
    generation: int
    digest: str
    text: str
    file: str
    rules: list[RuleInfo]


@dataclass(slots=True)
class SessionState:
    """A live session, as written to ``/run/agentmon/sessions``."""

    id: str
    slot: int
    serial: int
    policy: str
    policy_slot: int
    generation: int
    digest: str  # of the compiled policy
    text: str  # of the policy, or "" for an installed pack
    file: str
    workspace: str
    home: str
    user: str
    uid: int
    command: str
    started_ns: int
    rules: list[RuleInfo] = field(default_factory=list)
    frozen: list[ProcessKey] = field(default_factory=list)  # stopped for enrolment right now
    #: While a reload is under way: the policy before it. The kernel knows which of the two is in force.
    before: InForce | None = None
    first_generation: int = 0  # that it was enrolled under
    by_root: bool = False  # who put it under the policy in force
    profile: str = ""  # the baseline that it is watched by
    learn: str = ""  # the baseline that learns from it
    agent: dict[str, str] | None = None  # its program, for that
    floor: str = "normal"  # the risk that an operator gave it
    plan_text: str = ""  # what it follows besides; "": nothing
    plan_file: str = ""
    paused: str = ""  # why its plan stopped it; "": it goes on

    @property
    def in_force(self) -> InForce:
        """The part that a reload changes."""
        return InForce(self.policy, self.policy_slot, self.generation, self.digest, self.text, self.file, self.rules)

    def put_under(self, other: InForce) -> None:
        """Change that part."""
        for item in fields(InForce):
            setattr(self, item.name, getattr(other, item.name))


class StateDirectory:
    """The directory of these files. Only root reads it: policies may tell secrets of the host."""

    def __init__(self, path: Path) -> None:
        """Raises `AgentmonError` when it cannot be made."""
        self.path = path / "sessions"
        self._questions = path / "questions.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise AgentmonError(f"cannot make `{self.path}`: {error}; agentmon needs root") from error

    def save(self, state: SessionState) -> None:
        """Write atomically. Raises `OSError`."""
        _write(self.path / f"{state.id}.json", {"version": _VERSION, **asdict(state)})

    def remove(self, session_id: str) -> None:
        """Forget a session."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / f"{session_id}.json").unlink()

    def save_questions(self, questions: list[Question]) -> None:
        """Write what agents asked. Without room for it, the next daemon does not know: no reason to fail."""
        with contextlib.suppress(OSError):
            _write(self._questions, {"version": _VERSION, "questions": [asdict(question) for question in questions]})

    def load_questions(self) -> list[Question]:
        """What agents asked the daemon before this one; none if the file cannot be used."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(self._questions.read_text(encoding="utf-8"))
            if data["version"] == _VERSION:
                return [Question(**question) for question in data["questions"]]
        return []

    def load(self) -> Iterator[SessionState | str]:
        """Every session found; a string says why a file could not be used."""
        for path in sorted(self.path.glob("s-*.json")):
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                if data.pop("version") != _VERSION:
                    raise ValueError("another version")
                data["rules"] = _rules(data["rules"])
                if before := data.get("before"):
                    data["before"] = InForce(**{**before, "rules": _rules(before["rules"])})
                data["frozen"] = [ProcessKey(**key) for key in data["frozen"]]
                yield SessionState(**data)
            except (OSError, ValueError, KeyError, TypeError) as error:
                yield f"`{path}` cannot be used: {error}"


def _write(target: Path, data: dict[str, Any]) -> None:
    new = target.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(data, file)
    os.replace(new, target)


def _rules(found: list[dict[str, Any]]) -> list[RuleInfo]:
    return [RuleInfo(**{**rule, "action": Action(rule["action"])}) for rule in found]
