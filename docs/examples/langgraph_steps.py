# SPDX-License-Identifier: Apache-2.0
"""LangGraph: each node of a graph is a step of an agentmon plan.

    sudo agentmon run --plan langgraph_steps.yaml -- python3 langgraph_steps.py

LangGraph says in which order the nodes run; the plan says it too, and what each may do, and the kernel keeps that
whatever a model talks the nodes into. Without agentmon the same file runs unfenced.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph

import agentmon


class State(TypedDict):
    """What the nodes hand on."""

    log: Annotated[list[str], operator.add]


def as_step(node: Callable[[State], dict[str, Any]]) -> Callable[[State], dict[str, Any]]:
    """The node, in the step of its name. Nodes that run at the same time need processes of their own."""

    @functools.wraps(node)
    def run(state: State) -> dict[str, Any]:
        with agentmon.step(node.__name__):
            return node(state)

    return run


def fetch(_: State) -> dict[str, Any]:
    """Would download something."""
    return {"log": ["fetched"]}


def report(state: State) -> dict[str, Any]:
    """Would ask a model to write about it."""
    return {"log": [f"report on {len(state['log'])} thing(s)"]}


def build() -> Any:
    """The graph: fetch, then report."""
    graph = StateGraph(State)
    for node in (fetch, report):
        graph.add_node(node.__name__, as_step(node))
    graph.add_edge(START, "fetch")
    graph.add_edge("fetch", "report")
    graph.add_edge("report", END)
    return graph.compile()


if __name__ == "__main__":
    print(*build().invoke({"log": []})["log"], sep="\n")
