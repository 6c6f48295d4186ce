# SPDX-License-Identifier: Apache-2.0
"""Warnings about a valid policy: what is probably not meant."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from agentmon.model.operations import GUARDED, OPERATIONS, PART_OF_WRITE, Operation
from agentmon.model.tables import CompiledPolicy
from agentmon.policy.automaton import TooManyStatesError, build
from agentmon.policy.bind import BoundPolicy, BoundRule
from agentmon.policy.check_host import host_warnings
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.glob import Glob
from agentmon.policy.prune import Dominance

#: Looking for rules that never decide stops at this size: it is advice, and must be quick.
MOST_STATES = 5_000

_SYSTEM_BUS = b"/run/dbus/system_bus_socket"

#: Each rule is held against all earlier ones up to this many; of more, only what is plain to see is said.
MOST_RULES = 150


def warnings(bound: BoundPolicy, compiled: CompiledPolicy) -> list[str]:
    """One ``file:line:column: message`` each."""
    full = bound.observed or bound
    found = compile_policy(full) if full is not bound else compiled
    return [
        *_observed(bound),
        *_silent_defaults(full),
        *_arguments(full),
        *_rates(full),
        *_split(full, found),
        *_never_decides(full, found),
        *_other_resolver(full),
        *host_warnings(full),
        *_exposed_files(full),
    ]


def _observed(bound: BoundPolicy) -> Iterator[str]:
    told = "the daemon says what it would have blocked, once for each object, after it happened"
    if bound.policy.observe:
        yield f"{bound.policy.file}:1:1: `mode: observe`: nothing is blocked by this policy; {told}"
        return
    for rule in bound.policy.rules:
        if rule.observe:
            denied = [o.word for o in OPERATIONS if o in rule.operations and bound.defaults[o].blocks]
            words = ", ".join(f"`{w}`" for w in denied)
            yield f"{rule.place}: `mode: observe`: rule `{rule.id}` " + (
                f"itself blocks nothing, but the default of {words} does, where no other rule allows it; {told}"
                if denied
                else f"blocks nothing; {told}"
            )


def _silent_defaults(bound: BoundPolicy) -> Iterator[str]:
    silent = [o.word for o in OPERATIONS if o not in bound.policy.defaults and o not in (*PART_OF_WRITE, *GUARDED)]
    if silent:
        words = ", ".join(f"`{w}`" for w in silent)
        yield f"{bound.policy.file}:1:1: no default for {words}, so deny; say so with `default: {{{silent[0]}: deny}}`"


def _arguments(bound: BoundPolicy) -> Iterator[str]:
    """Words of a shell are easily taken for `argv`: the program's own name is none, and it must match to the end."""
    for rule in (r.rule for r in bound.rules):
        programs = {p.text.rsplit("/", 1)[-1] for p in rule.paths}
        for words in (rule.argv or (), rule.except_argv or ()):
            if words and words[0].text in programs:
                yield (
                    f"{words[0].place}: rule `{rule.id}`: the first argument is `{words[0].text}`, as the program;"
                    " its own name is no argument: leave it out"
                )
        if rule.argv and rule.action.blocks and all("**" not in word.text for word in rule.argv):
            yield (
                f"{rule.argv[-1].place}: rule `{rule.id}` blocks these arguments and nothing longer;"
                ' end the list with `"**"` for whatever follows'
            )


def _rates(bound: BoundPolicy) -> Iterator[str]:
    """A rate only bounds what nothing else allows."""
    blocked = {o for r in bound.rules if r.action.blocks for o in r.operations}
    for rule in bound.rules:
        free = [
            o.word for o in OPERATIONS if o in rule.operations and not bound.defaults[o].blocks and o not in blocked
        ]
        if rule.rule.rate and free:
            yield (
                f"{rule.rule.rate.place}: rule `{rule.rule.id}`: when the rate is used up, the default allows"
                f" `{free[0]}` all the same; write `default: {{{free[0]}: deny}}`"
            )


def _split(bound: BoundPolicy, compiled: CompiledPolicy) -> Iterator[str]:
    if len(compiled.tails) > 1:
        yield (
            f"{bound.policy.file}:1:1: {compiled.states:,} states, too many for one automaton: under this policy no"
            " directory can be renamed, for what is below it is not known; use fewer patterns with wildcards"
        )


def _never_decides(bound: BoundPolicy, compiled: CompiledPolicy) -> Iterator[str]:
    deciding = {entry.rule for prefix in compiled.net for entry in prefix.entries}
    deciding |= {entry.rule for number in compiled.bare for entry in compiled.lists[number]}
    deciding |= {entry.rule for _, entry in compiled.hosts}
    plainly = _plainly_covered(bound) if len(bound.rules) > MOST_RULES else None
    for rule in bound.rules:
        if rule.rule.implied:
            continue  # nobody could drop it
        if plainly is None:
            paths = any(o.is_path and not _covered(bound, rule, o) for o in rule.operations)
        else:
            paths = any(o.is_path for o in rule.operations) and rule.index not in plainly
        if not paths and rule.index not in deciding:
            yield (
                f"{rule.rule.place}: rule `{rule.rule.id}` can never decide: whatever it matches, a rule as severe"
                " or more decides first; drop it, or carve a hole with `except` in the other"
            )


def _plainly_covered(bound: BoundPolicy) -> set[int]:
    """Rules whose every pattern an earlier rule has too, or lies below one of an earlier rule."""
    rules = [r for r in bound.rules if any(o.is_path for o in r.operations)]
    dominance = Dominance(rules)
    firsts: dict[Glob, BoundRule] = {}
    found = set()
    for rule in rules:
        same = [firsts.get(glob) for glob in rule.includes]
        if all(
            (first and rule.operations <= first.operations) or dominance.covers(rule, glob)
            for first, glob in zip(same, rule.includes, strict=True)
        ):
            found.add(rule.index)
        if rule.for_anyone and not rule.excepts:
            for glob in rule.includes:
                firsts.setdefault(glob, rule)
    return found


def _covered(bound: BoundPolicy, rule: BoundRule, operation: Operation) -> bool:
    """Whether earlier rules without conditions match every path that this one does (language inclusion)."""
    earlier = [
        glob
        for other in bound.rules[: rule.index]
        if operation in other.operations and other.for_anyone and not other.excepts
        for glob in other.includes
    ]
    if not earlier:
        return False
    if set(rule.includes) <= set(earlier):
        return True
    both = dict.fromkeys(rule.includes, 0) | {glob: 1 for glob in earlier if glob not in rule.includes}
    shared = [glob for glob in rule.includes if glob in earlier]
    for glob in shared:
        del both[glob]
    try:
        automaton = build(both, {}, limit=MOST_STATES)
    except TooManyStatesError:
        return False  # too hard to tell: no warning
    return not any(accepted == 1 for accepted in automaton.accepts)


def _other_resolver(bound: BoundPolicy) -> Iterator[str]:
    """What `implied` leaves out: the bus has other uses."""
    first = next((rule for rule in bound.policy.rules if rule.hosts), None)
    if first and not Evaluator(bound).always_blocks(Operation.UNIX, _SYSTEM_BUS):
        yield (
            f"{first.place}: rule `{first.id}` names `hosts`, and the agent may connect to `{os.fsdecode(_SYSTEM_BUS)}`"
            ", where systemd-resolved answers any name; deny it, or include `escape`"
        )


def _exposed_files(bound: BoundPolicy) -> Iterator[str]:
    """A policy that its own agent can rewrite is a request, not a fence."""
    evaluator = Evaluator(bound)
    exposed = []
    for file in bound.policy.files:
        try:
            status = os.stat(file)
        except OSError:
            continue  # the text came from elsewhere, such as a socket
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield f"{file}:1:1: others than its owner can write this file; run `chmod go-w {file}`"
        true_path = os.fsencode(os.path.realpath(file))
        if not evaluator.always_blocks(Operation.WRITE, true_path):
            exposed.append(file)
    if exposed:
        others = f", and {len(exposed) - 1} of its packs" if exposed[1:] else ""
        yield (
            f"{exposed[0]}:1:1: the policy lets its own agent write this file{others}; keep it where the agent may not"
            " write: outside of its workspace and of /tmp"
        )
