# SPDX-License-Identifier: Apache-2.0
"""The shape of a plan file. As in a policy, every scalar arrives as text."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from agentmon.policy.schema import Arguments, Id, Location, Model, Objects, Prose, Texts, Truth, keys

#: A way to start that is no program: the agent says so.
MARK = "mark"


def _starts(value: Any) -> Any:
    if value is None:
        raise ValueError('is empty; name a program such as `{exe: "**/git"}`, or write `mark`')
    if isinstance(value, (str, dict)):
        value = [value]
    if isinstance(value, list):
        return [{"mark": "true"} if each == MARK else each for each in value]
    return value


def _way(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError('is no way to start; write a program as `{exe: "**/git"}`, or `mark`')  # noqa: TRY004  # pydantic's
    return value


def _said(value: Any) -> Any:
    if value is None:
        # not as if the key were not there: that would be no limit at all
        raise ValueError("is empty; give it a value, or leave it out")
    return value


#: A word that is there, if its key is.
Word = Annotated[str | None, BeforeValidator(_said)]


def _never_empty(remedy: str) -> BeforeValidator:
    """Empty is no list, and here it would not mean everything either."""

    def there(value: Any) -> Any:
        if value is None:
            raise ValueError(f"is empty; {remedy}")
        return value

    return BeforeValidator(there)


class StartModel(Model):
    """One way to start a step: a program, by its file and its arguments; or a mark."""

    exe: Annotated[Objects, _never_empty("name a program such as `**/git`")] = None
    argv: Arguments = None
    mark: Truth = False


class PartModel(Model):
    """What may be done: in a step, or by the agent outside of all steps. Rules are validated one by one."""

    rules: list[Any] = Field(default_factory=list)
    default: dict[str, str] = Field(default_factory=dict)
    read_only: Truth = Field(default=False, alias="read-only")
    no_network: Truth = Field(default=False, alias="no-network")
    no_exec: Truth = Field(default=False, alias="no-exec")
    hosts: Annotated[Objects, _never_empty("write `no-network: true`, or name a host")] = None


class StepModel(PartModel):
    """One step as written."""

    id: Id
    description: Prose = ""
    needs: Texts = Field(default_factory=list)
    after: Texts = Field(default_factory=list)
    starts: Annotated[list[Annotated[StartModel, BeforeValidator(_way)]], BeforeValidator(_starts)] = Field(
        default_factory=list
    )
    max_write: Word = Field(default=None, alias="max-write")
    max_files: Word = Field(default=None, alias="max-files")
    max_procs: Word = Field(default=None, alias="max-procs")
    timeout: Word = None
    once: Truth = False
    repeat: Truth = False
    exit: Texts = Field(default_factory=lambda: ["0"])
    on_violation: Word = Field(default=None, alias="on-violation")


class PlanModel(Model):
    """One plan file as written. Its parts are validated one by one, so that a mistake in one hides none in others."""

    plan: Id
    description: Prose = ""
    on_violation: str = Field(default="deny", alias="on-violation")
    agent: dict[str, Any] = Field(default_factory=dict)
    steps: list[Any] = Field(default_factory=list)


def plan_keys(_location: Location) -> list[str]:
    """The keys of a plan."""
    return keys(PlanModel)


def step_keys(location: Location) -> list[str]:
    """The keys that may stand at a place inside of a step."""
    return keys(StartModel) if location[:1] == ("starts",) else keys(StepModel)


def part_keys(_location: Location) -> list[str]:
    """The keys of what the agent may do outside of all steps."""
    return keys(PartModel)
