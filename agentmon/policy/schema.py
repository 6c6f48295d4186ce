# SPDX-License-Identifier: Apache-2.0
"""The shape of a policy file (language version 1), and what to say when it has another.

Every scalar arrives as text (`load` keeps YAML from guessing types), so ``on``, ``no`` and ``22:22`` mean themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agentmon.model.operations import OPERATIONS, Action, Operation
from agentmon.policy.glob import did_you_mean

#: Words of the language to come: a policy that uses them must not be half understood.
LATER_KEYS: Final[Mapping[str, str]] = {
    "hosts": "use `cidrs` with addresses",
    "when": "make the rule unconditional",
    "labels": "deny reading the paths instead",
    "label": "deny reading the paths instead",
    "argv": "name the program with `paths`",
    "marks": "leave it out",
    "requires": "leave it out",
    "steps": "leave it out",
    "declassify": "leave it out",
    "rate": "leave it out",
    "rules": "carve the hole with `paths` or `cidrs`",
}
OPERATION_WORDS: Final = tuple(o.word for o in OPERATIONS)
LATER_OPERATIONS: Final = tuple(o.word for o in Operation if o not in OPERATIONS)
ACTION_WORDS: Final = tuple(a.word for a in Action if a is not Action.HOLD)

_TRUE: Final = ("true", "yes", "on")
_FALSE: Final = ("false", "no", "off")

Location = tuple[int | str, ...]


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _truth(value: Any) -> Any:
    word = value.lower() if isinstance(value, str) else value
    return True if word in _TRUE else False if word in _FALSE else value


def _include(value: Any) -> Any:
    if isinstance(value, (str, dict)):
        value = [value]
    if isinstance(value, list):
        return [{"pack": v} if isinstance(v, str) else v for v in value]
    return value


Texts = Annotated[list[str], BeforeValidator(_one_or_more)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Include(_Model):
    """A pack to merge, and the ids of its rules to leave out."""

    pack: Id
    without: Texts = []


class Except(_Model):
    """The hole in a rule: it does not apply where any one of these matches."""

    paths: Texts = []
    exe: Texts = []
    cidrs: Texts = []


class RuleModel(_Model):
    """One rule as written."""

    id: Id
    on: Texts
    action: str
    paths: Texts | None = None
    exe: Texts | None = None
    cidrs: Texts | None = None
    ports: Texts | None = None
    carve: Except = Field(default=Except(), alias="except")
    reason: str = ""
    quiet: Annotated[bool, BeforeValidator(_truth)] = False


class PolicyModel(_Model):
    """One policy file as written."""

    policy: Id
    description: str = ""
    include: Annotated[list[Include], BeforeValidator(_include)] = []
    default: dict[str, str] = {}
    rules: list[RuleModel] = []


def _keys(model: type[BaseModel]) -> list[str]:
    return [f.alias or name for name, f in model.model_fields.items()]


def _known_keys(location: Location) -> list[str]:
    if "except" in location[:-1]:
        return _keys(Except)
    if len(location) > 1:
        return _keys(RuleModel if location[0] == "rules" else Include)
    return _keys(PolicyModel)


def validate(data: Any) -> tuple[PolicyModel | None, list[tuple[Location, bool, str]]]:
    """Check plain data: (the model, or None; errors as (location, whether the key is meant, message))."""
    try:
        return PolicyModel.model_validate(data), []
    except ValidationError as error:
        return None, [_message(dict(e)) for e in error.errors(include_url=False)]


def _message(error: Mapping[str, Any]) -> tuple[Location, bool, str]:
    location: Location = tuple(p for p in error["loc"] if not (isinstance(p, str) and p.startswith("function-")))
    key = str(location[-1]) if location else ""
    match error["type"]:
        case "extra_forbidden":
            if key in LATER_KEYS:
                return location, True, f"`{key}` is not in this version of the language; {LATER_KEYS[key]}"
            return location, True, f"unknown key `{key}`{did_you_mean(key, _known_keys(location))}"
        case "missing":
            return location[:-1], False, f"`{key}` is missing; add `{key}: …`"
        case "string_pattern_mismatch":
            return (
                location,
                False,
                (
                    f"`{error['input']}` is not a name; use up to 64 letters, digits,"
                    " `-`, `_` and `.`, a letter or digit first"
                ),
            )
        case "string_type":
            return location, False, f"`{key}` must be text, not {_kind(error['input'])}"
        case "list_type":
            return location, False, f"`{key}` must be one value or a list, not {_kind(error['input'])}"
        case "bool_type":
            return location, False, f"`{key}` must be `true` or `false`, not `{error['input']}`"
        case "model_type" | "dict_type" | "model_attributes_type":
            what = "a policy" if not location else f"`{key}`" if isinstance(location[-1], str) else "each item here"
            return location, False, f"{what} must be a mapping of keys, not {_kind(error['input'])}"
        case _:
            return location, False, str(error["msg"]).lower()


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    return f"`{value}`" if isinstance(value, str) else "a list" if isinstance(value, Sequence) else "a mapping"


def operation(word: str) -> Operation | str:
    """The operation of that name, or what is wrong with it."""
    if word in OPERATION_WORDS:
        return Operation[word.upper()]
    if word in LATER_OPERATIONS:
        return f"operation `{word}` is not in this version; known: " + ", ".join(f"`{w}`" for w in OPERATION_WORDS)
    return f"unknown operation `{word}`{did_you_mean(word, OPERATION_WORDS)}"


def action(word: str) -> Action | str:
    """The action of that name, or what is wrong with it."""
    if word in ACTION_WORDS:
        return Action[word.upper()]
    if word == "hold":
        return "action `hold` is not supported yet; use `deny`"
    return f"unknown action `{word}`{did_you_mean(word, ACTION_WORDS)}"
