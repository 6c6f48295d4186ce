# SPDX-License-Identifier: Apache-2.0
"""A policy and a plan for the kernel: both judge what is asked for, and the stricter wins.

Their rules are numbered together, most severe first, and share sets of programs and conditions: so the kernel gathers
these once, and a rule's number in a record says which it was, of whichever of them. Each step (and what is outside of
all) is a policy of its own, in which the others' rules are there but for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from agentmon.model.conditions import Arguments
from agentmon.model.operations import OPERATION_SLOTS, Action
from agentmon.model.tables import CompiledPolicy, PlanTables
from agentmon.plan.bind import BoundPlan, bind_plan, compile_plan, policy_of
from agentmon.plan.plan import Plan
from agentmon.policy.bind import BoundPolicy, BoundRule, bind_policy, uid_of
from agentmon.policy.compile import compile_policy
from agentmon.policy.implied import with_control
from agentmon.policy.rules import Policy, Variables

#: Ways that one automaton tells apart.
_WAYS_EACH = 64


class Fenced:
    """A policy and a plan for one session.

    Attributes:
        policy: what the policy says, as if there were no plan; its rules have the common numbers.
        parts: the same of each step, and last of what is outside of all.
        bound: the plan.

    ``control``: a socket that may be connected to in each of them.

    Raises:
        PolicyError: an unknown user, a path that is too long, or more conditions or sets of programs than fit both.
    """

    def __init__(
        self,
        policy: Policy,
        plan: Plan,
        variables: Variables,
        *,
        control: bytes = b"",
        uid_of: Callable[[str], int | None] = uid_of,
    ) -> None:
        self.bound: BoundPlan = bind_plan(plan, variables, uid_of=uid_of)
        stated = [policy_of(plan, step) for step in (*plan.steps, None)]
        if control:
            stated = [with_control(part, control, variables) for part in stated]
        together = replace(
            policy,
            # what the whole policy only observes, the plan does not
            rules=(
                *(
                    replace(rule, observe=rule.observe or (policy.observe and rule.action.blocks))
                    for rule in policy.rules
                ),
                *(rule for part in stated for rule in part.rules),
            ),
            observe=False,
            files=(*policy.files, *plan_files(plan)),
        )
        own = len(policy.rules)
        joint = bind_policy(together, variables, uid_of=uid_of)
        mine = {id(rule) for rule in together.rules[:own]}
        open_ = policy.observe
        self.policy = _only(joint, mine, [Action.ALLOW] * OPERATION_SLOTS if open_ else joint.defaults)
        if joint.observed is not None or open_:
            full = joint.observed or joint
            self.policy = replace(self.policy, observed=_only(full, mine, full.defaults))
        found, at = [], own
        for part, bound in zip(stated, (*self.bound.parts, self.bound.agent), strict=True):
            rules = {id(rule) for rule in together.rules[at : at + len(part.rules)]}
            at += len(part.rules)
            found.append(_only(joint, rules, bound.defaults))
        self.parts = tuple(found)

    def compile(self, *, split: bool | None = None) -> CompiledPolicy:
        """The tables of both.

        Raises:
            PolicyError: they do not fit; the message names the rules to blame and the remedy.
        """
        distinct: dict[object, int] = {}
        parts: list[CompiledPolicy] = []
        part_of: list[int] = []
        for part in self.parts:
            key = (part.defaults, tuple(_meaning(rule) for rule in part.rules if rule.operations))
            if key not in distinct:
                distinct[key] = len(parts)
                parts.append(_compile_part(part))
            part_of.append(distinct[key])
        ways = self.bound.ways
        tables = PlanTables(
            compiled=compile_plan(self.bound),
            parts=tuple(parts),
            part_of=tuple(part_of),
            ways=tuple(self._ways(at) for at in range(0, len(ways), _WAYS_EACH)),
            wanted=sum(1 << i for i, way in enumerate(ways) if way.argv is not None),
        )
        return replace(compile_policy(self.policy, split=split), plan=tables)

    def _ways(self, at: int) -> CompiledPolicy:
        """A policy without rules that knows some of the ways."""
        some = self.bound.ways[at : at + _WAYS_EACH]
        plan = self.bound.plan
        empty = Policy(plan.name, "", plan.file, (), {}, packs=(plan.name,), files=(plan.file,))
        conditions = tuple(Arguments(i) for i in range(len(some)))
        bound = BoundPolicy(
            empty,
            self.bound.variables,
            (),
            tuple(way.exe for way in some),
            (Action.ALLOW,) * OPERATION_SLOTS,
            (Action.ALLOW,) * OPERATION_SLOTS,
            conditions=conditions,
            argument_sets=tuple(way.argv or () for way in some),
        )
        return compile_policy(bound)


def _compile_part(part: BoundPolicy) -> CompiledPolicy:
    """Without what the session's policy says already: who carries which tags, what arguments say, what is marked."""
    bare = replace(part, exe_sets=((),) * len(part.exe_sets), argument_sets=((),) * len(part.argument_sets))
    return replace(compile_policy(bare), effects=(), marks=(), lineage=())


def plan_files(plan: Plan) -> tuple[str, ...]:
    """What a plan was read from."""
    return (plan.file,)


def _only(joint: BoundPolicy, rules: Collection[int], defaults: Sequence[Action]) -> BoundPolicy:
    """A policy in which only some rules are in force; the others keep their numbers."""
    kept = tuple(
        rule if id(rule.rule) in rules else replace(rule, operations=frozenset(), includes=(), excepts=(), hosts=())
        for rule in joint.rules
    )
    severest = list(defaults)
    for rule in kept:
        for operation in rule.operations:
            severest[operation] = max(severest[operation], rule.action)
    return replace(joint, rules=kept, defaults=tuple(defaults), severest=tuple(severest), observed=None)


def _meaning(rule: BoundRule) -> tuple[object, ...]:
    """Equal for rules that say the same, wherever they are written."""
    return (
        rule.operations, rule.action, rule.includes, rule.excepts, rule.exe_any, rule.exe_not, rule.ranges,
        rule.except_ranges, rule.hosts, rule.need, rule.need_not,
    )  # fmt: skip
