# SPDX-License-Identifier: Apache-2.0
"""From YAML to a checked `Plan`: every error with file, line and column, all of them at once."""

from __future__ import annotations

from typing import Any, Final

from agentmon.model.operations import Operation
from agentmon.plan.check import check_agent, check_graph, check_step
from agentmon.plan.plan import Limits, OnViolation, Part, Plan, Start, Step
from agentmon.plan.schema import MARK, PartModel, PlanModel, StepModel, part_keys, plan_keys, step_keys
from agentmon.plan.units import parse_count, parse_duration, parse_size
from agentmon.policy import schema
from agentmon.policy.arguments import MAX_WORDS, parse_argument
from agentmon.policy.glob import GlobError, did_you_mean, parse
from agentmon.policy.hosts import parse_host
from agentmon.policy.load_rules import rule_of
from agentmon.policy.rules import Host, Pattern, Place, Rule
from agentmon.policy.schema import Location, RuleModel
from agentmon.policy.source import RuleSource
from agentmon.policy.text import read_text

#: One bit each of a word in the kernel.
MAX_STEPS: Final = 64
#: Ways to start, of all steps together: two words.
MAX_WAYS: Final = 128

#: The ids of what a plan says without rules, in records.
RESERVED: Final = ("read-only", "no-network", "no-exec", "hosts", "devices", "starts")

_MAY: Final = {"allow": True, "deny": False}


def load(path: str) -> Plan:
    """Load a plan from a file.

    Raises:
        PolicyError: it cannot be read, or is invalid.
    """
    return load_text(read_text(path, "plan"), path)


def load_text(text: str, file: str) -> Plan:
    """Load a plan from its text; ``file`` is only named in messages.

    Raises:
        PolicyError: it is invalid.
    """
    return _Loader(text, file).plan()


class _Loader:
    def __init__(self, text: str, file: str) -> None:
        self.source = RuleSource(text, file, go_on=True)
        self.complaints = self.source.complaints
        self.whole = True  # each step could be read

    def plan(self) -> Plan:
        data = self.source.data
        model, errors = schema.validate_as(PlanModel, data, plan_keys, self.source.torn)
        self._note(errors, ())
        if model is None:
            model = self._without(data, errors)
        self.source.pack = model.plan
        on_violation = self._on_violation(model.on_violation, ("on-violation",)) or OnViolation.DENY
        agent = self._agent(model.agent)
        steps = [self._step(each, i, on_violation) for i, each in enumerate(model.steps)]
        if not model.steps and not errors:
            self.complaints.add(self.source.place(("steps",), key=True), "`steps` is empty; add a step: `- id: NAME`")
        found = tuple(step for step in steps if step is not None)
        self.whole &= len(found) == len(steps) and "steps" in data
        self._check_sizes(found)
        check_graph(found, {step.id: self._needs_places(i) for i, step in enumerate(steps) if step is not None},
                    self.complaints, whole=self.whole)  # fmt: skip
        self.complaints.raise_if_any()
        return Plan(model.plan, self.source.file, found, agent, " ".join(model.description.split()), on_violation)

    # ---- parts that have not the shape of one

    def _note(self, errors: list[schema.Error], at: Location) -> None:
        what = "a rule" if "rules" in at else "a step"
        for location, is_key, message in errors:
            if at and not location:
                message = message.replace("the file must", f"{what} must")  # noqa: PLW2901  # as said there
            self.complaints.add(self.source.place((*at, *location), key=is_key), message)

    def _without(self, data: Any, errors: list[schema.Error]) -> PlanModel:
        """What is left of a plan without the keys that errors are of."""
        if not isinstance(data, dict):
            self.complaints.raise_if_any()
        left = {key: value for key, value in data.items() if key not in {str(e[0][0]) for e in errors if e[0]}}
        model, _ = schema.validate_as(PlanModel, {"plan": "unnamed", **left}, plan_keys)
        if model is None:
            self.complaints.raise_if_any()
            raise AssertionError(errors)
        self.whole = False
        return model

    def _agent(self, data: dict[str, Any]) -> Part:
        model, errors = schema.validate_as(PartModel, data, part_keys)
        self._note(errors, ("agent",))
        if model is None:
            left = {key: value for key, value in data.items() if key not in {str(e[0][0]) for e in errors if e[0]}}
            model, _ = schema.validate_as(PartModel, left, part_keys)
        agent = self._part(model, ("agent",)) if model else Part()
        if not errors:
            check_agent(agent, self._placer(("agent",)), self.complaints)
        return agent

    def _step(self, data: Any, number: int, on_violation: OnViolation) -> Step | None:
        at: Location = ("steps", number)
        torn = {location[2:] for location in self.source.torn if location[:2] == at}
        model, errors = schema.validate_as(StepModel, data, step_keys, torn)
        self._note(errors, at)
        if model is None and isinstance(data, dict):
            left = {key: value for key, value in data.items() if key not in {str(e[0][0]) for e in errors if e[0]}}
            model, _ = schema.validate_as(StepModel, left, step_keys)
        if model is None:
            return None
        self._check_words(model, at)
        starts = self._starts(model, at)
        step = Step(
            id=model.id,
            place=self.source.place((*at, "id")),
            part=self._part(model, at),
            starts=starts,
            needs=tuple(dict.fromkeys(model.needs)),
            after=tuple(dict.fromkeys(model.after)),
            description=" ".join(model.description.split()),
            limits=self._limits(model, at),
            once=model.once,
            repeat=model.repeat,
            exits=self._exits(model, at),
            on_violation=self._on_violation(model.on_violation, (*at, "on-violation")) or on_violation,
        )
        if not starts and not any(e[0] and e[0][0] == "starts" for e in errors) and not model.starts:
            self.complaints.add(
                step.place, f"step `{step.id}` has no way to start; add `starts: {{exe: …}}` or `starts: {MARK}`"
            )
        if not errors:
            check_step(step, self._placer(at), self.complaints)
        return step

    def _placer(self, at: Location) -> Any:
        def place(*key: int | str) -> Place:
            return self.source.place((*at, *key), key=True)

        return place

    # ---- parts of a step

    def _check_words(self, model: StepModel, at: Location) -> None:
        if model.exit == []:
            self._complain(
                "`exit` names no status, so the step would never be done; name one, or write `any`", *at, "exit"
            )

    def _part(self, model: PartModel, at: Location) -> Part:
        rules = tuple(filter(None, (self._rule(each, (*at, "rules", i)) for i, each in enumerate(model.rules))))
        seen: dict[str, Rule] = {}
        for rule in rules:
            first = seen.setdefault(rule.id, rule)
            if first is not rule:
                self.complaints.add(rule.place, f"rule id `{rule.id}` is already used at {first.place}; rename one")
            if rule.id in RESERVED:
                self.complaints.add(
                    rule.place, f"`{rule.id}` is what records call a constraint of the plan; rename the rule"
                )
        return Part(
            rules, self._defaults(model, at), model.read_only, model.no_network, model.no_exec, self._hosts(model, at)
        )

    def _rule(self, data: Any, at: Location) -> Rule | None:
        torn = {location[len(at) :] for location in self.source.torn if location[: len(at)] == at}
        model, errors = schema.validate_as(RuleModel, data, schema.rule_keys, torn)
        self._note(errors, at)
        if model is None and isinstance(data, dict):
            left = {key: value for key, value in data.items() if key not in {str(e[0][0]) for e in errors if e[0]}}
            model, _ = schema.validate_as(RuleModel, left, schema.rule_keys)
        if model is None:
            return None
        if model.marks is not None:
            self._complain(
                "a plan's rules set no marks, its steps are what is done; leave it to the policy", *at, "marks"
            )
        for key in ("requires", "rate"):
            if getattr(model.when, key):
                self._complain(f"`{key}` is the policy's; in a plan, `needs` says what comes first", *at, "when", key)
        if model.carve.requires:
            self._complain("`requires` is the policy's; `needs` says what comes first", *at, "except", "requires")
        if model.mode != "enforce":
            self._complain("a plan observes nothing; leave `mode` out, or write the rule in the policy", *at, "mode")
        return rule_of(self.source, model, at, self.complaints)

    def _defaults(self, model: PartModel, at: Location) -> dict[Operation, bool]:
        said: dict[Operation, bool] = {}
        for word, may in model.default.items():
            operation = schema.operation(word)
            if isinstance(operation, str):
                self._complain(operation, *at, "default", word)
            elif may not in _MAY:
                self.complaints.add(
                    self.source.place((*at, "default", word)),
                    f"`{may}` is no default of a plan; write `allow` (the policy decides) or `deny`",
                )
            else:
                said[operation] = _MAY[may]
        return said

    def _hosts(self, model: PartModel, at: Location) -> tuple[Host, ...]:
        if model.hosts == []:
            self._complain("`hosts` is empty; write `no-network: true`, or name a host", *at, "hosts")
        found: list[Host] = []
        for i, text in enumerate(model.hosts or ()):
            place = self.source.place(self._item(i, *at, "hosts"))
            try:
                found.append(parse_host(text, place))
            except ValueError as error:
                # there are no `cidrs` beside it
                message = str(error).replace("put it into `cidrs`", "allow it in a rule, by `cidrs`")
                self.complaints.add(place, message.replace("put addresses into `cidrs`", "allow addresses in a rule"))
        return tuple(found)

    def _starts(self, model: StepModel, at: Location) -> tuple[Start, ...]:
        found: list[Start] = []
        for i, start in enumerate(model.starts):
            here = self._item(i, *at, "starts")
            place = self.source.place(here)
            if start.mark and (start.exe is not None or start.argv is not None):
                self.complaints.add(place, "a mark is no program; write two ways: `starts: [mark, {exe: …}]`")
            elif not start.mark and not start.exe:
                self.complaints.add(place, "a way to start names its program; add `exe`, or write `mark`")
            else:
                argv = None if start.argv is None else self._words(start.argv, (*here, "argv"))
                found.append(Start(place, self._programs(start.exe or [], (*here, "exe")), argv, start.mark))
        return tuple(found)

    def _programs(self, texts: list[str], at: Location) -> tuple[Pattern, ...]:
        found: list[Pattern] = []
        for i, text in enumerate(texts):
            location = self._item(i, *at)
            try:
                found.append(Pattern(text, self.source.place(location), parse(text)))
            except GlobError as error:
                self.complaints.add(self.source.within(location, error.offset), f"in `{text}`: {error}")
        return tuple(found)

    def _words(self, texts: list[str], at: Location) -> tuple[Pattern, ...]:
        if len(texts) > MAX_WORDS:
            self._complain(f"{len(texts)} arguments, {MAX_WORDS} fit; end in `**`", *at)
        found: list[Pattern] = []
        for i, text in enumerate(texts):
            location = self._item(i, *at)
            try:
                found.append(Pattern(text, self.source.place(location), parse_argument(text)))
            except GlobError as error:
                self.complaints.add(self.source.within(location, error.offset), f"in `{text}`: {error}")
        return tuple(found)

    def _limits(self, model: StepModel, at: Location) -> Limits:
        def number(key: str, text: str | None, read: Any) -> Any:
            if text is None:
                return None
            try:
                return read(text)
            except ValueError as error:
                self.complaints.add(self.source.place((*at, key)), str(error))
                return None

        return Limits(
            number("max-write", model.max_write, parse_size),
            number("max-files", model.max_files, parse_count),
            number("max-procs", model.max_procs, parse_count),
            number("timeout", model.timeout, parse_duration),
        )

    def _exits(self, model: StepModel, at: Location) -> frozenset[int] | None:
        found: set[int] = set()
        for i, text in enumerate(model.exit):
            if text == "any" and len(model.exit) == 1:
                return None
            if text.isascii() and text.isdecimal() and int(text) <= 255:
                found.add(int(text))
            else:
                self.complaints.add(
                    self.source.place(self._item(i, *at, "exit")),
                    f"`{text}` is no exit status; write numbers from 0 to 255 (128 + n for signal n), or `any` alone",
                )
        return frozenset(found)

    def _on_violation(self, word: str | None, at: Location) -> OnViolation | None:
        if word is None:
            return None
        words = [each.value for each in OnViolation]
        if word in words:
            return OnViolation(word)
        self.complaints.add(self.source.place(at), f"unknown `on-violation: {word}`{did_you_mean(word, words)}")
        return None

    # ---- all of it

    def _check_sizes(self, steps: tuple[Step, ...]) -> None:
        if len(steps) > MAX_STEPS:
            self.complaints.add(
                steps[MAX_STEPS].place, f"{len(steps)} steps, {MAX_STEPS} fit; let one step have several ways to start"
            )
        ways = 0
        for step in steps:
            ways += len(step.starts)
            if ways > MAX_WAYS:
                self.complaints.add(
                    step.place, f"more than {MAX_WAYS} ways to start; use globs such as `**/{{cp,mv}}` in one `exe`"
                )
                break

    def _needs_places(self, number: int) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for key in ("after", "needs"):
            at: Location = ("steps", number, key)
            names = self.source.data["steps"][number].get(key)
            texts = [names] if isinstance(names, str) else names if isinstance(names, list) else []
            found |= {
                text: self.source.place(self._item(i, *at)) for i, text in enumerate(texts) if isinstance(text, str)
            }
        return found

    def _complain(self, message: str, *at: int | str) -> None:
        self.complaints.add(self.source.place(at, key=True), message)

    def _item(self, i: int, *at: int | str) -> Location:
        location = (*at, i)
        return location if location in self.source.places else at
