# SPDX-License-Identifier: Apache-2.0
"""What makes a plan impossible: circles, steps that nothing leads to, constraints that forbid what the step allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from graphlib import CycleError, TopologicalSorter
from typing import Final

from agentmon.model.operations import Action, Operation
from agentmon.plan.plan import CHANGES, NETWORK, REACHES, Part, Plan, Step
from agentmon.policy.bind import BoundPolicy
from agentmon.policy.check_rules import in_vain
from agentmon.policy.compile import compile_policy
from agentmon.policy.glob import did_you_mean
from agentmon.policy.rules import Complaints, Place, Rule

Placer = Callable[..., Place]
_PLAIN: Final = ("id", "pack", "place", "operations", "action", "reason", "quiet", "observe", "marks", "implied")
#: What a rule may say of when it holds, and of what.
_NARROW: Final = tuple(each.name for each in fields(Rule) if each.name not in _PLAIN)


def order(steps: Sequence[Step]) -> list[Step]:
    """Each step after those that it needs; else as in the file. The steps have no circle."""
    by_id = {step.id: step for step in steps}
    done: dict[str, None] = {}

    def visit(step: Step) -> None:
        for need in step.waits:
            if need not in done:
                visit(by_id[need])
        done[step.id] = None

    for step in steps:
        if step.id not in done:
            visit(step)
    return [by_id[name] for name in done]


def check_graph(
    steps: Sequence[Step], places: Mapping[str, Mapping[str, Place]], complaints: Complaints, *, whole: bool
) -> None:
    """Steps by their names, and the way from one to the next. ``whole``: none is missing for its errors."""
    first: dict[str, Step] = {}
    for step in steps:
        if first.setdefault(step.id, step) is not step:
            complaints.add(step.place, f"step `{step.id}` is already there at {first[step.id].place}; rename one")
    names = list(first)
    edges: dict[str, list[str]] = {}
    for step in first.values():
        edges[step.id] = []
        for need in step.waits:
            place = places.get(step.id, {}).get(need, step.place)
            if need == step.id:
                complaints.add(place, f"step `{need}` needs itself, so it could never begin; take it out")
            elif need not in first:
                if whole:
                    others = [name for name in names if name != step.id]
                    complaints.add(place, f"no step `{need}`{did_you_mean(need, others)}")
            else:
                edges[step.id].append(need)
    while True:
        try:
            TopologicalSorter(edges).prepare()
        except CycleError as error:
            circle: list[str] = error.args[1]  # each is needed by the next
            circle = circle[:-1]
            start = min(range(len(circle)), key=lambda i: names.index(circle[i]))
            circle = [*circle[start:], *circle[:start]]
            last = circle[-1]  # the first of them in the file needs the last
            place = places.get(circle[0], {}).get(last, first[circle[0]].place)
            drawn = " → ".join((*circle, circle[0]))
            complaints.add(place, f"steps wait for each other: {drawn}; take one of them out")
            caught = _after(edges, set(circle)) - set(circle)
            for name in caught:
                complaints.add(
                    first[name].place, f"step `{name}` is unreachable: it waits for that circle; mend it first"
                )
            edges[circle[0]].remove(last)
        else:
            return


def _after(edges: Mapping[str, Sequence[str]], some: set[str]) -> set[str]:
    """All that need any of some steps, however far away."""
    found = set(some)
    while more := {name for name, needs in edges.items() if name not in found and found & set(needs)}:
        found |= more
    return found


def check_step(step: Step, place: Placer, complaints: Complaints) -> None:
    """Constraints that contradict each other, or the rules beside them."""
    for message, key in _contradictions(step):
        complaints.add(place(*key), f"step `{step.id}`: {message}")


def check_agent(agent: Part, place: Placer, complaints: Complaints) -> None:
    """The same, outside of all steps."""
    for message, key in _of_part(agent):
        complaints.add(place(*key), f"`agent`: {message}")


def _contradictions(step: Step) -> Iterator[tuple[str, tuple[int | str, ...]]]:
    part, limits = step.part, step.limits
    for name in step.needs:
        if name in step.after:
            yield f"`needs` and `after` both name `{name}`; keep `needs`", ("after",)
    if step.once and step.repeat:
        yield "`once` and `repeat` contradict each other; keep one", ("repeat",)
    if part.read_only and limits.max_write_bytes:
        yield "`read-only` leaves nothing to write, so `max-write` says nothing; keep one", ("max-write",)
    if part.read_only and limits.max_files:
        yield "`read-only` leaves no file to change, so `max-files` says nothing; keep one", ("max-files",)
    if limits.max_files == 0 and not part.read_only:
        yield "`max-files: 0` is `read-only: true`; write that", ("max-files",)
    if limits.max_procs == 0:
        yield "`max-procs: 0` leaves no room for the step itself; write 1 or more", ("max-procs",)
    if limits.timeout_s == 0:
        yield "`timeout: 0` is over before it begins; write such as `10min`", ("timeout",)
    yield from _of_part(part)


def _of_part(part: Part) -> Iterator[tuple[str, tuple[int | str, ...]]]:
    if part.no_network and part.hosts:
        yield "`no-network` and `hosts` contradict each other; keep one", ("hosts",)
    closed = (("read-only", part.read_only, CHANGES), ("no-network", part.no_network, NETWORK),
              ("no-exec", part.no_exec, (Operation.EXEC,)))  # fmt: skip
    for word, so, operations in closed:
        if not so:
            continue
        for i, rule in enumerate(part.rules):
            if rule.action <= Action.HOLD and any(o in operations for o in rule.operations):
                both = next(o for o in rule.operations if o in operations).word
                yield f"`{word}` contradicts rule `{rule.id}`, which allows `{both}`; keep one", ("rules", i, "action")
        for operation, may in part.defaults.items():
            if may and operation in operations:
                yield (
                    f"`{word}` contradicts `default: {{{operation.word}: allow}}`; keep one",
                    ("default", operation.word),
                )
    if part.hosts:
        for i, rule in enumerate(part.rules):
            if rule.action >= Action.DENY and Operation.CONNECT in rule.operations and _for_all(rule):
                yield (
                    f"`hosts` contradicts rule `{rule.id}`, which denies `connect` to all: keep one",
                    ("rules", i, "action"),
                )
        for operation, may in part.defaults.items():
            if may and operation in REACHES:
                yield (
                    f"`hosts` says nothing beside `default: {{{operation.word}: allow}}`; keep one",
                    (
                        "default",
                        operation.word,
                    ),
                )


def _for_all(rule: Rule) -> bool:
    """Whether nothing narrows a rule: neither objects nor conditions, nor exceptions."""
    return not any(getattr(rule, name) for name in _NARROW)


def warnings(plan: Plan, parts: Iterable[BoundPolicy] = ()) -> Iterator[str]:
    """What is probably not meant. ``parts``: what steps and agent may do, with variables filled in."""
    agent: Part = plan.agent
    reaches = agent.hosts or any(
        rule.action <= Action.HOLD and set(rule.operations) & set(REACHES) for rule in agent.rules
    )
    if not reaches and not any(agent.defaults.get(o) for o in REACHES):
        yield (
            f"{plan.file}:1:1: outside of all steps the agent may reach no host, not even its model's; name it with"
            " `agent: {hosts: [api.example.com:443]}`"
        )
    for step in plan.steps:
        part, limits = step.part, step.limits
        said = part.rules or part.defaults or part.read_only or part.no_network or part.no_exec or part.hosts
        if not said and limits == type(limits)():
            what = f"step `{step.id}` may do whatever the policy allows"
            yield f"{step.place}: {what}; say what it may, or `read-only: true`"
        for start in step.starts:
            if any(pattern.text in ("**", "/**") for pattern in start.exe):
                yield f"{start.place}: any program starts step `{step.id}`; name it, such as `**/git`"
    spare = implied(plan)
    for step in plan.steps:
        for need in step.waits:
            if need in spare[step.id]:
                yield f"{step.place}: step `{step.id}` waits for `{need}` by another step already; leave it out"
    for bound in parts:
        yield from in_vain(bound, compile_policy(bound))


def implied(plan: Plan) -> dict[str, set[str]]:
    """By step, those of its `needs` and `after` that are so anyway when the others are."""
    done: dict[str, set[str]] = {}  # when it begins, these are done for sure
    ended: dict[str, set[str]] = {}  # … and these have ended
    found: dict[str, set[str]] = {}
    for step in order(plan.steps):
        found[step.id] = {n for n in step.needs if any(n in done[other] for other in step.waits if other != n)}
        found[step.id] |= {n for n in step.after if any(n in ended[other] for other in step.waits if other != n)}
        done[step.id] = set(step.needs).union(*(done[other] for other in step.waits))
        ended[step.id] = set(step.waits).union(*(ended[other] for other in step.waits))
    return found
