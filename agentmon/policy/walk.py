# SPDX-License-Identifier: Apache-2.0
"""The kernel's algorithm over a compiled policy, step by step (``bpf/tables.h`` says it in words)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from agentmon.model.conditions import WHATEVER, arguments_of, facts_hold, parents_of, with_starter
from agentmon.model.operations import PATH_OPERATIONS, Action, Operation, Reason
from agentmon.model.tables import LANES, NO_RULE, STICKY_BITS, CompiledPolicy, Entry, NetEntry
from agentmon.policy.arguments import as_path
from agentmon.policy.evaluate import Target, Verdict
from agentmon.policy.fences import CARRIED
from agentmon.policy.network import MAPPED

#: Prefixes that hold every IPv4 address, the shorter first, as `CompiledPolicy.net` has them.
_AROUND_IPV4: Final = frozenset((MAPPED >> (128 - n) << (128 - n), n) for n in range(97))


@dataclass(slots=True)
class Walk:
    """What a path gathered: the rows of final states, sticky bits, exe tags, and per operation the first rule."""

    finals: list[int] = field(default_factory=list)
    sticky: int = 0
    exe_tags: int = 0
    rules: list[int] = field(default_factory=lambda: [NO_RULE] * PATH_OPERATIONS)
    tails: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)] * LANES)  # offset, position
    below: int = 0  # the state after one more slash

    def enter(self, policy: CompiledPolicy, state: int, at: int | None) -> None:
        """A state is entered at a position of the path; None: by the slash that follows its end."""
        if state < policy.sticky_first:
            return
        row = policy.accepts[policy.accepts[policy.transitions[(state + 1) * policy.stride - 1]].enter]
        self.sticky |= row.sticky
        self.exe_tags |= row.exe_tags
        self.rules = list(map(min, self.rules, row.rules))
        for lane, tail in enumerate(row.tails):
            if tail and at is not None:
                self.tails[lane] = (tail, at)


def walk(policy: CompiledPolicy, path: bytes) -> Walk:
    """Run the automaton over a path, then what continues it."""
    found = Walk()
    found.below = _run(policy, path, policy.start, 0, found)
    for tail, at in found.tails:
        if not tail:
            continue
        length, state = policy.tails[tail : tail + 2]
        if path[at : at + length] == bytes(policy.tails[tail + 2 : tail + 2 + length].tolist()):
            found.enter(policy, state, None)
            _run(policy, path, state, at + length, found)
    return found


def _run(policy: CompiledPolicy, path: bytes, state: int, at: int, found: Walk) -> int:
    for i in range(at, len(path)):
        state = policy.transitions[state * policy.stride + policy.classes[path[i]]]
        found.enter(policy, state, i + 1)
    final = policy.transitions[(state + 1) * policy.stride - 1]
    found.finals.append(final)
    found.exe_tags |= policy.accepts[final].exe_tags
    # A glob that ends in /** matches the directory itself: it is as if a slash followed.
    beyond = policy.transitions[state * policy.stride + policy.classes[0x2F]]
    found.enter(policy, beyond, None)
    return beyond


def rows(finals: list[int], sticky: int) -> Iterator[int]:
    """The accept rows that count after a walk."""
    yield from finals
    for bit in range(STICKY_BITS):
        if sticky >> bit & 1:
            yield bit


def exe_tags(policy: CompiledPolicy, path: bytes) -> int:
    """The bits that a process running this program carries."""
    return walk(policy, path).exe_tags


def argument_facts(policy: CompiledPolicy, arguments: Iterable[bytes]) -> int:
    """What the arguments of a program say (``bpf/arguments.bpf.h``)."""
    found = Walk()
    if policy.arguments_start:
        found.enter(policy, policy.arguments_start, None)
        _run(policy, as_path(arguments), policy.arguments_start, 0, found)
    return found.exe_tags & arguments_of(policy.conditions)


def run_automaton(
    policy: CompiledPolicy,
    operation: Operation,
    path: bytes,
    exe_tags: int = 0,
    facts: int = 0,
    *,
    pinned: int | None = None,
) -> Verdict:
    """The verdict on a path, as the kernel reaches it. ``pinned``: the accept row of the file's pin, if it has one."""
    found = walk(policy, path)
    candidates = [*rows(found.finals, found.sticky), *([] if pinned is None else [pinned])]
    return decide(policy, operation, found.rules[operation], candidates, found.sticky, exe_tags, facts)


def decide(
    policy: CompiledPolicy,
    operation: Operation,
    best: int,
    candidates: list[int],
    sticky: int,
    exe_tags: int,
    facts: int = 0,
) -> Verdict:
    """The first of a rule and those of some accept rows whose conditions hold; of none, the default."""
    if policy.conditions:
        facts = with_starter(operation, facts, exe_tags, parents_of(policy.conditions))
    for row in candidates:
        accept = policy.accepts[row]
        best = min(best, accept.rules[operation])
        for entry in policy.lists[accept.lists[operation]]:
            if holds(entry, sticky, exe_tags, facts):
                best = min(best, entry.rule)
                break
    if best == NO_RULE:
        return Verdict(policy.defaults[operation])
    return Verdict(policy.rules[best].action, best, Reason.RULE)


def holds(entry: Entry, sticky: int, exe_tags: int, facts: int = 0) -> bool:
    """Whether the conditions of an entry hold."""
    if entry.sticky_any and not entry.sticky_any & sticky:
        return False
    if entry.exe_any and not entry.exe_any & exe_tags:
        return False
    if entry.sticky_not & sticky or entry.exe_not & exe_tags:
        return False
    return facts_hold(facts, entry.need, entry.need_not, entry.action)


def run_move(policy: CompiledPolicy, old: bytes, new: bytes, exe_tags: int = 0) -> Verdict:
    """Whether a directory may be moved for what is below it; its own names are judged as any others.

    It may if nothing below it becomes freer: not read, written or deleted where the old name forbids it, and nothing
    planted where the new one forbids that. Conditions count as what may come. A split policy
    (see `place`) cannot tell that, and lets none move.
    """
    if len(policy.tails) > 1:
        return Verdict(Action.DENY, NO_RULE, Reason.CONTENTS)
    here, there = walk(policy, old), walk(policy, new)
    if (here.below, here.sticky, here.rules) == (there.below, there.sticky, there.rules):
        return Verdict(Action.ALLOW)
    found = [
        *(_here(policy, operation, there, exe_tags) for operation in (Operation.WRITE, Operation.CREATE)),
        *(
            _here(policy, operation, here, exe_tags)
            for operation in (Operation.READ, Operation.WRITE, Operation.DELETE)
        ),
    ]
    sockets = _here(policy, Operation.UNIX, here, exe_tags)
    if sockets != NO_RULE:  # by default nothing of another's is reached under any name
        found.append(sockets)
    numbers = [policy.transitions[w.below * policy.stride + policy.stride - 2] for w in (here, there)]
    old_fence, new_fence = (policy.fences[number] for number in numbers)
    # Allowed for good on one side only: a hole below then leads to the default on the other.
    unlike = any(
        policy.defaults[o] >= Action.HOLD and (here.rules[o] == NO_RULE) != (there.rules[o] == NO_RULE)
        for o in CARRIED[:-1]
    )
    telling = -1 if unlike else here.sticky ^ there.sticky
    if numbers[0] != numbers[1] or telling & old_fence.holes:
        found.append(min(old_fence.rule, new_fence.rule))
    rules = [rule for rule in found if rule is not None]
    return Verdict(Action.DENY, min(rules), Reason.CONTENTS) if rules else Verdict(Action.ALLOW)


def _here(policy: CompiledPolicy, operation: Operation, found: Walk, exe_tags: int) -> int | None:
    """The rule that blocks everything below for good, NO_RULE for the default, None: neither."""
    gathered = list(rows([], found.sticky))
    verdict = decide(policy, operation, found.rules[operation], gathered, found.sticky, exe_tags, WHATEVER)
    return verdict.rule if verdict.action >= Action.HOLD else None


def run(policy: CompiledPolicy, operation: Operation, target: Target, exe_tags: int = 0, facts: int = 0) -> Verdict:
    """The verdict on an object of any kind."""
    if target is None:
        return run_bare(policy, operation, exe_tags, facts)
    if isinstance(target, bytes):
        return run_automaton(policy, operation, target, exe_tags, facts)
    where, port = target
    if isinstance(where, bytes):
        return run_net(policy, operation, where, port, exe_tags, facts)
    return run_name(policy, operation, where, port, exe_tags, facts)


def net_entries(policy: CompiledPolicy, packed: bytes) -> tuple[NetEntry, ...]:
    """The entries of the longest prefix that holds an address (16 bytes, IPv4 mapped), most severe first."""
    address = int.from_bytes(packed, "big")
    longest = None
    for prefix in policy.net:
        same = not (int.from_bytes(prefix.address, "big") ^ address) >> (128 - prefix.length_bits)
        if same and (longest is None or prefix.length_bits > longest.length_bits):
            longest = prefix
    return longest.entries if longest else ()


def run_net(
    policy: CompiledPolicy, operation: Operation, packed: bytes, port: int, exe_tags: int = 0, facts: int = 0
) -> Verdict:
    """The verdict on an address and port: the longest prefix, and its first entry that holds."""
    return _first(policy, operation, net_entries(policy, packed), port, exe_tags, facts)


def run_name(
    policy: CompiledPolicy, operation: Operation, name: str, port: int, exe_tags: int = 0, facts: int = 0
) -> Verdict:
    """The verdict on a canonical name and port, for an IPv4 address that no prefix but the widest holds."""
    widest = [p for p in policy.net if (int.from_bytes(p.address, "big"), p.length_bits) in _AROUND_IPV4]
    entries = [entry for pattern, entry in policy.hosts if pattern.holds(name)]
    entries += [entry for prefix in widest[-1:] for entry in prefix.entries]
    return _first(policy, operation, sorted(entries, key=lambda e: e.rule), port, exe_tags, facts)


def _first(
    policy: CompiledPolicy, operation: Operation, entries: Iterable[NetEntry], port: int, exe_tags: int, facts: int
) -> Verdict:
    bit = 1 << (operation - Operation.CONNECT)
    for entry in entries:
        if entry.ops & bit and entry.port_lo <= port <= entry.port_hi:
            if entry.exe_any and not entry.exe_any & exe_tags:
                continue
            if not entry.exe_not & exe_tags and facts_hold(facts, entry.need, entry.need_not, entry.action):
                return Verdict(entry.action, entry.rule, Reason.RULE)
    return Verdict(policy.defaults[operation])


def run_bare(policy: CompiledPolicy, operation: Operation, exe_tags: int = 0, facts: int = 0) -> Verdict:
    """The verdict on an operation without an object."""
    for entry in policy.lists[policy.bare[operation]]:
        if holds(entry, 0, exe_tags, facts):
            return Verdict(entry.action, entry.rule, Reason.RULE)
    return Verdict(policy.defaults[operation])
