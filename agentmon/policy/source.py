# SPDX-License-Identifier: Apache-2.0
"""A policy file: what is in it, and where. Of one that has not the shape of a policy, what has is still looked at."""

from __future__ import annotations

from typing import Any

from agentmon.policy import schema
from agentmon.policy.document import Document
from agentmon.policy.rules import MAX_COMPLAINTS, Place
from agentmon.policy.schema import Error, Location, PolicyModel

#: Without these a rule says nothing.
_RULE_NEEDS = ("id", "on", "action")


class RuleSource(Document):
    """A file with rules in it. ``pack``: whose rules they are; ``elements``: what braces add to its patterns."""

    pack: str = ""
    elements: int = 0


class Source(RuleSource):
    """One policy file: its model, and where each part of it stands.

    If it has ``complaints``, the model is what is left without the parts that they are of.

    Raises:
        PolicyError: nothing is left to be looked at.
    """

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text, file, go_on=True)
        model, errors = schema.validate(self.data, self.torn)
        for location, is_key, message in errors:
            self.complaints.add(self.place(location, key=is_key), message)
        # where each rule and include of the model stands
        self.rule_numbers = _numbers(self.data, "rules")
        self.include_numbers = _numbers(self.data, "include")
        self.named = True
        if model is None:
            model = self._rest(errors)
        self.model: PolicyModel = model
        self.pack = model.policy

    def rule_location(self, number: int) -> Location:
        """Where a rule of the model stands in the file."""
        return "rules", self.rule_numbers[number]

    def include_place(self, number: int, *at: int | str) -> Place:
        """The same of a part of an include."""
        return self.place(("include", self.include_numbers[number], *at))

    def _rest(self, errors: list[Error]) -> PolicyModel:
        if not isinstance(self.data, dict) or len(errors) >= MAX_COMPLAINTS:
            self.complaints.raise_if_any()
        data = _copy(self.data)
        lost: dict[str, set[int]] = {"rules": set(), "include": set()}
        for location, _, _ in errors:
            _drop(data, location, lost)
        for torn in self.torn:  # what else they lack is not said
            _drop(data, torn, lost)
        self.rule_numbers = [i for i in self.rule_numbers if i not in lost["rules"]]
        self.include_numbers = [i for i in self.include_numbers if i not in lost["include"]]
        for key, gone in lost.items():
            if isinstance(data.get(key), list):
                data[key] = [item for i, item in enumerate(data[key]) if i not in gone]
        self.named = "policy" in data
        model, left = schema.validate({"policy": "unnamed", **data})
        if model is None:
            self.complaints.raise_if_any()
            raise AssertionError(left)
        return model


def _numbers(data: Any, key: str) -> list[int]:
    items = data.get(key) if isinstance(data, dict) else None
    return list(range(len(items) if isinstance(items, list) else 1))


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def _drop(data: dict[str, Any], location: Location, lost: dict[str, set[int]]) -> None:
    """Take out of the data what an error is of, and what makes no sense without it."""
    key, *inside = location or ("policy",)
    items = data.get(str(key))
    if not inside or not isinstance(items, list | dict):
        data.pop(str(key), None)
    elif isinstance(items, dict):
        if key == "default":
            items.pop(inside[0], None)
        else:
            data.pop(str(key), None)
    elif key in lost and isinstance(inside[0], int):
        rule = items[inside[0]]
        if key == "include" or len(inside) == 1 or inside[1] in _RULE_NEEDS:
            lost[str(key)].add(inside[0])
            return
        holder = rule.get(inside[1])
        if len(inside) > 2 and isinstance(holder, dict):
            holder.pop(inside[2], None)
            if holder:
                return
        rule.pop(inside[1], None)
