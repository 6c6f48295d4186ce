# SPDX-License-Identifier: Apache-2.0
"""What a policy means without saying it: who may reach hosts by name asks agentmon's own resolver, and no other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from agentmon.model.operations import Action, Operation
from agentmon.policy.glob import parse
from agentmon.policy.rules import Pattern, Policy, Rule

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


def without_implied(policy: Policy) -> Policy:
    """The policy as it is written."""
    return replace(policy, rules=tuple(rule for rule in policy.rules if not rule.implied))
