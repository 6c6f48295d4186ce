# SPDX-License-Identifier: Apache-2.0
"""Whatever a policy becomes by mistakes: it loads, or there are clear errors with their lines, soon."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agentmon.policy.load import packs, shipped_directory
from agentmon.policy.schema import ACTION_WORDS, LATER_KEYS, OPERATION_WORDS, PolicyModel, RuleModel
from tests.support.fuzzing import judge

PACKS = [path.read_bytes() for path in packs([shipped_directory()]).values()]
#: As data, all scalars text, as the loader has them.
TREES = [tree for tree in (yaml.load(text, yaml.BaseLoader) for text in PACKS) if "rules" in tree]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

KEYS = st.sampled_from(
    [*PolicyModel.model_fields, *RuleModel.model_fields, *LATER_KEYS, "except", "pack", "without", "<<", ""]
)
ODD_WORDS = """
    base hold no on ~ null .inf 0777 1e9 2024-01-01 @x ** /** /a {workspace}/** {home} {tmp}/x /home/{user} {a,b}
    /{a,{b,c}} /[!a-z] /a[ /.. 10.0.0.0/8 10.0.0.0/8:443 [::1]:80 fd00::/8 1-2 65536 a.example:443 *.example.org
"""
WORDS = st.sampled_from([*OPERATION_WORDS, *ACTION_WORDS, "", *ODD_WORDS.split()])
SCALARS = st.one_of(WORDS, WORDS, st.text(max_size=12), st.none(), st.booleans(), st.integers(), st.floats())
#: Anything that YAML can say, mostly in words of the language.
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(KEYS, st.text(max_size=4)), inner, max_size=5)
    ),
    max_leaves=6,
)


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Where everything of a tree is: (what holds it, its key there)."""
    children = list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())
    return [(tree, key) for key, _ in children] + [found for _, child in children for found in nodes(child)]


def written(tree: Any) -> bytes:
    """JSON is YAML but for what JSON alone escapes as two halves."""
    return json.dumps(tree, ensure_ascii=False, indent=1).encode("utf-8", "replace")


@st.composite
def mutated_trees(draw: st.DrawFn) -> Any:
    """A shipped pack with a few rules of it, of which some nodes are replaced, dropped, doubled or renamed."""
    tree = copy.deepcopy(draw(st.sampled_from(TREES)))
    rules = tree["rules"]
    first = draw(st.integers(0, len(rules) - 1))
    tree["rules"] = rules[first : first + 4]
    for _ in range(draw(st.integers(1, 3))):
        found = nodes(tree)
        if not found:
            break
        holder, key = draw(st.sampled_from(found))
        match draw(st.sampled_from(["replace", "drop", "double", "rename"])):
            case "replace":
                holder[key] = draw(VALUES)
            case "drop":
                del holder[key]
            case "double" if isinstance(holder, list):
                holder.append(holder[key])
            case "rename" if isinstance(holder, dict):
                holder[draw(KEYS)] = holder.pop(key)
            case _:
                holder[key] = [holder[key]]
    return tree


@st.composite
def mutated_bytes(draw: st.DrawFn) -> bytes:
    """A shipped pack with some bytes changed, left out or moved."""
    data = bytearray(draw(st.sampled_from(PACKS)))
    marks = st.sampled_from([bytes([b]) for b in b"\t\n :-[]{}'\"&*!|#,%@"])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 8))] = draw(st.one_of(marks, st.binary(max_size=8)))
    return bytes(data)


@given(mutated_trees())
@QUICK
def test_packs_of_which_parts_are_replaced(tree: Any) -> None:
    judge(written(tree))


@given(mutated_bytes())
@QUICK
def test_packs_of_which_bytes_are_changed(data: bytes) -> None:
    judge(data)


@given(VALUES)
@settings(QUICK, max_examples=100)
def test_any_data(value: Any) -> None:
    judge(written(value))


@given(
    st.fixed_dictionaries(
        {"policy": st.just("p"), "rules": st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=2)}
    )
)
@QUICK
def test_rules_of_any_data(value: Any) -> None:
    judge(written(value))


MARKS = "abc:-[]{}'\"&*!|>#,?%@~\n\t "


@given(st.one_of(st.text(max_size=60), st.text(MARKS, max_size=60)).map(lambda text: text.encode("utf-8", "replace")))
@example(b"\xff")
@example(b"? ")
@settings(QUICK, max_examples=150)
def test_any_text(data: bytes) -> None:
    judge(data)


@given(
    st.sampled_from(["paths", "exe", "cidrs", "hosts", "ports"]),
    st.one_of(st.text(max_size=30), st.text("ab/*?[]{},!-\\~@.:0189", max_size=30)),
    st.sampled_from(["read", "connect", "unix", "exec"]),
)
@settings(QUICK, max_examples=150)
def test_any_object(key: str, text: str, operation: str) -> None:
    rule = {"id": "r", "on": operation, "action": "allow", key: text}
    judge(written({"policy": "p", "rules": [rule]}))
