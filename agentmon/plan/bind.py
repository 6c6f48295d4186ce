# SPDX-License-Identifier: Apache-2.0
"""A plan with its variables filled in: what the tracker judges by, and what is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from agentmon.model.operations import HOLDABLE, OPERATION_SLOTS, OPERATIONS, PART_OF_WRITE, Action, Operation
from agentmon.model.plans import MAX_STEPS, CompiledPlan, StepInfo
from agentmon.plan.plan import CHANGES, KINDS, NETWORK, REACHES, RUNS, SERVES, OnViolation, Part, Plan, Step
from agentmon.policy.arguments import argument_globs
from agentmon.policy.bind import BoundPolicy, bind_policy, globs, uid_of
from agentmon.policy.glob import Glob, parse
from agentmon.policy.rules import Complaints, Pattern, Place, Policy, Rule, Variables

#: What no program does without, also one that changes nothing.
DEVICES: Final = ("/dev/{null,zero,full,random,urandom,tty,ptmx}", "/dev/pts/*")

#: What the agent itself may not do outside of all steps, unless it is said.
CLOSED_OUTSIDE: Final = (*RUNS, *CHANGES, *REACHES, *SERVES)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to start a step by a program. ``argv`` None: whatever the arguments are."""

    step: int
    exe: tuple[Glob, ...]
    argv: tuple[Glob, ...] | None


@dataclass(frozen=True, slots=True)
class BoundPlan:
    """A plan for one session. ``parts``: what each step may do, as a policy of its own; ``agent``: outside of them.

    A default that blocks, and the rules of constraints, have the action of the step's ``on-violation``.
    """

    plan: Plan
    variables: Variables
    parts: tuple[BoundPolicy, ...]
    agent: BoundPolicy
    ways: tuple[Way, ...]

    def number(self, step: str) -> int:
        """The number of a step. Raises `ValueError`: there is none of that name."""
        for i, each in enumerate(self.plan.steps):
            if each.id == step:
                return i
        raise ValueError(step)


def bind_plan(plan: Plan, variables: Variables, *, uid_of: Callable[[str], int | None] = uid_of) -> BoundPlan:
    """Fill in variables.

    Raises:
        PolicyError: an unknown user, too many conditions in one step, or a path that is too long.
    """
    complaints = Complaints()
    values = variables.mapping()
    parts: list[BoundPolicy] = []
    ways: list[Way] = []
    for number, step in enumerate(plan.steps):
        with complaints.collected():
            parts.append(bind_policy(policy_of(plan, step), variables, uid_of=uid_of))
        for start in step.starts:
            if not start.mark:
                with complaints.collected():
                    argv = None if start.argv is None else argument_globs(start.argv, values)
                    ways.append(Way(number, globs(start.exe, values), argv))
    with complaints.collected():
        agent = bind_policy(policy_of(plan, None), variables, uid_of=uid_of)
    complaints.raise_if_any()
    return BoundPlan(plan, variables, tuple(parts), agent, tuple(ways))


def compile_plan(bound: BoundPlan) -> CompiledPlan:
    """The masks and numbers of a plan."""
    names = [step.id for step in bound.plan.steps]
    infos = tuple(
        StepInfo(
            id=step.id,
            source=f"{step.place.file}:{step.place.line}",
            needs=sum(1 << names.index(need) for need in step.needs),
            after=sum(1 << names.index(need) for need in step.after),
            once=step.once,
            repeat=step.repeat,
            exits=(1 << 256) - 1 if step.exits is None else sum(1 << status for status in step.exits),
            on_violation=step.on_violation.value,
            mark=any(start.mark for start in step.starts),
            max_write_bytes=step.limits.max_write_bytes,
            max_files=step.limits.max_files,
            max_procs=step.limits.max_procs,
            timeout_ns=None if step.limits.timeout_s is None else int(step.limits.timeout_s * 1e9),
        )
        for step in bound.plan.steps
    )
    closed = [0] * OPERATION_SLOTS
    for number, part in [*enumerate(bound.parts), (MAX_STEPS, bound.agent)]:
        for operation in OPERATIONS:
            if part.defaults[operation] >= Action.HOLD:
                closed[operation] |= 1 << number
    asks = 0
    for number, step, part in zip(range(MAX_STEPS), bound.plan.steps, bound.parts, strict=False):
        asks |= _asks(step.part, part) << number
    asks |= _asks(bound.plan.agent, bound.agent) << MAX_STEPS
    return CompiledPlan(
        bound.plan.name,
        infos,
        tuple(way.step for way in bound.ways),
        tuple(closed),
        bound.plan.on_violation.value,
        asks,
    )


def _asks(part: Part, bound: BoundPolicy) -> bool:
    """Whether it may reach anybody whose address is not known beforehand."""
    if part.no_network:
        return False
    return any(bound.defaults[o] < Action.HOLD for o in REACHES) or any(rule.hosts for rule in bound.rules)


def policy_of(plan: Plan, step: Step | None) -> Policy:
    """What a step may do (None: the agent outside of all steps), as a policy: rules, and defaults that leave it to the
    session's own policy, or block.
    """
    part = plan.agent if step is None else step.part
    place = Place(plan.file, 1, 1) if step is None else step.place
    on_violation = plan.on_violation if step is None else step.on_violation
    closed = {operation for operation in OPERATIONS if not _open(part, operation, outside=step is None)}
    rules = [*part.rules, *_constraints(plan.name, part, place, on_violation, closed)]
    return Policy(
        name=plan.name,
        description="",
        file=plan.file,
        rules=tuple(rules),
        defaults={o: action_on(on_violation, o) if o in closed else Action.ALLOW for o in OPERATIONS},
        packs=(plan.name,),
        files=(plan.file,),
    )


def action_on(on_violation: OnViolation, operation: Operation) -> Action:
    """What becomes of an operation that a plan forbids: what cannot be held is denied."""
    action = on_violation.action
    return Action.DENY if action is Action.HOLD and operation not in HOLDABLE else action


def _open(part: Part, operation: Operation, *, outside: bool) -> bool:
    """Whether the policy decides where no rule of the part matches."""
    said = part.defaults.get(operation)
    if said is None and operation in PART_OF_WRITE:
        said = part.defaults.get(Operation.WRITE)
    if said is None and operation is Operation.ANON_EXEC:
        said = part.defaults.get(Operation.EXEC)
    if said is not None:
        return said
    if outside and operation in CLOSED_OUTSIDE:
        return False
    if part.hosts and operation in REACHES:
        return False
    kind = next((kind for kind in KINDS if operation in kind), (operation,))
    return not any(not rule.action.blocks and set(rule.operations) & set(kind) for rule in part.rules)


def _constraints(
    name: str, part: Part, place: Place, on_violation: OnViolation, closed: set[Operation]
) -> Iterable[Rule]:
    devices = tuple(Pattern(text, place, parse(text)) for text in DEVICES)

    def rule(id_: str, operations: Iterable[Operation], action: Action, **more: object) -> Rule:
        return Rule(id_, name, place, tuple(sorted(operations)), action, implied=True, **more)  # type: ignore[arg-type]

    if part.read_only:
        for action in sorted({action_on(on_violation, o) for o in CHANGES}):
            operations = [o for o in CHANGES if action_on(on_violation, o) is action]
            yield rule("read-only", operations, action, except_paths=devices, reason="the step changes nothing")
    if part.no_network:
        for action in sorted({action_on(on_violation, o) for o in NETWORK}):
            operations = [o for o in NETWORK if action_on(on_violation, o) is action]
            yield rule("no-network", operations, action, reason="the step uses no network")
    if part.no_exec:
        for action in sorted({action_on(on_violation, o) for o in RUNS}):
            operations = [o for o in RUNS if action_on(on_violation, o) is action]
            yield rule("no-exec", operations, action, reason="the step starts no program")
    if part.hosts:
        yield rule("hosts", REACHES, Action.ALLOW, hosts=part.hosts)
    if closed & set(CHANGES):
        yield rule("devices", [Operation.WRITE, Operation.CREATE, Operation.ATTR], Action.ALLOW, paths=devices)
