# SPDX-License-Identifier: Apache-2.0
"""A plan drawn: as text with rails, as DOT for Graphviz, as SVG. Pure functions from a plan to text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Final

from agentmon.plan.check import implied, order
from agentmon.plan.plan import Plan, Step

_LINES: Final = str.maketrans(
    {"●": "*", "│": "|", "├": "+", "─": "-", "╮": "\\", "╯": "/", "┬": "-", "┴": "-", "┼": "+"}
)


def direct_needs(plan: Plan) -> dict[str, tuple[str, ...]]:
    """By step, those that it waits for and that are drawn: not those that others bring along."""
    spare = implied(plan)
    return {step.id: tuple(need for need in step.waits if need not in spare[step.id]) for step in plan.steps}


def as_text(plan: Plan, label: Callable[[Step], str], *, ascii_only: bool = False) -> list[str]:
    """One line a step, in an order in which they may be done, with a rail from each to those that need it."""
    direct = direct_needs(plan)
    waiting: dict[str, list[str]] = {step.id: [] for step in plan.steps}
    for name, needs in direct.items():
        for need in needs:
            waiting[need].append(name)
    rails: list[str | None] = []  # the step that each leads to
    rows: list[tuple[str, str]] = []
    for step in order(plan.steps):
        mine = [i for i, rail in enumerate(rails) if rail == step.id]
        if not mine:
            column = rails.index(None) if None in rails else len(rails)
            rails[column : column + 1] = [step.id]
        else:
            column = mine[0]
            if len(mine) > 1:
                rows.append((_bend(rails, column, mine[1:], "╯", "┴"), ""))
                for i in mine[1:]:
                    rails[i] = None
        rows.append(
            ("".join(("●" if i == column else "│" if rail else " ") + " " for i, rail in enumerate(rails)), label(step))
        )
        after = waiting[step.id]
        rails[column] = after[0] if after else None
        others = []
        for name in after[1:]:
            free = next((i for i in range(column + 1, len(rails)) if rails[i] is None), len(rails))
            rails[free : free + 1] = [name]
            others.append(free)
        if others:
            rows.append((_bend(rails, column, others, "╮", "┬"), ""))
        while rails and rails[-1] is None:
            rails.pop()
    width = max(len(rail) for rail, _ in rows) if rows else 0
    lines = [f"{rail:<{width}}{text}".rstrip() for rail, text in rows]
    return [line.translate(_LINES) for line in lines] if ascii_only else lines


def _bend(rails: list[str | None], column: int, others: list[int], end: str, between: str) -> str:
    last = others[-1]
    drawn = []
    for i, rail in enumerate(rails):
        if i == column:
            drawn.append("├─")
        elif i in others:
            drawn.append(end + " " if i == last else between + "─")
        elif column < i < last:
            drawn.append("┼─" if rail else "──")
        else:
            drawn.append("│ " if rail else "  ")
    return "".join(drawn)


def as_dot(plan: Plan) -> str:
    """For Graphviz."""
    lines = [f"digraph {_quoted(plan.name)} {{", "  rankdir=LR;", '  node [shape=box, fontname="sans-serif"];']
    for step in plan.steps:
        text = "\n".join([step.id, *(start.text for start in step.starts), *step.constraints])
        lines.append(f"  {_quoted(step.id)} [label={_quoted(text)}];")
    lines += [f"  {_quoted(need)} -> {_quoted(step.id)};" for step in plan.steps for need in step.needs]
    lines += [f"  {_quoted(need)} -> {_quoted(step.id)} [style=dashed];" for step in plan.steps for need in step.after]
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


_BOX_W, _LINE_H, _GAP_X, _GAP_Y, _MARGIN = 230, 17, 60, 24, 20
_CHARS: Final = 34  # that fit a box


def as_svg(plan: Plan) -> str:
    """A picture, from left to right; the tooltip of a box has all of its text."""
    direct = direct_needs(plan)
    layers = _layers(plan, direct)
    at: dict[str, tuple[int, int, int]] = {}  # left, top, height
    lines = {step.id: [step.id, *(start.text for start in step.starts), *step.constraints] for step in plan.steps}
    tall = 0
    for number, layer in enumerate(layers):
        top = _MARGIN
        for name in layer:
            height = _LINE_H * len(lines[name]) + 12
            at[name] = (_MARGIN + number * (_BOX_W + _GAP_X), top, height)
            top += height + _GAP_Y
        tall = max(tall, top)
    wide = 2 * _MARGIN + len(layers) * (_BOX_W + _GAP_X) - _GAP_X
    arrow = '<path d="M0 0 8 4 0 8z" fill="#667"/>'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{tall}" viewBox="0 0 {wide} {tall}">',
        f"<title>{escape(plan.name)}</title>",
        f'<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" orient="auto">{arrow}</marker></defs>',
        f'<rect width="{wide}" height="{tall}" fill="#fff"/>',
        '<g font-family="sans-serif" font-size="12">',
    ]
    after = {step.id: step.after for step in plan.steps}
    for name, needs in direct.items():
        for need in needs:
            left, top, height = at[need]
            x1, y1 = left + _BOX_W, top + height // 2
            x2, y2 = at[name][0], at[name][1] + at[name][2] // 2
            dashes = ' stroke-dasharray="4 3"' if need in after[name] else ""
            parts.append(
                f'<path d="M{x1} {y1}C{x1 + _GAP_X // 2} {y1} {x2 - _GAP_X // 2} {y2} {x2} {y2}" fill="none"'
                f' stroke="#667" marker-end="url(#end)"{dashes}/>'
            )
    for name, (left, top, height) in at.items():
        parts.append(f"<g><title>{escape(chr(10).join(lines[name]))}</title>")
        parts.append(
            f'<rect x="{left}" y="{top}" width="{_BOX_W}" height="{height}" rx="6" fill="#f4f6fa" stroke="#667"/>'
        )
        for i, text in enumerate(lines[name]):
            short = text if len(text) <= _CHARS else text[: _CHARS - 1] + "…"
            style = ' font-weight="bold"' if i == 0 else ' fill="#445"'
            parts.append(f'<text x="{left + 8}" y="{top + 18 + i * _LINE_H}"{style}>{escape(short)}</text>')
        parts.append("</g>")
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _layers(plan: Plan, direct: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    depth: dict[str, int] = {}
    layers: list[list[str]] = []
    for step in order(plan.steps):
        depth[step.id] = 1 + max((depth[need] for need in direct[step.id]), default=-1)
        while len(layers) <= depth[step.id]:
            layers.append([])
        layers[depth[step.id]].append(step.id)
    return layers
