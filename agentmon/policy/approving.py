# SPDX-License-Identifier: Apache-2.0
"""What to write into a policy so that it never holds one thing again: the smallest edit that is proven to do only that.

A rule that allows does not loosen one that holds: the most severe wins. So the rule that holds gets a hole, and the
hole a rule that allows. Both policies are then compared on every object (`diff`): one verdict may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agentmon.errors import AgentmonError, PolicyError
from agentmon.model.operations import Action, Operation
from agentmon.policy import diff
from agentmon.policy.bind import BoundPolicy, bind_policy
from agentmon.policy.document import Document
from agentmon.policy.edit import CannotEditError, PolicyText, shown
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.generalise import literal
from agentmon.policy.load import load, load_text
from agentmon.policy.network import parse_network
from agentmon.policy.rules import Place, Policy, Rule, Variables
from agentmon.policy.text import read_text

#: What of a rule says when it holds, its objects apart.
_CONDITIONS = ("exe", "argv", "parent", "user", "when", "marks")
_HOLES = ("exe", "argv", "parent", "user", "risk", "time", "requires")


class ByHandError(AgentmonError):
    """There is no edit that is sure to do this and nothing else."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is held, and by which rule (empty: by the default)."""

    operation: Operation
    object: str
    rule: str
    also_read: bool = False  # the file is opened for both

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What it does to its object."""
        return (Operation.READ, self.operation) if self.also_read else (self.operation,)

    @property
    def key(self) -> str:
        """What objects of the operation are called in a rule."""
        return "cidrs" if self.operation.is_net else "paths"

    @property
    def pattern(self) -> str:
        """The object alone, as a rule names it. Raises `ByHandError`."""
        if not self.object.isprintable():
            raise ByHandError("its name has characters that a policy cannot hold; allow its directory, or rename it")
        if self.operation.is_path:
            return literal(self.object)
        try:
            parse_network(self.object, Place("", 1, 1))
        except ValueError:
            raise ByHandError(f"`{self.object}` is no address") from None
        return self.object


@dataclass(frozen=True, slots=True)
class Edit:
    """The new text, and the id of the rule that allows."""

    text: str
    rule: str
    writable: bool
    """The policy lets its own agent write the file."""


def stub(pack: str) -> tuple[str, str]:
    """The name and text of a policy that is an installed pack and nothing else."""
    name = f"{pack[:58]}-local"
    return name, f"# {pack}, and what was approved for good.\npolicy: {name}\ninclude: [{pack}]\n"


def approve_always(text: str, file: str, variables: Variables, held: Held, who: str, date: str) -> Edit:
    """Edit a policy so that this is allowed. Raises `ByHandError`; it says what to do. `PolicyError`: it is invalid."""
    policy = load_text(text, file)
    before = bind_policy(policy, variables)
    names = {rule.id for rule in policy.rules}
    new_id = next(name for n in range(1, len(names) + 2) if (name := f"approved-{date}-{n}") not in names)
    allow = {"id": new_id, "reason": f"approved by {who} on {date}"}
    if held.also_read and not _is_read_held(before, held):
        held = replace(held, also_read=False)
    rules = _holding(before, held)
    if held.rule and held.rule not in {rule.id for rule in rules}:
        raise ByHandError(
            f"`{file}` has no rule `{held.rule}` that holds this (any more): it was changed since the session was put"
            " under it. Approve for the session, or see `agentmon reload`"
        )
    named = [rule for rule in rules if rule.id == held.rule]
    why = "it would change nothing"
    for holes in (named, rules) if len(rules) > len(named) else (named,):
        try:
            found, why = _attempt(_Attempt(text, file, policy, before, held, holes, allow))
        except CannotEditError as error:
            found, why = None, str(error)
        if found is not None:
            exposed = not Evaluator(before).always_blocks(Operation.WRITE, file.encode(errors="surrogateescape"))
            return Edit(found, new_id, exposed)
    raise ByHandError(_by_hand(file, held, named, why))


@dataclass(frozen=True, slots=True)
class _Attempt:
    text: str
    file: str
    policy: Policy
    before: BoundPolicy
    held: Held
    holes: list[Rule]
    allow: dict[str, str]


def _attempt(it: _Attempt) -> tuple[str | None, str]:
    """The new text; else why not. What else would change is first kept as it is by rules of its own."""
    kept: dict[Action, list[Operation]] = {}
    for _ in range(2):
        text = _edited(it, kept)
        try:
            after = bind_policy(load_text(text, it.file), it.before.variables)
        except PolicyError as error:
            return None, str(error).splitlines()[0]
        said = diff.verdicts(it.before, after, whole=True)
        wanted = [d for d in said.differences if d.operation in it.held.operations and d.new.rule == it.allow["id"]]
        others = [d for d in said.differences if d not in wanted]
        if not said.complete:
            return None, "the policy is too large to be compared on every object"
        if any(d.old.action is not Action.HOLD or d.new.action is not Action.ALLOW for d in wanted):
            return None, "it would allow this also where it is not held"
        if not others:
            is_all = {d.operation for d in wanted} == set(it.held.operations)
            return (text, "") if is_all else (None, "another rule or the default still holds it")
        if kept or any(d.operation in it.held.operations for d in others):
            break
        for d in others:
            operations = kept.setdefault(d.old.action, [])
            operations += [d.operation] if d.operation not in operations else []
    other = others[0]
    what = f"{other.operation.word} of `{other.object}`"
    return None, f"it would also turn {what} from {other.old.action.word} to {other.new.action.word}"


def _edited(it: _Attempt, kept: Mapping[Action, Iterable[Operation]]) -> str:
    held, text = it.held, PolicyText(it.text)
    objects = {held.key: [held.pattern]}
    conditions: dict[str, Any] = {}
    for rule in it.holes:
        written = _written(rule, it.text if rule.place.file == it.file else None)
        if rule is it.holes[0]:
            conditions = _conditions(written, held.operation)
        if rule.place.file == it.file and text.has_rule(rule.id):
            text.add_except(rule.id, held.key, held.pattern)
            continue
        for pack in _includes(it.text, it.file, rule.id):
            if any(r.place == rule.place for r in load(pack).rules):
                text.leave_out(pack, rule.id)
        hole = dict(written.get("except", {}))
        hole[held.key] = [*_list(hole.get(held.key, [])), held.pattern]
        text.add_rule({**written, "except": hole})
    for action, operations in kept.items():
        name = f"{it.allow['id']}-{action.word}"
        reason = {"reason": it.holes[0].reason} if it.holes and it.holes[0].reason else {}
        on = [operation.word for operation in operations]
        text.add_rule({"id": name, "on": on, **objects, **conditions, "action": action.word, **reason})
    words = [operation.word for operation in held.operations]
    new = {"id": it.allow["id"], "on": words if held.also_read else words[0]}
    text.add_rule({**new, **objects, **conditions, "action": "allow", "reason": it.allow["reason"]})
    return text.result


def _holding(bound: BoundPolicy, held: Held) -> list[Rule]:
    """The rules that hold this object, whoever asks."""
    whoever = replace(bound, rules=tuple(replace(r, exe_any=0, exe_not=0) for r in bound.rules))
    if held.operation.is_net:
        network = parse_network(held.pattern, Place("", 1, 1))
        target: Any = (network.address.to_bytes(16, "big"), network.ports[0] if network.ports else 0)
    else:
        target = held.object.encode(errors="surrogateescape")
    evaluator = Evaluator(whoever)
    matching = {
        r.rule.id: r.rule for operation in held.operations
        for r in evaluator.matches(operation, target, 0, None) if r.action is Action.HOLD
    }  # fmt: skip
    named = [r.rule for r in bound.rules if r.rule.id == held.rule and r.rule.hosts and r.action is Action.HOLD]
    if named:
        raise ByHandError(
            f"rule `{held.rule}` ({named[0].place}) names `hosts`, which have no `except`: set its action to `allow`,"
            " or take the host out of it, and allow it by a rule of its own"
        )
    return list(matching.values())


def _is_read_held(bound: BoundPolicy, held: Held) -> bool:
    by_default = bound.defaults[Operation.READ] is Action.HOLD
    return by_default or bool(_holding(bound, Held(Operation.READ, held.object, "")))


def _written(rule: Rule, text: str | None) -> dict[str, Any]:
    """The rule as it stands in its file, or in this text of it."""
    data = Document(read_text(rule.place.file) if text is None else text, rule.place.file).data
    for each in data["rules"]:
        if each["id"] == rule.id:
            return dict(each)
    raise CannotEditError(f"`{rule.place.file}` has no rule `{rule.id}` any more")


def _conditions(written: Mapping[str, Any], operation: Operation) -> dict[str, Any]:
    """When the rule holds, for rules on one object of it."""
    program = operation is Operation.EXEC  # there, `exe` is the object
    found = {key: written[key] for key in _CONDITIONS if key in written and not (program and key == "exe")}
    holes = {k: v for k, v in written.get("except", {}).items() if k in _HOLES and not (program and k == "exe")}
    return found | ({"except": holes} if holes else {})


def _includes(text: str, file: str, rule: str) -> list[str]:
    """The packs that are included, but for those without this rule already."""
    given = [{"pack": e} if isinstance(e, str) else e for e in _list(Document(text, file).data.get("include", []))]
    return [each["pack"] for each in given if rule not in _list(each.get("without", []))]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _by_hand(file: str, held: Held, named: list[Rule], why: str) -> str:
    what = f"{' and '.join(operation.word for operation in held.operations)} of `{held.object}`"
    if named:
        hole = shown({held.key: [held.pattern]})
        how = f"give rule `{held.rule}` ({named[0].place}) the hole `except: {hole}`"
    else:
        how = f"add a rule that allows `{held.pattern}`"
    return (
        f"no edit of `{file}` was found that allows {what} and changes nothing else: {why}. By hand: {how}, and look at"
        " it with `agentmon policy diff`"
    )
