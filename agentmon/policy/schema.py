# SPDX-License-Identifier: Apache-2.0
"""The shape of a policy file (language version 1), and what to say when it has another.

Every scalar arrives as text (`load` keeps YAML from guessing types), so ``on``, ``no`` and ``22:22`` mean themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agentmon.model.conditions import Risk
from agentmon.model.operations import OPERATIONS, Action, Operation
from agentmon.policy.glob import closest, did_you_mean
from agentmon.policy.rules import MAX_COMPLAINTS

#: Words of the language to come: a policy that uses them must not be half understood.
LATER_KEYS: Final[Mapping[str, str]] = {
    "labels": "deny reading the paths instead",
    "label": "deny reading the paths instead",
    "steps": "leave it out",
    "declassify": "leave it out",
    "unless_since": "write `when: {requires: [DONE since CHANGED]}`, of two marks",
    "rules": "carve the hole with `paths` or `cidrs`",
}
OPERATION_WORDS: Final = tuple(o.word for o in OPERATIONS)
MODE_WORDS: Final = ("enforce", "observe")
ACTION_WORDS: Final = tuple(a.word for a in Action)

MAX_PROSE: Final = 2_000

_TRUE: Final = ("true", "yes", "on")
_FALSE: Final = ("false", "no", "off")

Location = tuple[int | str, ...]


def _shown(value: str) -> str:
    """Text for people: it reaches terminals and logs as it is, so it must not move a cursor or turn lines around."""
    for char in value:
        if not char.isprintable() and char not in "\n\t":
            raise ValueError(f"has the character U+{ord(char):04X}, which no one can see; take it out")
    return value


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _given(value: Any) -> Any:
    if value is None:
        # not as if the key were not there: a rule without objects matches all of them
        raise ValueError("is empty; leave it out to match every object, or name some")
    return _one_or_more(value)


def _arguments(value: Any) -> Any:
    if value is None:
        raise ValueError("is empty; leave it out for whatever arguments, or write `[]` for none")
    return _one_or_more(value)


def _truth(value: Any) -> Any:
    word = value.lower() if isinstance(value, str) else value
    return True if word in _TRUE else False if word in _FALSE else value


def _include(value: Any) -> Any:
    if isinstance(value, dict) and "pack" not in value:
        raise ValueError("must be a list; write such as `[base, {pack: escape, without: [some-rule]}]`")
    if isinstance(value, (str, dict)):
        value = [value]
    if isinstance(value, list):
        return [{"pack": v} if isinstance(v, str) else v for v in value]
    return value


Truth = Annotated[bool, BeforeValidator(_truth)]
Texts = Annotated[list[str], BeforeValidator(_one_or_more)]
Objects = Annotated[list[str] | None, BeforeValidator(_given)]
#: An empty list means something: no arguments.
Arguments = Annotated[list[str] | None, BeforeValidator(_arguments)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


#: For people. The bounds keep a session's messages short.
Prose = Annotated[str, Field(max_length=MAX_PROSE), AfterValidator(_shown)]


class Model(BaseModel):
    """What every part of a file is: no unknown keys, no conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Include(Model):
    """A pack to merge, and the ids of its rules to leave out."""

    pack: Id
    without: Texts = []


class Except(Model):
    """The hole in a rule: it does not apply where any one of these matches."""

    paths: Texts = []
    exe: Texts = []
    argv: Arguments = None
    parent: Texts = []
    user: Texts = []
    risk: str | None = None
    time: Texts = []
    requires: Texts = []
    cidrs: Texts = []


class When(Model):
    """Circumstances: the rule applies where all of these are so."""

    risk: str | None = None
    time: Texts = []
    requires: Texts = []
    rate: str | None = None


class RuleModel(Model):
    """One rule as written."""

    id: Id
    on: Texts
    action: str
    paths: Objects = None
    exe: Objects = None
    argv: Arguments = None
    parent: Objects = None
    user: Objects = None
    when: When = When()
    marks: Objects = None
    cidrs: Objects = None
    hosts: Objects = None
    ports: Objects = None
    carve: Except = Field(default=Except(), alias="except")
    reason: Prose = ""
    mode: str = "enforce"
    quiet: Truth = False


class PolicyModel(Model):
    """One policy file as written."""

    policy: Id
    description: Prose = ""
    mode: str = "enforce"
    include: Annotated[list[Include], BeforeValidator(_include)] = []
    default: dict[str, str] = {}
    rules: list[RuleModel] = []


def keys(model: type[BaseModel]) -> list[str]:
    """Keys as they are written."""
    return [f.alias or name for name, f in model.model_fields.items()]


def _known_keys(location: Location) -> list[str]:
    if "except" in location[:-1]:
        return keys(Except)
    if "when" in location[:-1]:
        return keys(When)
    if len(location) > 1:
        return keys(RuleModel if location[0] == "rules" else Include)
    return keys(PolicyModel)


def rule_keys(location: Location) -> list[str]:
    """The keys that may stand at a place inside of a rule."""
    return _known_keys(("rules", 0, *location))


Shape = TypeVar("Shape", bound=BaseModel)
Error = tuple[Location, bool, str]


def validate(data: Any, torn: Collection[Location] = ()) -> tuple[PolicyModel | None, list[Error]]:
    """Check plain data: (the model, or None; errors as (location, whether the key is meant, message)).

    ``torn``: mappings of which keys are known to be missing.
    """
    return validate_as(PolicyModel, data, _known_keys, torn)


def validate_as(
    model: type[Shape], data: Any, known: Callable[[Location], list[str]], torn: Collection[Location] = ()
) -> tuple[Shape | None, list[Error]]:
    """The same for another kind of file; ``known`` are the keys that may stand in the place of an unknown one."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        found = [dict(e) for e in error.errors(include_url=False)[:MAX_COMPLAINTS]]
    unknown = [_location(e) for e in found if e["type"] == "extra_forbidden"]
    missing: dict[Location, list[str]] = {}
    for e in found:
        if e["type"] == "missing":
            *parent, key = _location(e)
            # a key mistyped is one mistake, not one too many and one too few
            if tuple(parent) not in torn and not any(
                u[:-1] == tuple(parent) and closest(str(u[-1]), known(u)) == key for u in unknown
            ):
                missing.setdefault(tuple(parent), []).append(str(key))
    said = [_message(e, known) for e in found if e["type"] != "missing"]
    return None, said + [(parent, False, _missing(keys)) for parent, keys in missing.items()]


def _missing(keys: list[str]) -> str:
    names = " and ".join(f"`{key}`" for key in keys)
    return f"{names} {'is' if len(keys) == 1 else 'are'} missing; add {' and '.join(f'`{key}: …`' for key in keys)}"


def _location(error: Mapping[str, Any]) -> Location:
    return tuple(p for p in error["loc"] if not (isinstance(p, str) and p.startswith("function-")))


def _message(error: Mapping[str, Any], known: Callable[[Location], list[str]]) -> Error:
    location = _location(error)
    key = str(location[-1]) if location else ""
    match error["type"]:
        case "extra_forbidden":
            if key in LATER_KEYS and known is _known_keys:
                return location, True, f"`{key}` is not in this version of the language; {LATER_KEYS[key]}"
            if key in When.model_fields and len(location) == 3 and location[0] == "rules":
                return location, True, f"`{key}` belongs into `when`; write `when: {{{key}: …}}`"
            return location, True, f"unknown key `{key}`{did_you_mean(key, known(location))}"
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
            if error["input"] is None:
                return location, False, f"{_what(location)} is empty; write its text, or take it out"
            return location, False, f"{_what(location)} must be text, not {_kind(error['input'])}; write one text"
        case "too_short":
            return location, False, f"{_what(location)} is empty; add one"
        case "string_too_long":
            most = error["ctx"]["max_length"]
            return location, False, f"{_what(location)} has more than {most} characters; shorten it"
        case "value_error":
            return location, False, f"{_what(location)} {error['ctx']['error']}"
        case "list_type":
            more = (
                f", and put a pattern that is `{{{next(iter(error['input']))}}}` in quotes"
                if _braced(error["input"])
                else ""
            )
            wanted = "a list" if key in ("rules", "cases", "steps") else "one value or a list"
            return (
                location,
                False,
                f"{_what(location)} must be {wanted}, not {_kind(error['input'])}; {_HELP_LIST}{more}",
            )
        case "bool_type":
            return location, False, f"`{key}` must be `true` or `false`, not {_kind(error['input'])}; write one of them"
        case "model_type" | "dict_type" | "model_attributes_type":
            what = _what(location) if location else "the file"
            kind = _kind(error["input"])
            return location, False, f"{what} must be a mapping of keys, not {kind}; write `key: value`, a line each"
        case _:
            return (
                location,
                False,
                f"{_what(location)}: {str(error['msg']).lower()}; docs/policy.md says what it may be",
            )


_HELP_LIST: Final = "start each item with `- `"


def _braced(value: Any) -> bool:
    """Whether that is what YAML makes of a lone ``{workspace}``."""
    return isinstance(value, dict) and list(value.values()) == [None]


def _what(location: Location) -> str:
    if not location:
        return "this"
    return f"`{location[-1]}`" if isinstance(location[-1], str) else "each item here"


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    return f"`{value}`" if isinstance(value, str) else "a list" if isinstance(value, Sequence) else "a mapping"


def operation(word: str) -> Operation | str:
    """The operation of that name, or what is wrong with it."""
    if word in OPERATION_WORDS:
        return Operation[word.upper()]
    return f"unknown operation `{word}`{did_you_mean(word, OPERATION_WORDS)}"


def action(word: str) -> Action | str:
    """The action of that name, or what is wrong with it."""
    if word in ACTION_WORDS:
        return Action[word.upper()]
    return f"unknown action `{word}`{did_you_mean(word, ACTION_WORDS)}"


def risk(word: str) -> Risk | str:
    """The risk of that name, or what is wrong with the name."""
    words = [level.word for level in Risk]
    return Risk[word.upper()] if word in words else f"unknown risk `{word}`{did_you_mean(word, words)}"


def observes(word: str) -> bool | str:
    """Whether the mode of that name is the one that blocks nothing, or what is wrong with the name."""
    if word in MODE_WORDS:
        return word == "observe"
    return f"unknown mode `{word}`{did_you_mean(word, MODE_WORDS)}"
