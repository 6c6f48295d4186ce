# SPDX-License-Identifier: Apache-2.0
"""Shell text as tree-sitter parses it, put right where that differs from what a shell does.

`a && b 2>&1 | c` is parsed there as a pipeline of a list, and what follows a here-document as a part of it; a shell
binds a redirection to one command, and `|` closer than `&&`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from agentmon.errors import NotSupportedError

#: Text that is parsed at once.
MOST_BYTES: Final = 4 << 20

Node = Any  # tree_sitter.Node


@functools.cache
def _parser() -> Any:
    try:
        import tree_sitter_bash
        from tree_sitter import Language, Parser
    except ImportError:
        raise NotSupportedError(
            "reading shell commands needs the packages `tree-sitter` and `tree-sitter-bash`;"
            " install them with `pip install 'agentmon[plan]'`"
        ) from None
    return Parser(Language(tree_sitter_bash.language()))


def parse(text: bytes) -> Node:
    """The root of the tree. Raises `NotSupportedError`: the parser is not installed."""
    return _parser().parse(text).root_node


@dataclass(slots=True)
class Element:
    """One command, simple or not, with the redirections that are its own."""

    node: Node
    redirects: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Chain:
    """Pipelines that ``&&`` or ``||`` join. ``negated``: which have a ``!``; ``background``: it ends in ``&``."""

    pipelines: list[list[Element]]
    operators: list[str]
    negated: set[int] = field(default_factory=set)
    background: bool = False


def chains(node: Node) -> Iterator[Chain]:
    """The statements below a node."""
    children = node.children
    for i, child in enumerate(children):
        if not child.is_named or child.type == "comment":
            continue
        background = i + 1 < len(children) and children[i + 1].type == "&"
        yield chain(child, background=background)


def chain(node: Node, *, background: bool = False) -> Chain:
    """One statement."""
    pipelines: list[list[Element]] = [[]]
    operators: list[str] = []
    negated: set[int] = set()
    for item in _flat(node):
        if isinstance(item, Element):
            pipelines[-1].append(item)
        elif item in ("&&", "||"):
            operators.append(item)
            pipelines.append([])
        elif item == "!":
            negated ^= {len(operators)}
    return Chain(pipelines, operators, negated, background)


def _flat(node: Node) -> Iterator[Element | str]:
    """Commands and what stands between them, from left to right."""
    if node.type == "list":
        for child in node.children:
            if child.is_named:
                yield from _flat(child)
            else:
                yield child.type
    elif node.type == "pipeline":
        for child in node.children:
            if child.is_named:
                yield from _flat(child)
            else:
                yield "|"
    elif node.type == "negated_command":
        yield "!"
        for child in node.children:
            if child.is_named:
                yield from _flat(child)
    elif node.type == "redirected_statement":
        body = node.child_by_field_name("body")
        items = list(_flat(body)) if body is not None else [Element(node)]
        last = items[-1]
        redirects = node.children_by_field_name("redirect")
        if isinstance(last, Element):
            last.redirects = [*last.redirects, *redirects]
        yield from items
        for redirect in redirects:
            yield from _after_heredoc(redirect)
    else:
        yield Element(node)


def _after_heredoc(redirect: Node) -> Iterator[Element | str]:
    if redirect.type != "heredoc_redirect":
        return
    operator = redirect.child_by_field_name("operator")
    right = redirect.child_by_field_name("right")
    for child in redirect.children:
        if child.type == "pipeline":
            for inner in child.children:
                if inner.is_named:
                    yield from _flat(inner)
                else:
                    yield "|"
    if operator is not None and right is not None:
        yield operator.type
        yield from _flat(right)
