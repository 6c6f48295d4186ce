# SPDX-License-Identifier: Apache-2.0
"""``agentmon plan {check,show,infer}``: all of it without a daemon and without privileges."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from agentmon.cli import plan_infer
from agentmon.cli.common import add_json, complain, print_json
from agentmon.cli.variables import add_variables, variables
from agentmon.errors import PolicyError
from agentmon.model.text import clean

if TYPE_CHECKING:
    from agentmon.plan.plan import Part, Plan, Step

OK, INVALID = 0, 3

_DESCRIPTION = """\
Work with plans: the steps of an agent's task, their order, and what each may do. docs/plans.md says how to write one.
"""
_EXAMPLES = """\
examples:
  agentmon plan check release.yaml
  agentmon plan show release.yaml
  agentmon plan show release.yaml --svg > release.svg
  agentmon plan infer build.sh > build.yaml

exit status: 0 fine, 1 failure, 3 a plan is invalid, 64 wrong usage
"""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb to the command line's parser."""
    parser = subparsers.add_parser(
        "plan",
        help="check, draw and infer plans",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="plan_verb", metavar="VERB", required=True)

    check = _verb(verbs, "check", "find errors and what is probably not meant", _check)
    check.add_argument("plans", nargs="+", metavar="PLAN", help="files")
    check.add_argument("--strict", action="store_true", help="end with 3 on warnings too")
    add_variables(check)

    show = _verb(verbs, "show", "draw a plan: its steps in order, how each starts, what constrains it", _show)
    show.add_argument("plan", metavar="PLAN", help="a file")
    drawn = show.add_mutually_exclusive_group()
    drawn.add_argument("--svg", action="store_true", help="as a picture, on standard output")
    drawn.add_argument("--dot", action="store_true", help="as a graph for Graphviz, on standard output")

    plan_infer.register(verbs)


def _verb(verbs: Any, name: str, text: str, handler: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    add_json(parser)
    parser.set_defaults(func=handler, as_compiler=True)
    return parser


def _check(args: argparse.Namespace) -> int:
    from agentmon.plan.bind import bind_plan
    from agentmon.plan.check import warnings
    from agentmon.plan.load import load

    code = OK
    values = variables(args)
    for name in args.plans:
        try:
            plan = load(name)
            bound = bind_plan(plan, values)
        except PolicyError as error:
            complain(args, error, plan=name)
            code = INVALID
            continue
        found = list(warnings(plan, (*bound.parts, bound.agent)))
        rules = sum(len(step.part.rules) for step in plan.steps) + len(plan.agent.rules)
        if args.json:
            print_json(
                {
                    "plan": plan.name,
                    "file": name,
                    "steps": len(plan.steps),
                    "ways": len(bound.ways),
                    "rules": rules,
                    "warnings": found,
                }
            )
        else:
            print(f"{plan.name}: ok, {_count(len(plan.steps), 'step')}, {_count(len(bound.ways), 'program')} to start"
                  f" them, {_count(rules, 'rule')}")  # fmt: skip
        for warning in found:
            print(f"{clean(warning)} [warning]", file=sys.stderr)
        if found and args.strict:
            code = INVALID
    return code


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _show(args: argparse.Namespace) -> int:
    from agentmon.plan import draw
    from agentmon.plan.load import load

    plan = load(args.plan)
    if args.svg or args.dot:
        sys.stdout.write(draw.as_svg(plan) if args.svg else draw.as_dot(plan))
        return OK
    if args.json:
        print_json(as_json(plan))
        return OK
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    print(f"{plan.name}: {clean(plan.description)}" if plan.description else plan.name)
    width = max(len(step.id) for step in plan.steps)
    for line in draw.as_text(plan, lambda step: _label(step, width), ascii_only=not encoding.startswith("utf")):
        print(line)
    if said := _part_words(plan.agent):
        print(f"outside of the steps: {said}")
    return OK


def _label(step: Step, width: int) -> str:
    starts = " | ".join(start.text for start in step.starts)
    said = "; ".join([*step.constraints, *filter(None, [_rules_words(step.part)])])
    return clean(f"{step.id:<{width}}  {starts}{f'  [{said}]' if said else ''}")


def _part_words(part: Part) -> str:
    said = [word for word, so in (("read-only", part.read_only), ("no-network", part.no_network),
                                  ("no-exec", part.no_exec)) if so]  # fmt: skip
    said += [f"hosts {', '.join(host.text for host in part.hosts)}"] if part.hosts else []
    return clean("; ".join([*said, *filter(None, [_rules_words(part)])]))


def _rules_words(part: Part) -> str:
    said = [f"{'|'.join(o.word for o in rule.operations)}: {rule.action.word} ({rule.id})" for rule in part.rules]
    return ", ".join(said)


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan for ``--json``: what it comes to, with defaults filled in."""
    return {
        "plan": plan.name,
        "description": plan.description,
        "file": plan.file,
        "on_violation": plan.on_violation.value,
        "agent": _part_json(plan.agent),
        "steps": [
            {
                "id": step.id,
                "source": f"{step.place.file}:{step.place.line}",
                "description": step.description,
                "needs": list(step.needs),
                "after": list(step.after),
                "starts": [
                    {"mark": True} if start.mark else {
                        "exe": [pattern.text for pattern in start.exe],
                        "argv": None if start.argv is None else [pattern.text for pattern in start.argv],
                    }
                    for start in step.starts
                ],
                **_part_json(step.part),
                "max_write_bytes": step.limits.max_write_bytes,
                "max_files": step.limits.max_files,
                "max_procs": step.limits.max_procs,
                "timeout_s": step.limits.timeout_s,
                "once": step.once,
                "repeat": step.repeat,
                "exit": None if step.exits is None else sorted(step.exits),
                "on_violation": step.on_violation.value,
            }
            for step in plan.steps
        ],
    }  # fmt: skip


def _part_json(part: Part) -> dict[str, Any]:
    return {
        "rules": [
            {
                "id": rule.id,
                "on": [o.word for o in rule.operations],
                "action": rule.action.word,
                "objects": [
                    *(path.text for path in rule.paths),
                    *(network.text for network in rule.networks),
                    *(host.text for host in rule.hosts),
                ],
            }
            for rule in part.rules
        ],
        "default": {o.word: "allow" if may else "deny" for o, may in part.defaults.items()},
        "read_only": part.read_only,
        "no_network": part.no_network,
        "no_exec": part.no_exec,
        "hosts": [host.text for host in part.hosts],
    }
