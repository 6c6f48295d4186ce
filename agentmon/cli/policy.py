# SPDX-License-Identifier: Apache-2.0
"""``agentmon policy {check,test,explain,list,show,diff,learn}``: all of it without a daemon and without privileges."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentmon.cli import policy_diff, policy_learn
from agentmon.cli.common import UsageError, add_json, complain, print_json
from agentmon.cli.variables import add_variables, variables
from agentmon.errors import PolicyError
from agentmon.model.text import attempt

if TYPE_CHECKING:
    from agentmon.policy.bind import BoundPolicy
    from agentmon.policy.explain import Match
    from agentmon.policy.rules import Host, Network, Pattern, Policy, Requirement, Rule, Time, User
    from agentmon.policy.situation import Situation

OK, INVALID, FAILED = 0, 3, 2
DEFAULT_POLICY = "coding-agent"

_DESCRIPTION = """\
Work with policies: check their syntax, run their tests, ask why they say what they say.

A policy is named by an installed pack (`agentmon policy list`) or by a path with `/` or `.yaml`.
"""
_EXAMPLES = """\
examples:
  agentmon policy check my-agent.yaml
  agentmon policy test policies/coding-agent.yaml
  agentmon policy explain read ~/.ssh/id_rsa
  agentmon policy diff coding-agent my-agent.yaml
  sudo agentmon policy learn last > my-agent.yaml
  agentmon policy explain connect 10.0.0.1:443 -p my-agent.yaml --exe /usr/bin/curl

exit status: 0 fine, 2 a test failed or policies differ, 3 a policy is invalid, 64 wrong usage
"""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb to the command line's parser."""
    parser = subparsers.add_parser(
        "policy",
        help="check, test and explain policies",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="policy_verb", metavar="VERB", required=True)

    check = _verb(verbs, "check", "find errors and what is probably not meant", _check)
    check.add_argument("policies", nargs="*", metavar="POLICY", help=f"names or files (default: {DEFAULT_POLICY})")
    check.add_argument("--strict", action="store_true", help="end with 3 on warnings too")
    add_variables(check)

    test = _verb(verbs, "test", "run the cases beside a policy, NAME.test.yaml for NAME.yaml", _test)
    test.add_argument(
        "policies", nargs="*", metavar="POLICY", help="names, files or test files (default: all installed)"
    )
    test.add_argument("-v", "--verbose", action="store_true", help="show each case, not only failures")

    explain = _verb(verbs, "explain", "say which rule decides about an object, where it is written, and why", _explain)
    explain.add_argument("operation", metavar="OPERATION", help="such as read, connect or ptrace")
    explain.add_argument(
        "object", metavar="OBJECT", nargs="?", default="",
        help="a path, or an address or name and a port: 10.0.0.1:443, api.example.com:443; ptrace and others have none",
    )  # fmt: skip
    explain.add_argument("-p", "--policy", default=DEFAULT_POLICY, help="name or file (default: %(default)s)")
    explain.add_argument("--exe", metavar="PATH", help="the program that the process runs, for rules with `exe`")
    explain.add_argument(
        "--parent",
        metavar="PATH",
        action="append",
        default=[],
        help="a program that an ancestor of it runs; repeatable",
    )
    explain.add_argument(
        "--argv", metavar="ARGUMENT", action="append", default=[],
        help="an argument of the program that starts, for `exec`; repeatable, in their order (--argv=--force)",
    )  # fmt: skip
    explain.add_argument(
        "--as", metavar="USER", dest="acting", help="the user that it acts as, for rules with `user` (default: {user})"
    )
    explain.add_argument(
        "--risk", metavar="LEVEL", default="normal", help="the risk of its session: normal (default), elevated or high"
    )
    explain.add_argument(
        "--time", metavar="MOMENT", help="such as `2026-03-30 09:00 Europe/Berlin` (default: now), for rules with hours"
    )
    explain.add_argument(
        "--mark", metavar="NAME", dest="marks", action="append", default=[],
        help="a mark that its session has; repeatable, in the order in which they were set",
    )  # fmt: skip
    explain.add_argument(
        "--over", metavar="RULE", action="append", default=[], help="a rule whose `rate` is used up; repeatable"
    )
    add_variables(explain)

    policy_diff.register(verbs)
    policy_learn.register(verbs)

    _verb(verbs, "list", "list the installed packs", _list)

    show = _verb(verbs, "show", "print a policy with its packs merged, most severe rules first", _show)
    show.add_argument(
        "policy", nargs="?", metavar="POLICY", default=DEFAULT_POLICY, help="name or file (default: %(default)s)"
    )
    add_variables(show)


def _verb(verbs: Any, name: str, text: str, handler: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    add_json(parser)
    parser.set_defaults(func=handler, as_compiler=name in ("check", "test"))
    return parser


def _bind(name: str, args: argparse.Namespace) -> BoundPolicy:
    from agentmon.policy.bind import bind_policy
    from agentmon.policy.load import load

    return bind_policy(load(name), variables(args))


def _check(args: argparse.Namespace) -> int:
    from agentmon.policy.check import warnings
    from agentmon.policy.compile import compile_policy

    code = OK
    for name in args.policies or [DEFAULT_POLICY]:
        try:
            bound = _bind(name, args)
            compiled = compile_policy(bound)
        except PolicyError as error:
            complain(args, error, policy=name)
            code = INVALID
            continue
        found = warnings(bound, compiled)
        table_bytes = 2 * (len(compiled.transitions) + len(compiled.tails))
        if args.json:
            print_json(
                {
                    "policy": compiled.name,
                    "rules": len(compiled.rules),
                    "states": compiled.states,
                    "table_bytes": table_bytes,
                    "warnings": found,
                }
            )
        else:
            packs = ", ".join(bound.policy.packs[1:])
            merged = f" (with {packs})" if packs else ""
            size = f"{compiled.states} states, {table_bytes >> 10} KiB"
            print(f"{compiled.name}: ok, {len(compiled.rules)} rules{merged}, {size}")
        for warning in found:
            print(f"{warning} [warning]", file=sys.stderr)
        if found and args.strict:
            code = INVALID
    return code


def _test(args: argparse.Namespace) -> int:
    from agentmon.policy.cases import cases_file, run_cases
    from agentmon.policy.load import load, packs

    known = packs()
    for name in args.policies:
        if name not in known and not name.endswith(".test.yaml"):
            load(name)  # complains of a name or file that does not exist
    names = args.policies or [n for n, path in known.items() if os.path.exists(cases_file(str(path)))]
    failed = total = 0
    for name in names:
        path = str(known.get(name, name))
        path = path if path.endswith(".test.yaml") else cases_file(path)
        for result in run_cases(path):
            total += 1
            failed += bool(result.failure)
            if args.json:
                print_json(
                    {
                        "case": str(result.place),
                        "operation": result.operation.word,
                        "object": result.object,
                        "expect": result.expect.word,
                        "action": result.action.word,
                        "rule": result.rule,
                        "failure": result.failure or None,
                    }
                )
            elif result.failure or args.verbose:
                verdict = result.failure or f"{result.action.word} by {result.rule or 'default'}"
                mark = "FAILED" if result.failure else "ok"
                print(f"{result.place}: {mark}: {attempt(result.operation.word, result.object)}: {verdict}")
    if not args.json:
        print(f"{total} cases, {failed} failed")
    return FAILED if failed else OK


def _explain(args: argparse.Namespace) -> int:
    from agentmon.model.operations import Operation
    from agentmon.policy import schema
    from agentmon.policy.cases import expand, parse_object
    from agentmon.policy.explain import explain, of_resolver

    operation = schema.operation(args.operation)
    if isinstance(operation, str):
        raise UsageError(operation)
    bound = _bind(args.policy, args)
    text, exe = args.object, args.exe
    if not text and not operation.is_bare:
        raise UsageError(f"`{operation.word}` needs an object; see `agentmon policy explain --help`")
    if operation is Operation.EXEC:
        text = _program(text)
    if operation.is_path and not (operation is Operation.UNIX and text.startswith("@")):
        path = os.path.abspath(os.fsdecode(expand(text, bound.variables)))
        text = os.path.realpath(path)
        if text != path and not args.json:
            print(f"{args.object} is {text}")
    if exe is not None:
        exe = os.fsencode(os.path.realpath(expand(_program(exe), bound.variables)))
    try:
        target = os.fsencode(text) if operation.is_path else parse_object(operation, text, bound.variables)
        situation = _situation(args, bound)
    except ValueError as error:
        raise UsageError(str(error)) from None
    said = explain(bound, operation, target, exe, situation)
    fixed = of_resolver(bound, operation, target)
    if fixed:
        said = replace(said, action=fixed[0], decided_by=None, others=(), excepted=(), would=None)
    if args.json:
        print_json(
            {
                "policy": bound.policy.name,
                "operation": operation.word,
                "object": text,
                "action": said.action.word,
                "rule": _match_json(said.decided_by) if said.decided_by else None,
                "also_matched": [_match_json(m) for m in said.others],
                "excepted": [_match_json(m) for m in said.excepted],
                "default": said.default.word,
                "resolver": fixed[1] if fixed else None,
                "would": said.would.action.word if said.would else None,
                "would_rule": _match_json(said.would.decided_by) if said.would and said.would.decided_by else None,
            }
        )
        return OK
    by = said.decided_by
    if by:
        print(f"{said.action.word}: {operation.word} {text}".rstrip())
        print(f"  by rule {by.rule} of {by.pack} ({by.source}), which matched {by.matched}")
        if by.reason:
            print(f"  why: {by.reason}")
    else:
        print(f"{said.action.word}: {operation.word} {text}".rstrip())
        none = "no rule applied" if said.excepted else "no rule matched"
        why = f"no rule counts: {fixed[1]}" if fixed else f"by the default for {operation.word}: {none}"
        print(f"  {why}")
    for other in said.others:
        print(f"  also matched, not first: {other.rule} ({other.action.word}, {other.source}), by {other.matched}")
    for other in said.excepted:
        print(f"  not applied: {other.rule} ({other.action.word}, {other.source}), {other.hole}")
    if said.would:
        by = said.would.decided_by
        rule = f"rule {by.rule} of {by.pack} ({by.source})" if by else f"the default for {operation.word}"
        print(f"  observed: {rule} would {said.would.action.word} it")
    return OK


def _situation(args: argparse.Namespace, bound: BoundPolicy) -> Situation:
    from agentmon.policy.bind import uid_of
    from agentmon.policy.cases import expand, situation, unknown_names

    for _, message in unknown_names(args, bound.policy):
        raise ValueError(message)
    args.parent = [os.path.realpath(os.fsdecode(expand(_program(p), bound.variables))) for p in args.parent]
    found = situation(args, bound.variables, uid_of)
    return found if args.time else replace(found, time_s=time.time())


def _program(name: str) -> str:
    """What the shell would run: a name without `/` is looked for in PATH."""
    import shutil

    return name if "/" in name or name.startswith(("~", "{")) else shutil.which(name) or name


def _match_json(match: Match) -> dict[str, str]:
    return {
        "id": match.rule,
        "pack": match.pack,
        "action": match.action.word,
        "source": match.source,
        "reason": match.reason,
        "matched": match.matched,
        "not_applied": match.hole,
    }


def _list(args: argparse.Namespace) -> int:
    from agentmon.policy.load import load, packs

    code = OK
    for name, path in packs().items():
        try:
            policy = load(str(path))
        except PolicyError as error:
            complain(args, error, name=name)
            code = INVALID
            continue
        if args.json:
            print_json(
                {
                    "name": name,
                    "description": policy.description,
                    "file": str(path),
                    "includes": list(policy.packs[1:]),
                    "rules": len(policy.rules),
                }
            )
        else:
            print(f"{name:<20} {policy.description}")
    return code


def _show(args: argparse.Namespace) -> int:
    from agentmon.model.operations import OPERATIONS

    bound = _bind(args.policy, args)
    policy: Policy = bound.policy
    rules = [_rule_json(r.rule) for r in bound.rules]
    defaults = {o.word: bound.defaults[o].word for o in OPERATIONS}
    if args.json:
        print_json({"policy": policy.name, "packs": list(policy.packs), "default": defaults, "rules": rules})
        return OK
    print(f"policy: {policy.name}   # with {', '.join(policy.packs[1:]) or 'no packs'}")
    print("default: {" + ", ".join(f"{o}: {a}" for o, a in defaults.items()) + "}")
    print("rules:")
    for rule in rules:
        print(f"  - id: {rule.pop('id')}   # {rule.pop('pack')}, {rule.pop('source')}")
        for key, value in rule.items():
            print(f"    {key}: {json.dumps(value, ensure_ascii=False)}")
    return OK


def _rule_json(rule: Rule) -> dict[str, Any]:
    def texts(items: tuple[Pattern | Network | Host | User | Time | Requirement, ...]) -> list[str]:
        return [i.text for i in items]

    carve = {
        "paths": texts(rule.except_paths),
        "exe": texts(rule.except_exe),
        "argv": None if rule.except_argv is None else texts(rule.except_argv),
        "parent": texts(rule.except_parent),
        "user": texts(rule.except_users),
        "risk": rule.except_risk.word if rule.except_risk is not None else "",
        "time": texts(rule.except_times),
        "requires": texts(rule.except_requires),
        "cidrs": texts(rule.except_networks),
    }
    when = {
        "risk": rule.risk.word if rule.risk is not None else "",
        "time": texts(rule.times),
        "requires": texts(rule.requires),
        "rate": rule.rate.text if rule.rate else "",
    }
    full: dict[str, Any] = {
        "id": rule.id,
        "pack": rule.pack,
        "source": f"{rule.place.file}:{rule.place.line}",
        "on": [o.word for o in rule.operations],
        "action": rule.action.word,
        "paths": texts(rule.paths),
        "exe": texts(rule.exe),
        "argv": None if rule.argv is None else texts(rule.argv),
        "parent": texts(rule.parent),
        "user": texts(rule.users),
        "marks": list(rule.marks),
        "when": {key: value for key, value in when.items() if value},
        "cidrs": texts(rule.networks),
        "hosts": texts(rule.hosts),
        "ports": [f"{low}-{high}" if low != high else str(low) for low, high in rule.ports],
        "except": {key: value for key, value in carve.items() if value or (key == "argv" and value == [])},
        "reason": rule.reason,
        "quiet": rule.quiet,
    }
    return {key: value for key, value in full.items() if value or (key == "argv" and value == [])}
