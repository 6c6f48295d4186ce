# SPDX-License-Identifier: Apache-2.0
"""Edits of a policy's text that leave everything else as it is, comments too. Whoever edits loads the result again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from agentmon.errors import AgentmonError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class CannotEditError(AgentmonError):
    """The text is written in a way that is better edited by a person."""


class PolicyText:
    """The text of a valid policy; `result` has the edits."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._root: Any = yaml.compose(text, Loader=_Loader)
        self._edits: list[tuple[int, int, str]] = []
        self._end: list[str] = []
        self._newline = "\r\n" if "\r\n" in text else "\n"

    @property
    def result(self) -> str:
        """The new text."""
        text = self._text
        # from the end on; of those at one place, the last one first
        for _, (start, end, new) in sorted(enumerate(self._edits), key=lambda e: (e[1][0], e[0]), reverse=True):
            text = text[:start] + new + text[end:]
        if self._end:
            text = text.rstrip() + self._newline + "".join(line + self._newline for line in self._end)
        return text

    def has_rule(self, rule_id: str) -> bool:
        """Whether the rule is written here, and not in a pack."""
        return any(_word(_get(rule, "id")) == rule_id for rule in self._rules())

    def add_except(self, rule_id: str, key: str, value: str) -> None:
        """A hole in a rule of this text. Raises `CannotEditError`."""
        rule = next(rule for rule in self._rules() if _word(_get(rule, "id")) == rule_id)
        holes = _get(rule, "except")
        if holes is None:
            self._add_key(rule, "action", f"except: {shown({key: [value]})}")
        elif (values := _get(holes, key)) is not None:
            self._add_item(values, shown(value))
        elif holes.flow_style:
            self._insert(holes.start_mark.index + 1, f"{key}: {shown([value])}, ")
        else:
            self._insert(holes.start_mark.index, self._line(f"{key}: {shown([value])}", holes.start_mark.column))

    def leave_out(self, pack: str, rule_id: str) -> None:
        """No longer take a rule from a pack that is included here. Raises `CannotEditError`."""
        include = _get(self._root, "include")
        items = include.value if isinstance(include, yaml.SequenceNode) else [include]
        fresh = shown({"pack": pack, "without": [rule_id]})
        for item in items:
            if isinstance(item, yaml.ScalarNode) and item.value == pack:
                self._edits.append(
                    (item.start_mark.index, item.end_mark.index, fresh if item is not include else f"[{fresh}]")
                )
            elif isinstance(item, yaml.MappingNode) and _word(_get(item, "pack")) == pack:
                without = _get(item, "without")
                if without is None:
                    self._add_key(item, "pack", f"without: {shown([rule_id])}")
                else:
                    self._add_item(without, shown(rule_id))

    def add_rule(self, rule: Mapping[str, Any]) -> None:
        """A rule after all others, if they are written in lines and come last. Raises `CannotEditError`."""
        rules = _get(self._root, "rules")
        if rules is None and not self._root.flow_style:
            if not self._end:
                self._end.append("rules:")
            self._end += _lines(rule, 2)
        elif not isinstance(rules, yaml.SequenceNode):
            raise CannotEditError("its `rules` are no list")
        elif rules.flow_style:
            if rules.value:
                self._insert(rules.value[-1].end_mark.index, f", {shown(rule)}")
            else:
                before = ", " if any(start == rules.start_mark.index + 1 for start, _, _ in self._edits) else ""
                self._insert(rules.start_mark.index + 1, before + shown(rule))
        elif self._root.value[-1][1] is rules:
            self._end += _lines(rule, rules.start_mark.column)
        else:
            column = rules.start_mark.column
            lines = _lines(rule, column)
            text = "".join(self._line(line[column:], column) for line in lines)
            self._insert(rules.start_mark.index, text)

    def _rules(self) -> Iterator[Any]:
        rules = _get(self._root, "rules")
        return iter(rules.value if isinstance(rules, yaml.SequenceNode) else ())

    def _insert(self, at: int, text: str) -> None:
        self._edits.append((at, at, text))

    def _line(self, text: str, column: int) -> str:
        """A line to stand before what begins at that column."""
        return text + self._newline + " " * column

    def _add_key(self, mapping: Any, after: str, text: str) -> None:
        """``after``: a key of the mapping with a value of one line."""
        value = _get(mapping, after)
        if mapping.flow_style:
            self._insert(value.end_mark.index, f", {text}")
            return
        if value.style in ("|", ">"):
            raise CannotEditError(f"the `{after}` of a rule is a block of text")
        end = self._text.find("\n", value.end_mark.index)
        end = len(self._text) if end < 0 else end - (self._text[end - 1] == "\r")
        self._insert(end, self._newline + " " * mapping.start_mark.column + text)

    def _add_item(self, node: Any, item: str) -> None:
        if isinstance(node, yaml.ScalarNode):
            if node.style in ("|", ">"):
                raise CannotEditError("what a rule excepts is a block of text")
            self._edits.append((node.start_mark.index, node.end_mark.index, f"[{shown(node.value)}, {item}]"))
        elif node.flow_style:
            self._insert(node.value[-1].end_mark.index, f", {item}")
        else:
            self._insert(node.start_mark.index, self._line(f"- {item}", node.start_mark.column))


def shown(value: Any) -> str:
    """Plain data as a policy writes it, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    if re.fullmatch(r"[A-Za-z/][A-Za-z0-9_./+-]*", value) and value != "null":
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _lines(rule: Mapping[str, Any], column: int) -> list[str]:
    """A rule in lines, as an item of a list at that column."""
    keys = [f"{key}: {shown(value)}" for key, value in rule.items()]
    return [" " * column + ("- " if i == 0 else "  ") + key for i, key in enumerate(keys)]


def _get(mapping: Any, key: str) -> Any:
    if not isinstance(mapping, yaml.MappingNode):
        return None
    return next((value for name, value in mapping.value if name.value == key), None)


def _word(node: Any) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""
