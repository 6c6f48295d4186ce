# SPDX-License-Identifier: Apache-2.0
"""Test cases in YAML beside a policy: ``NAME.test.yaml`` for ``NAME.yaml``.

Each case goes through the reference evaluator and through the compiled tables; they must agree with it and each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from agentmon.errors import NoPolicyError, PolicyError
from agentmon.model.conditions import Risk, arguments_of
from agentmon.model.operations import Action, Operation, Reason
from agentmon.model.tables import NO_RULE
from agentmon.policy import schema
from agentmon.policy.bind import BoundPolicy, bind_policy, marks_of, uid_of
from agentmon.policy.compile import compile_policy
from agentmon.policy.document import Document
from agentmon.policy.evaluate import Evaluator, Target, Verdict
from agentmon.policy.explain import of_resolver
from agentmon.policy.glob import did_you_mean
from agentmon.policy.hosts import is_name, parse_host
from agentmon.policy.hours import parse_moment
from agentmon.policy.load import load
from agentmon.policy.network import parse_network
from agentmon.policy.rules import Complaints, Place, Policy, Variables
from agentmon.policy.situation import Situation
from agentmon.policy.text import read_text
from agentmon.policy.walk import argument_facts, exe_tags, run

#: What cases see as variables, unless the file has its own: the same on every machine.
NEUTRAL: Final = {"workspace": "/home/user/workspace", "home": "/home/user", "user": "user", "tmp": "/tmp"}  # noqa: S108  # a name


class Circumstances(Protocol):
    """What people say of who acts."""

    @property
    def argv(self) -> Sequence[str]: ...
    @property
    def parent(self) -> Sequence[str]: ...
    @property
    def acting(self) -> str | None: ...
    @property
    def risk(self) -> str: ...
    @property
    def time(self) -> str | None: ...
    @property
    def marks(self) -> Sequence[str]: ...
    @property
    def over(self) -> Sequence[str]: ...


class _CaseModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    op: str
    object: str = ""
    expect: str
    would: str | None = None
    rule: str | None = None
    exe: str | None = None
    argv: schema.Texts = []
    parent: schema.Texts = []
    acting: str | None = Field(default=None, alias="user")
    risk: str = "normal"
    time: str | None = None
    marks: schema.Texts = []
    over: schema.Texts = []


class _FileModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    policy: str | None = None
    variables: dict[str, str] = {}
    cases: list[_CaseModel] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Result:
    """One case and what came of it. ``failure`` is empty when it passed."""

    place: Place
    operation: Operation
    object: str
    expect: Action
    action: Action
    rule: str | None
    failure: str = ""


def cases_file(policy_file: str) -> str:
    """The file that holds the cases of a policy file."""
    stem, _ = os.path.splitext(policy_file)
    return f"{stem}.test.yaml"


def run_cases(path: str, *, directories: Sequence[Path] | None = None) -> list[Result]:
    """Run the cases of one test file.

    Raises:
        PolicyError: the file, a case or the policy is invalid.
    """
    if not os.path.exists(path):
        raise PolicyError(f"there are no cases to run: no file `{path}`; docs/policy.md says how to write one")
    document = Document(read_text(path), path)
    model = _model(document)
    try:
        policy = load(model.policy or path.removesuffix(".test.yaml") + ".yaml", directories=directories)
    except NoPolicyError as error:
        if model.policy is None:
            raise
        raise document.place(("policy",)).error(str(error)) from None
    unknown = [name for name in model.variables if name not in NEUTRAL]
    if unknown:
        place = document.place(("variables", unknown[0]), key=True)
        raise place.error(f"unknown variable `{unknown[0]}`{did_you_mean(unknown[0], list(NEUTRAL))}")
    for name, path_or_name in model.variables.items():
        try:
            Variables.of(**(NEUTRAL | {name: path_or_name}))
        except PolicyError as error:
            raise document.place(("variables", name)).error(str(error)) from None
    variables = Variables.of(**(NEUTRAL | model.variables))
    users = Users()
    bound = bind_policy(policy, variables, uid_of=users)
    evaluator, compiled = Evaluator(bound), compile_policy(bound)
    full = Evaluator(bound.observed or bound)
    complaints = Complaints()
    results = []
    for i, case in enumerate(model.cases):
        operation, expect = schema.operation(case.op), schema.action(case.expect)
        would = schema.action(case.would or case.expect)
        for key, value in (("op", operation), ("expect", expect), ("would", would)):
            if isinstance(value, str) and (key != "would" or case.would):
                complaints.add(document.place(("cases", i, key)), value)
        if case.rule is not None and all(r.id != case.rule for r in policy.rules):
            ids = [r.id for r in policy.rules]
            complaints.add(document.place(("cases", i, "rule")), f"no rule `{case.rule}`{did_you_mean(case.rule, ids)}")
        if isinstance(operation, str) or isinstance(expect, str) or isinstance(would, str):
            continue
        exe = None if case.exe is None else expand(case.exe, variables)
        if exe is not None and (not exe.startswith(b"/") or b"\0" in exe):
            place = document.place(("cases", i, "exe"))
            complaints.add(place, f"`{case.exe}` is not a program's path; start it with `/`, `~` or `{{workspace}}`")
            continue
        tags = 0 if exe is None else exe_tags(compiled, exe)
        try:
            target = parse_object(operation, case.object, variables)
        except ValueError as error:
            complaints.add(document.place(("cases", i, "object")), str(error))
            continue
        for key, message in unknown_names(case, policy):
            complaints.add(document.place(("cases", i, key)), message)
        if case.argv and operation is not Operation.EXEC:
            complaints.add(document.place(("cases", i, "argv")), f"`{operation.word}` has no arguments; take them out")
        try:
            circumstances = situation(case, variables, users)
            facts = evaluator.facts(circumstances)
        except ValueError as error:
            complaints.add(document.place(("cases", i)), str(error))
            continue
        verdict = evaluator.judge(operation, target, exe, facts)
        told = argument_facts(compiled, circumstances.arguments)
        other = run(compiled, operation, target, tags, facts & ~arguments_of(compiled.conditions) | told)
        if fixed := of_resolver(bound, operation, target):
            verdict = other = Verdict(fixed[0], reason=Reason.RESOLVER)
        place = document.place(("cases", i))
        rule = _id(bound, verdict)
        failure = _failure(expect, None if case.would else case.rule, verdict, other, rule)
        if case.would and not failure:
            then = verdict if fixed else full.judge(operation, target, exe, facts)
            failure = _failure(would, case.rule, then, then, _id(full.bound, then))
            failure = f"enforced: {failure}" if failure else ""
        results.append(Result(place, operation, case.object, expect, verdict.action, rule, failure))
    complaints.raise_if_any()
    return results


def unknown_names(case: Circumstances, policy: Policy) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of marks and rates that the policy does not have: a typo would make a case say nothing."""
    rated = [r.id for r in policy.rules if r.rate]
    yield from (("over", f"no rule `{n}` with a rate{did_you_mean(n, rated)}") for n in case.over if n not in rated)
    marks = marks_of(policy)
    yield from (("marks", f"no rule sets the mark `{n}`{did_you_mean(n, marks)}") for n in case.marks if n not in marks)


class Users:
    """Numbers of users, also of those that this host does not have: cases are the same on every machine."""

    def __init__(self) -> None:
        self._made_up: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        """The number of a user, by its name."""
        return uid if (uid := uid_of(name)) is not None else -2 - self._made_up.setdefault(name, len(self._made_up))


def situation(case: Circumstances, variables: Variables, users: Callable[[str], int | None]) -> Situation:
    """Who acts in a case, and when.

    Raises:
        ValueError: there is no such risk or moment.
    """
    risk = schema.risk(case.risk)
    if not isinstance(risk, Risk):
        raise ValueError(risk)  # noqa: TRY004  # it says what is wrong
    session_user = os.fsdecode(variables.user)
    name = case.acting.replace("{user}", session_user) if case.acting else session_user
    uid = int(name) if name.isdecimal() else users(name)
    if uid is None and case.acting:
        raise ValueError(f"this host has no user `{name}`; name one of its users, or write a number")
    time_s = None if case.time is None else parse_moment(case.time)
    parents = tuple(expand(program, variables) for program in case.parent)
    marks = tuple(reversed(dict.fromkeys(reversed(case.marks))))  # of each, the last time
    arguments = tuple(os.fsencode(_filled(text, variables)) for text in case.argv)
    if any(b"\0" in argument for argument in arguments):
        raise ValueError("no argument has a NUL byte; take it out of `argv`")
    return Situation(parents, -1 if uid is None else uid, risk, time_s, marks, tuple(case.over), arguments)


def _id(bound: BoundPolicy, verdict: Verdict) -> str | None:
    return None if verdict.rule == NO_RULE else bound.rules[verdict.rule].rule.id


def _failure(expect: Action, wanted: str | None, verdict: Verdict, other: Verdict, rule: str | None) -> str:
    by = f"by rule `{rule}`" if rule else "by default"
    by = "as port 53 is the resolver's" if verdict.reason is Reason.RESOLVER else by
    if verdict != other:
        return f"the evaluator says {verdict.action.word}, the automaton {other.action.word}: this is a bug of agentmon"
    if verdict.action != expect:
        return f"expected {expect.word}, got {verdict.action.word} {by}"
    if wanted is not None and wanted != rule:
        return f"expected rule `{wanted}`, got {verdict.action.word} {by}"
    return ""


def _model(document: Document) -> _FileModel:
    model, errors = schema.validate_as(
        _FileModel, document.data, lambda at: schema.keys(_CaseModel if len(at) > 1 else _FileModel)
    )
    complaints = Complaints()
    for location, is_key, message in errors:
        complaints.add(document.place(location, key=is_key), message)
    complaints.raise_if_any()
    assert model is not None
    return model


def expand(text: str, variables: Variables) -> bytes:
    """A path as people write it: leading ``~`` and ``{variables}`` filled in, nothing else special."""
    text = _filled(text, variables)
    if text == "~" or text.startswith("~/"):
        text = os.fsdecode(variables.home).rstrip("/") + text[1:]
    return os.fsencode(text or "/")


def _filled(text: str, variables: Variables) -> str:
    for name, value in variables.mapping().items():
        text = text.replace(f"{{{name}}}", os.fsdecode(value))
    return text


def parse_object(operation: Operation, text: str, variables: Variables) -> Target:
    """The object of an operation as people write it: a true path, ``address:port``, ``name:port``, or nothing (None).

    Raises:
        ValueError: it is neither; the message says what to write.
    """
    if operation.is_bare:
        if text:
            raise ValueError(f"`{operation.word}` has no object; leave `{text}` out")
        return None
    if operation.is_net and not text:
        raise ValueError(f"`{operation.word}` has an object; add such as `object: 10.0.0.1:443`")
    if operation.is_net and is_name(text):
        name, _, port = text.partition(":")
        if f".{name.lower().removesuffix('.')}".endswith(".localhost"):
            port = port or "443"
            raise ValueError(f"`{text}` is this host; write `127.0.0.1:{port}` or `[::1]:{port}`")
        host = parse_host(text, Place("", 0, 0))
        if host.pattern.wildcard or host.ports is None or host.ports[0] != host.ports[1]:
            raise ValueError(f"`{text}` is not one name and port; write such as `api.example.com:443`")
        return host.pattern.name, host.ports[0]
    if operation.is_net:
        network = parse_network(text, Place("", 0, 0))
        if network.length_bits != 128 or network.ports is None or network.ports[0] != network.ports[1]:
            raise ValueError(f"`{text}` is not one address and port; write such as `10.0.0.1:443` or `[::1]:80`")
        return network.address.to_bytes(16, "big"), network.ports[0]
    if not text:
        raise ValueError(f"`{operation.word}` has an object; add `object: /PATH`")
    path = expand(text, variables)
    if b"\0" in path:
        raise ValueError(f"`{text}` has a NUL byte, which no path has; take it out")
    if operation is Operation.UNIX and path.startswith(b"@"):
        return path
    if not path.startswith(b"/"):
        raise ValueError(f"`{text}` is not absolute; start it with `/`, `~` or `{{workspace}}`")
    if path != b"/" and os.path.normpath(path) != path:
        raise ValueError(f"`{text}` is no true path; write it without `.`, `..`, `//` and a final `/`")
    return path
