# SPDX-License-Identifier: Apache-2.0
"""Warnings about a valid policy: what is probably not meant."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from agentmon.model.operations import GUARDED, OPERATIONS, PART_OF_WRITE, Operation
from agentmon.model.tables import CompiledPolicy
from agentmon.policy.bind import BoundPolicy
from agentmon.policy.check_host import host_warnings
from agentmon.policy.check_rules import in_vain
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator

_SYSTEM_BUS = b"/run/dbus/system_bus_socket"


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
        *in_vain(full, found),
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
