# SPDX-License-Identifier: Apache-2.0
"""Drawings of plans."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from agentmon.plan.draw import as_dot, as_svg, as_text, direct_needs
from agentmon.plan.load import load_text
from agentmon.plan.plan import Plan


def plan_of(needs: dict[str, str]) -> Plan:
    steps = [f"  - {{id: {name}, starts: mark, needs: [{', '.join(some)}]}}" for name, some in needs.items()]
    return load_text("\n".join(["plan: p", "steps:", *steps]), "p.yaml")


def drawn(needs: dict[str, str]) -> list[str]:
    return as_text(plan_of(needs), lambda step: step.id)


def test_a_chain_is_a_column() -> None:
    assert drawn({"a": "", "b": "a", "c": "b"}) == ["● a", "● b", "● c"]


def test_branches_leave_and_join() -> None:
    assert drawn({"a": "", "b": "a", "c": "a", "d": "bc"}) == ["●   a", "├─╮", "● │ b", "│ ● c", "├─╯", "●   d"]


def test_what_is_apart_is_drawn_apart() -> None:
    assert drawn({"a": "", "b": "", "c": "b"}) == ["● a", "● b", "● c"]


def test_a_terminal_without_unicode_gets_a_drawing_too() -> None:
    lines = as_text(plan_of({"a": "", "b": "a", "c": "a", "d": "bc"}), lambda step: step.id, ascii_only=True)
    assert lines == ["*   a", "+-\\", "* | b", "| * c", "+-/", "*   d"]


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, str]:
    names = "abcdefghijkl"[: draw(st.integers(1, 12))]
    return {
        name: "".join(sorted(draw(st.sets(st.sampled_from(names[:i]))))) if i else "" for i, name in enumerate(names)
    }


@given(graphs())
def test_every_step_is_drawn_once_after_what_it_needs(needs: dict[str, str]) -> None:
    lines = drawn(needs)
    at = {line[-1]: i for i, line in enumerate(lines) if "●" in line}
    assert sorted(at) == sorted(needs)
    assert all(at[need] < at[name] for name, some in needs.items() for need in some)
    assert sum(line.count("●") for line in lines) == len(needs)


@given(graphs())
def test_drawn_needs_lead_to_the_same_steps(needs: dict[str, str]) -> None:
    plan = plan_of(needs)
    direct = direct_needs(plan)

    def reached(edges: dict[str, tuple[str, ...]], name: str) -> set[str]:
        return set(edges[name]).union(*(reached(edges, need) for need in edges[name]))

    for name in needs:
        assert reached(direct, name) == reached(plan.needed(), name)


def test_the_picture_is_well_formed_and_has_all_steps() -> None:
    plan = load_text(
        'plan: p\nsteps:\n  - {id: a, starts: {exe: "**/x<&>y"}}\n  - {id: b, starts: mark, needs: a}\n', "p"
    )
    root = ET.fromstring(as_svg(plan))
    texts = {element.text for element in root.iter() if element.tag.endswith("}text")}
    assert {"a", "**/x<&>y", "b", "mark"} <= texts
    assert sum(element.get("marker-end") is not None for element in root.iter()) == 1


def test_dot_quotes_what_it_must() -> None:
    plan = load_text(
        "plan: p\nsteps:\n  - {id: a, starts: {exe: '/\"q\\\\'}}\n  - {id: b, starts: mark, needs: a}\n", "p"
    )
    text = as_dot(plan)
    assert '"a" -> "b";' in text
    assert '/\\"q\\\\' in text
