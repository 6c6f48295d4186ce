# SPDX-License-Identifier: Apache-2.0
"""A YAML file as plain data, with the place of every part of it.

Every scalar stays text: YAML 1.1 would read ``on`` as true and ``22:22`` as 1342. Bounded in size, depth and
repetition, because an ordinary user's text is parsed by a daemon with privileges.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from agentmon.policy.rules import Complaints, Place
from agentmon.policy.schema import Location
from agentmon.policy.text import check_characters, check_size, explain_yaml

MAX_NODES: Final = 100_000
MAX_DEPTH: Final = 16

# libyaml is ten times as fast; both give the same marks. Composing recurses in C: nesting is bounded before.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Document:
    """One parsed file. ``data`` is its content in dicts, lists and text.

    With ``go_on``, wrong keys are only noted in ``complaints``, and ``torn`` has the mappings that lack one by that.

    Raises:
        PolicyError: it is not YAML, is empty, or repeats a key.
    """

    def __init__(self, text: str, file: str, *, go_on: bool = False) -> None:
        self.file = file
        self.complaints = Complaints()
        self.torn: set[Location] = set()
        self.places: dict[Location, Place] = {}
        self.keys: dict[Location, Place] = {}
        self._nodes = 0
        node = self._compose(text)
        if node is None:
            raise Place(file, 1, 1).error(
                "the file is empty; a policy starts with `policy: NAME`, a plan with `plan: NAME`, cases with `cases:`"
            )
        self.data: Any = self._value(node, ())
        if not go_on:
            self.complaints.raise_if_any()

    def _compose(self, text: str) -> yaml.Node | None:
        text = text.removeprefix("\ufeff")
        check_size(text, self.file)
        check_characters(text, self.file)
        try:
            self._check_events(text)
            node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark: Any = error.problem_mark or error.context_mark
            meaning = explain_yaml(str(error.problem or error.context), text, mark.index)
            raise Place(self.file, mark.line + 1, mark.column + 1).error(f"not YAML: {meaning}") from None
        except (yaml.YAMLError, RecursionError, UnicodeError) as error:
            raise Place(self.file, 1, 1).error(f"not YAML: {str(error).splitlines()[0]}; write it anew") from None
        return node

    def _check_events(self, text: str) -> None:
        """What must be known before a tree is built: how deep and large it becomes, and tags, which no tree keeps."""
        depth = nodes = 0
        for event in yaml.parse(text, Loader=_Loader):
            if not isinstance(event, yaml.NodeEvent):
                depth -= isinstance(event, yaml.CollectionEndEvent)
                continue
            depth += isinstance(event, yaml.CollectionStartEvent)
            nodes += 1
            mark: Any = event.start_mark
            place = Place(self.file, mark.line + 1, mark.column + 1)
            if depth > MAX_DEPTH:
                raise place.error("nested too deep; write it out flat")
            if nodes > 2 * MAX_NODES:  # keys are counted here, and not when aliases are followed
                raise place.error(f"more than {2 * MAX_NODES} keys and values; split it into packs")
            tag = getattr(event, "tag", None)
            if tag is not None:
                written = tag.replace("tag:yaml.org,2002:", "!!")
                raise place.error(f"`{written}` is a tag, which has no meaning here; leave it out, or quote the text")

    def _at(self, node: yaml.Node) -> Place:
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def _value(self, node: yaml.Node, location: Location) -> Any:
        """Plain data with all scalars as text; notes the place of everything."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._at(node).error(f"more than {MAX_NODES} values, aliases followed; split it, or repeat less")
        if len(location) > MAX_DEPTH:
            raise self._at(node).error("nested too deep, or an alias of itself; write it out flat")
        self.places[location] = self._at(node)
        if isinstance(node, yaml.ScalarNode):
            if not node.style and node.value in ("", "~", "null"):
                # a lone `~` is the home of the session's user, not YAML's nothing
                return "~" if node.value == "~" else None
            one_line = node.end_mark.line == node.start_mark.line
            quotes = 2 if node.style else 0
            if one_line and node.end_mark.column - node.start_mark.column == len(node.value) + quotes:
                place = self.places[location]
                self.keys[(*location, "text")] = Place(place.file, place.line, place.column + quotes // 2)
            return node.value
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*location, i)) for i, child in enumerate(node.value)]
        result: dict[str, Any] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.complaints.add(
                    self._at(key), "a key must be one word; put a pattern that starts with `{` in quotes"
                )
                self.torn.add(location)
                continue
            if key.value == "<<" and not key.style:
                self.complaints.add(self._at(key), "`<<` merges no keys here; write them out")
                self.torn.add(location)
                continue
            if key.value in result:
                self.complaints.add(self._at(key), f"key `{key.value}` is given twice; keep one")
            self.keys[*location, key.value] = self._at(key)
            result[key.value] = self._value(child, (*location, key.value))
        return result

    def place(self, location: Location, *, key: bool = False) -> Place:
        """Where that part stands; its nearest parent if it has no place of its own."""
        if key and location in self.keys:
            return self.keys[location]
        while location not in self.places:
            location = location[:-1]
        return self.places[location]

    def within(self, location: Location, offset: int) -> Place:
        """Where a character of a scalar stands, if the text is written there as it is."""
        inside = self.keys.get((*location, "text"))
        return Place(inside.file, inside.line, inside.column + offset) if inside else self.place(location)
