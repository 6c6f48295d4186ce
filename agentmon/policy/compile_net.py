# SPDX-License-Identifier: Apache-2.0
"""Address rules as longest-prefix entries: each prefix carries all that covers it, so one look-up decides."""

from __future__ import annotations

from collections.abc import Sequence

from agentmon.errors import PolicyError
from agentmon.model.operations import Operation
from agentmon.model.tables import NET_LENGTH, NetEntry, NetPrefix
from agentmon.policy.bind import BoundPolicy, BoundRule, Range
from agentmon.policy.network import MAPPED, family_of

#: Prefixes that all live policies share in the kernel (``AM_MAX_NET``): one may not take all.
MAX_PREFIXES = 32_768

Key = tuple[int, int]  # address, length in bits
Ports = list[tuple[int, int]]


def compile_net(bound: BoundPolicy) -> tuple[NetPrefix, ...]:
    """All prefixes of a policy, shortest first.

    Raises:
        PolicyError: more rules than fit at one prefix, or too many prefixes.
    """
    rules = [r for r in bound.rules if any(o.is_net for o in r.operations)]
    if not rules:
        return ()
    # The two roots keep IPv4 and IPv6 apart: `::/0` is not IPv4.
    at: dict[Key, list[tuple[BoundRule, Range, bool]]] = {(0, 0): [], (MAPPED, 96): []}
    for rule in rules:
        for included, ranges in ((True, rule.ranges), (False, rule.except_ranges)):
            for r in ranges:
                at.setdefault((r.address, r.length_bits), []).append((rule, r, included))
    lengths = sorted({length for _, length in at})
    kept: dict[Key, tuple[NetEntry, ...]] = {}
    for key in sorted(at, key=lambda k: (k[1], k[0])):
        covering = [at[above] for above in _covering(key, lengths) if above in at]
        entries = _entries(bound, key, [item for items in covering for item in items])
        nearest = next((kept[above] for above in _covering(key, lengths)[-2::-1] if above in kept), ())
        if entries != nearest:
            kept[key] = entries
    if len(kept) > MAX_PREFIXES:
        raise PolicyError(f"{bound.policy.file}:1:1: {len(kept)} address prefixes, {MAX_PREFIXES} fit; aggregate them")
    return tuple(NetPrefix(address.to_bytes(16, "big"), length, entries) for (address, length), entries in kept.items())


def _covering(key: Key, lengths: Sequence[int]) -> list[Key]:
    """The prefix itself and those around it, of the lengths in use, widest first."""
    address, bits = key
    return [(address >> (128 - length) << (128 - length), length) for length in lengths if length <= bits]


def _entries(bound: BoundPolicy, key: Key, items: Sequence[tuple[BoundRule, Range, bool]]) -> tuple[NetEntry, ...]:
    family = family_of(key[0]) if key[1] >= 96 else 6
    included: dict[int, Ports] = {}
    excepted: dict[int, Ports] = {}
    for rule, r, inside in items:
        if r.family in (0, family):
            (included if inside else excepted).setdefault(rule.index, []).append((r.low, r.high))
    kept: list[NetEntry] = []
    for index in sorted(included):
        rule = bound.rules[index]
        ops = sum(1 << (o - Operation.CONNECT) for o in rule.operations if o.is_net)
        for low, high in _without(_union(included[index]), excepted.get(index, [])):
            entry = NetEntry(low, high, index, rule.action, ops, rule.exe_any, rule.exe_not, rule.need, rule.need_not)
            if not any(_dominates(earlier, entry) for earlier in kept):
                kept.append(entry)
    if len(kept) > NET_LENGTH:
        rules = list(dict.fromkeys(e.rule for e in kept))
        names = ", ".join(f"`{bound.rules[i].rule.id}`" for i in rules)
        raise PolicyError(
            f"{bound.rules[rules[-1]].rule.place}: {len(kept)} port ranges of rules apply to the same addresses,"
            f" {NET_LENGTH} fit: {names}; merge their ports or rules"
        )
    return tuple(kept)


def _union(ranges: Ports) -> Ports:
    merged: Ports = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _without(ranges: Ports, holes: Ports) -> Ports:
    for hole_low, hole_high in holes:
        rest: Ports = []
        for low, high in ranges:
            if low < hole_low:
                rest.append((low, min(high, hole_low - 1)))
            if high > hole_high:
                rest.append((max(low, hole_high + 1), high))
        ranges = rest
    return ranges


def _dominates(first: NetEntry, second: NetEntry) -> bool:
    """Whether the first, which comes earlier, holds whenever the second does."""
    if first.port_lo > second.port_lo or first.port_hi < second.port_hi or second.ops & ~first.ops:
        return False
    if first.exe_any and (not second.exe_any or second.exe_any & ~first.exe_any):
        return False
    if first.need & ~second.need or first.need_not & ~second.need_not:
        return False
    return not first.exe_not & ~second.exe_not
