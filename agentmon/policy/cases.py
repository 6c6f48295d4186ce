# SPDX-License-Identifier: Apache-2.0
"""Test cases in YAML beside a policy: ``NAME.test.yaml`` for ``NAME.yaml``.

Each case goes through the reference evaluator and through the compiled tables; they must agree with it and each other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentmon.errors import PolicyError
from agentmon.model.operations import Action, Operation
from agentmon.model.tables import NO_RULE
from agentmon.policy import schema
from agentmon.policy.bind import bind_policy
from agentmon.policy.compile import compile_policy
from agentmon.policy.document import Document
from agentmon.policy.evaluate import Evaluator, Verdict
from agentmon.policy.glob import did_you_mean
from agentmon.policy.load import load, read_text
from agentmon.policy.network import parse_network
from agentmon.policy.rules import Complaints, Place, Variables
from agentmon.policy.walk import exe_tags, run_automaton, run_net

#: What cases see as variables, unless the file has its own: the same on every machine.
NEUTRAL: Final = {"workspace": "/home/user/workspace", "home": "/home/user", "user": "user", "tmp": "/tmp"}  # noqa: S108  # a name


class _CaseModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    op: str
    object: str
    expect: str
    rule: str | None = None
    exe: str | None = None


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
    policy = load(model.policy or path.removesuffix(".test.yaml") + ".yaml", directories=directories)
    unknown = [name for name in model.variables if name not in NEUTRAL]
    if unknown:
        raise PolicyError(
            f"{document.place(('variables', unknown[0]), key=True)}: unknown variable `{unknown[0]}`"
            f"{did_you_mean(unknown[0], list(NEUTRAL))}"
        )
    variables = Variables.of(**(NEUTRAL | model.variables))
    bound = bind_policy(policy, variables)
    evaluator, compiled = Evaluator(bound), compile_policy(bound)
    complaints = Complaints()
    results = []
    for i, case in enumerate(model.cases):
        operation, expect = schema.operation(case.op), schema.action(case.expect)
        for key, value in (("op", operation), ("expect", expect)):
            if isinstance(value, str):
                complaints.add(document.place(("cases", i, key)), value)
        if case.rule is not None and all(r.id != case.rule for r in policy.rules):
            ids = [r.id for r in policy.rules]
            complaints.add(document.place(("cases", i, "rule")), f"no rule `{case.rule}`{did_you_mean(case.rule, ids)}")
        if isinstance(operation, str) or isinstance(expect, str):
            continue
        exe = None if case.exe is None else expand(case.exe, variables)
        tags = 0 if exe is None else exe_tags(compiled, exe)
        try:
            target = parse_object(operation, case.object, variables)
        except ValueError as error:
            complaints.add(document.place(("cases", i, "object")), str(error))
            continue
        if isinstance(target, bytes):
            verdict = evaluator.path(operation, target, exe)
            other = run_automaton(compiled, operation, target, tags)
        else:
            verdict = evaluator.net(operation, *target, exe)
            other = run_net(compiled, operation, *target, tags)
        rule = None if verdict.rule == NO_RULE else compiled.rules[verdict.rule].id
        place = document.place(("cases", i))
        failure = _failure(case, expect, verdict, other, rule)
        results.append(Result(place, operation, case.object, expect, verdict.action, rule, failure))
    complaints.raise_if_any()
    return results


def _failure(case: _CaseModel, expect: Action, verdict: Verdict, other: Verdict, rule: str | None) -> str:
    by = f"by rule `{rule}`" if rule else "by default"
    if verdict != other:
        return f"the evaluator says {verdict.action.word}, the automaton {other.action.word}: this is a bug of agentmon"
    if verdict.action != expect:
        return f"expected {expect.word}, got {verdict.action.word} {by}"
    if case.rule is not None and case.rule != rule:
        return f"expected rule `{case.rule}`, got {verdict.action.word} {by}"
    return ""


def _model(document: Document) -> _FileModel:
    try:
        return _FileModel.model_validate(document.data)
    except ValidationError as error:
        complaints = Complaints()
        for e in error.errors(include_url=False):
            location: schema.Location = e["loc"]
            key = str(location[-1]) if location else ""
            known = list((_CaseModel if len(location) > 1 else _FileModel).model_fields)
            message = {
                "extra_forbidden": f"unknown key `{key}`{did_you_mean(key, known)}",
                "missing": f"`{key}` is missing; a case has `op`, `object` and `expect`",
                "too_short": "`cases` is empty; add one",
            }.get(e["type"], f"`{key}`: {e['msg'].lower()}")
            complaints.add(document.place(location, key=e["type"] == "extra_forbidden"), message)
        complaints.raise_if_any()
        raise


def expand(text: str, variables: Variables) -> bytes:
    """A path as people write it: leading ``~`` and ``{variables}`` filled in, nothing else special."""
    for name, value in variables.mapping().items():
        text = text.replace(f"{{{name}}}", os.fsdecode(value))
    if text == "~" or text.startswith("~/"):
        text = os.fsdecode(variables.home).rstrip("/") + text[1:]
    return os.fsencode(text or "/")


def parse_object(operation: Operation, text: str, variables: Variables) -> bytes | tuple[bytes, int]:
    """The object of an operation as people write it: a true path, or ``address:port``.

    Raises:
        ValueError: it is neither; the message says what to write.
    """
    if operation.is_net:
        network = parse_network(text, Place("", 0, 0))
        if network.length_bits != 128 or network.ports is None or network.ports[0] != network.ports[1]:
            raise ValueError(f"`{text}` is not one address and port; write such as `10.0.0.1:443` or `[::1]:80`")
        return network.address.to_bytes(16, "big"), network.ports[0]
    path = expand(text, variables)
    if not path.startswith(b"/"):
        raise ValueError(f"`{text}` is not absolute; start it with `/`, `~` or `{{workspace}}`")
    if path != b"/" and os.path.normpath(path) != path:
        raise ValueError(f"`{text}` is no true path; write it without `.`, `..`, `//` and a final `/`")
    return path
