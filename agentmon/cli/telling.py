# SPDX-License-Identifier: Apache-2.0
"""What was blocked, as text for an agent: plain lines without colour, the same for `why`, hooks and MCP."""

from __future__ import annotations

from typing import Any

from agentmon.model.text import attempt, clean

#: Longer names and lines are cut in the middle: what a model reads costs.
MOST_CHARACTERS = 240

ADVICE = (
    "The kernel decides this; trying it again, or by another way, ends the same. If the task needs it, ask the owner:"
)


def lines(denial: dict[str, Any]) -> list[str]:
    """One denial: what and by which rule, then what is allowed instead."""
    name = f" ({denial['name']})" if denial.get("name") else ""
    times = f" ({denial['times']} times)" if denial["times"] > 1 else ""
    how = "blocked, and the process killed" if denial["killed"] else "blocked"
    plan = denial.get("plan", False)
    default = "the plan" if plan else "the policy's default"
    rule = f"rule {denial['rule']}" + " of the plan" * plan if denial["rule"] else default
    reason = f": {denial['reason']}" if denial["reason"] and (denial["rule"] or plan) else ""
    what = attempt(denial["operation"], _cut(denial["object"]))
    first = f"{what}{name} by {_cut(denial['comm']) or 'a process'}: {how}{times} by {rule}{reason}"
    return [clean(first), *(f"  allowed: {clean(_cut(line))}" for line in denial["instead"])]


def denials(found: list[dict[str, Any]]) -> list[str]:
    """Several. What is allowed instead is said once if it is the same."""
    told: list[str] = []
    for i, denial in enumerate(found):
        same = i + 1 < len(found) and found[i + 1]["instead"] == denial["instead"]
        told += lines({**denial, "instead": []} if same else denial)
    return told


def answer(question: dict[str, Any]) -> list[str]:
    """A question with what was answered."""
    text = _indented(question["answer"]) if question["answer"] is not None else "  no answer yet"
    return [f"{question['question']}: {_indented(question['text']).lstrip()}", text]


def _indented(text: str) -> str:
    return "\n".join("  " + clean(line) for line in text.splitlines())


def _cut(text: str) -> str:
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]}…{text[-half:]}"
