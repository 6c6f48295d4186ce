# SPDX-License-Identifier: Apache-2.0
"""The kernel's algorithm over a compiled policy, step by step (``bpf/tables.h`` says it in words)."""

from __future__ import annotations

from collections.abc import Iterator

from agentmon.model.operations import Action, Operation, Reason
from agentmon.model.tables import ACCEPT_NONE, NO_RULE, STICKY_BITS, CompiledPolicy, Entry
from agentmon.policy.evaluate import Verdict


def walk(policy: CompiledPolicy, path: bytes) -> tuple[int, int]:
    """Run the automaton over a path: (accept row of the final state, sticky bits)."""
    final, _, sticky = _walk(policy, path)
    return final, sticky


def _walk(policy: CompiledPolicy, path: bytes) -> tuple[int, int, int]:
    """(accept row of the final state, the state that a slash after it leads to, sticky bits)."""
    state, sticky = policy.start, 0
    column = policy.stride - 1
    for byte in path:
        state = policy.transitions[state * policy.stride + policy.classes[byte]]
        if state >= policy.sticky_first:
            sticky |= policy.accepts[policy.transitions[state * policy.stride + column]].sticky
    final = policy.transitions[state * policy.stride + column]
    # A glob that ends in /** matches the directory itself: it is as if a slash followed.
    beyond = policy.transitions[state * policy.stride + policy.classes[0x2F]]
    if beyond >= policy.sticky_first:
        sticky |= policy.accepts[policy.transitions[beyond * policy.stride + column]].sticky
    return final, beyond, sticky


def rows(final: int, sticky: int) -> Iterator[int]:
    """The accept rows that count after a walk."""
    yield final
    for bit in range(STICKY_BITS):
        if sticky >> bit & 1:
            yield bit


def exe_tags(policy: CompiledPolicy, path: bytes) -> int:
    """The bits that a process running this program carries."""
    tags = 0
    for row in rows(*walk(policy, path)):
        tags |= policy.accepts[row].exe_tags
    return tags


def run_automaton(
    policy: CompiledPolicy, operation: Operation, path: bytes, exe_tags: int = 0, *, pinned: int | None = None
) -> Verdict:
    """The verdict on a path, as the kernel reaches it. ``pinned``: the accept row of the file's pin, if it has one."""
    final, sticky = walk(policy, path)
    candidates = [*rows(final, sticky), *([] if pinned is None else [pinned])]
    best: Entry | None = None
    for row in candidates:
        for entry in policy.lists[policy.accepts[row].lists[operation]]:
            if holds(entry, sticky, exe_tags):
                if best is None or entry.rule < best.rule:
                    best = entry
                break
    if best is None:
        return Verdict(policy.defaults[operation])
    return Verdict(best.action, best.rule, Reason.RULE)


def holds(entry: Entry, sticky: int, exe_tags: int) -> bool:
    """Whether the conditions of an entry hold."""
    if entry.sticky_any and not entry.sticky_any & sticky:
        return False
    if entry.exe_any and not entry.exe_any & exe_tags:
        return False
    return not (entry.sticky_not & sticky or entry.exe_not & exe_tags)


def run_move(policy: CompiledPolicy, old: bytes, new: bytes, exe_tags: int = 0) -> Verdict:
    """Whether a directory may be moved for what is below it; its own names are judged as any others.

    It may if nothing below it becomes freer: not read or written where the old name forbids it, and nothing planted
    where the new one forbids that.
    """
    _, old_below, old_sticky = _walk(policy, old)
    _, new_below, new_sticky = _walk(policy, new)
    if (old_below, old_sticky) == (new_below, new_sticky):
        return Verdict(Action.ALLOW)
    found = [
        *(_here(policy, operation, new_sticky, exe_tags) for operation in (Operation.WRITE, Operation.CREATE)),
        *(_here(policy, operation, old_sticky, exe_tags) for operation in (Operation.READ, Operation.WRITE)),
    ]
    numbers = [policy.transitions[s * policy.stride + policy.stride - 2] for s in (old_below, new_below)]
    old_fence, new_fence = (policy.fences[number] for number in numbers)
    if numbers[0] != numbers[1] or (old_sticky != new_sticky and old_fence.holes):
        found.append(min(old_fence.rule, new_fence.rule))
    rules = [rule for rule in found if rule is not None]
    return Verdict(Action.DENY, min(rules), Reason.CONTENTS) if rules else Verdict(Action.ALLOW)


def _here(policy: CompiledPolicy, operation: Operation, sticky: int, exe_tags: int) -> int | None:
    """The rule that blocks everything below for good, NO_RULE for the default, None: neither."""
    best: Entry | None = None
    for row in rows(ACCEPT_NONE, sticky):
        for entry in policy.lists[policy.accepts[row].lists[operation]]:
            if holds(entry, sticky, exe_tags):
                best = entry if best is None or entry.rule < best.rule else best
                break
    if best is None:
        return NO_RULE if policy.defaults[operation] >= Action.HOLD else None
    return best.rule if best.action >= Action.HOLD else None


def run_net(policy: CompiledPolicy, operation: Operation, packed: bytes, port: int, exe_tags: int = 0) -> Verdict:
    """The verdict on an address and port: the longest prefix, and its first entry that holds."""
    address = int.from_bytes(packed, "big")
    longest = None
    for prefix in policy.net:
        same = not (int.from_bytes(prefix.address, "big") ^ address) >> (128 - prefix.length_bits)
        if same and (longest is None or prefix.length_bits > longest.length_bits):
            longest = prefix
    bit = 1 << (operation - Operation.CONNECT)
    for entry in longest.entries if longest else ():
        if entry.ops & bit and entry.port_lo <= port <= entry.port_hi:
            if entry.exe_any and not entry.exe_any & exe_tags:
                continue
            if not entry.exe_not & exe_tags:
                return Verdict(entry.action, entry.rule, Reason.RULE)
    return Verdict(policy.defaults[operation])
