# SPDX-License-Identifier: Apache-2.0
"""What a policy means without saying it.

Who may reach hosts by name asks agentmon's own resolver, and no other. And whatever a policy says of unix sockets,
agentmon's own is reached: an agent may ask why it was refused something, and what else it asks for is judged there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from agentmon.model.operations import Action, Operation
from agentmon.policy.glob import bind, parse
from agentmon.policy.rules import Pattern, Place, Policy, Rule, Variables

#: The id of the rule. One that a policy has under this id takes its place.
OTHER_RESOLVERS: Final = "other-resolvers"

#: The sockets of the host's name services: they forward any name. By the names that libc's modules write, too, for the
#: react tier judges those (bpf/unix.bpf.h). Missing are those of users (sssd, nslcd), and D-Bus, which `escape` denies.
SOCKETS: Final = (
    "{/run,/var/run}/nscd/socket",
    "/run/systemd/resolve/**",
    "/run/systemd/resolve.hook/**",
    "{/run,/var/run}/avahi-daemon/socket",
)


def other_resolvers(rules: Iterable[Rule]) -> list[Rule]:
    """The rule that goes with the first one that names hosts, if one does. Refused, libc asks by port 53."""
    first = next((rule for rule in rules if rule.hosts), None)
    if first is None:
        return []
    return [
        Rule(
            id=OTHER_RESOLVERS,
            pack=first.pack,
            place=first.place,
            operations=(Operation.UNIX,),
            action=Action.DENY,
            reason="names of hosts are asked of agentmon's own resolver, by port 53",
            quiet=True,  # libc tries them at each look-up
            paths=tuple(Pattern(text, first.place, parse(text)) for text in SOCKETS),
            implied=True,
        )
    ]


#: The id of the rule that lets a session reach agentmon.
CONTROL: Final = "agentmon-control"


def with_control(policy: Policy, path: bytes, variables: Variables) -> Policy:
    """The policy with a hole for the control socket, where it would be blocked."""
    values = variables.mapping()
    place = Place(policy.file, 1, 1)
    pattern = Pattern(os.fsdecode(path), place, (tuple(path),))
    rules = [part for rule in policy.rules for part in _parts(rule, pattern, values)]
    if policy.defaults.get(Operation.UNIX, Action.DENY) > Action.AUDIT:
        rules.append(
            Rule(
                id=CONTROL,
                pack=policy.name,
                place=place,
                operations=(Operation.UNIX,),
                action=Action.ALLOW,
                reason="agentmon itself, for `why` and `ask`",
                quiet=True,
                paths=(pattern,),
                implied=True,
            )
        )
    return replace(policy, rules=tuple(rules))


def _parts(rule: Rule, pattern: Pattern, values: Mapping[str, bytes]) -> Iterator[Rule]:
    if Operation.UNIX not in rule.operations or rule.action <= Action.AUDIT or not _matches(rule, pattern, values):
        yield rule  # as it is: a hole that is not needed would cost states
        return
    others = tuple(operation for operation in rule.operations if operation is not Operation.UNIX)
    if others:  # the hole is for connecting, not for the file
        yield replace(rule, operations=others)
    yield replace(rule, operations=(Operation.UNIX,), except_paths=(*rule.except_paths, pattern))


def _matches(rule: Rule, pattern: Pattern, values: Mapping[str, bytes]) -> bool:
    path = os.fsencode(pattern.text)
    globs = (bind(template, values) for each in rule.paths for template in each.alternatives)
    return not rule.paths or any(re.fullmatch(glob.regex(), path, re.DOTALL) for glob in globs)


def without_implied(policy: Policy) -> Policy:
    """The policy as it is written."""
    return replace(policy, rules=tuple(rule for rule in policy.rules if not rule.implied))
