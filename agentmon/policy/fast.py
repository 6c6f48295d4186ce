# SPDX-License-Identifier: Apache-2.0
"""The daemon's evaluator: the compiled tables, with what was learnt about directories and objects kept at hand.

Its speed comes from two observations: paths of a session share directories, so the automaton's state after a directory
is worth keeping; and few distinct (row, sticky bits, tags) exist, so a verdict is worth keeping for each.
"""

from __future__ import annotations

from typing import Final

from agentmon.model.conditions import UNSURE_SHIFT, arguments_of, facts_hold, parents_of
from agentmon.model.operations import Operation, Reason
from agentmon.model.tables import NO_RULE, CompiledPolicy, NetEntry
from agentmon.policy.evaluate import Verdict
from agentmon.policy.network import MAPPED
from agentmon.policy.walk import decide, rows, run_bare

#: Entries of each cache generation. Two generations of the largest stay below 10 MB at usual path lengths.
OBJECTS: Final = 16_384
DIRECTORIES: Final = 4_096

#: Longer paths are judged anew each time: an agent that makes up long names must not fill the daemon's memory.
LONGEST_KEPT_BYTES: Final = 256

#: Rows of accepts; those of entered states, each with the position behind the byte that led there.
Rows = tuple[int, ...]
Entered = tuple[tuple[int, int], ...]

_MAPPED: Final = bytes(10) + b"\xff\xff"

#: Tables up to this many cells are unfolded into Python objects (8 bytes a cell); larger ones stay an array.
UNFOLD_CELLS: Final = 500_000


class FastEvaluator:
    """Judges by the compiled tables. Agrees with `Evaluator` on every object (tests hold them together)."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self.policy = policy
        #: Of the facts: those on ancestors, if nobody knows them.
        self.unsure = (parents_of(policy.conditions) | arguments_of(policy.conditions)) << UNSURE_SHIFT
        self._stride = policy.stride
        self._classes = policy.classes
        self._slash = policy.classes[0x2F]
        self._accept = policy.stride - 1
        # States are kept multiplied by the stride: a step is then one addition and one look-up.
        self._start = policy.start * policy.stride
        self._sticky_first = policy.sticky_first * policy.stride
        self._next = self._unfold()
        self._objects: dict[tuple[int, bytes, int, int], Verdict] = {}
        self._older_objects: dict[tuple[int, bytes, int, int], Verdict] = {}
        self._directories: dict[bytes, tuple[int, Entered]] = {}
        self._verdicts: dict[tuple[int, int, int, Rows, Rows], Verdict] = {}
        self._addresses: dict[tuple[int, bytes, int, int, int], Verdict] = {}
        self._tags: dict[bytes, int] = {}
        self._defaults = [Verdict(action) for action in policy.defaults]
        self._by_rule = [Verdict(rule.action, i, Reason.RULE) for i, rule in enumerate(policy.rules)]
        self._tries = {family: _Prefixes(policy, family) for family in (4, 6)}

    def path(self, operation: Operation, path: bytes, exe_tags: int = 0, facts: int = 0) -> Verdict:
        """Judge an operation on a true absolute path."""
        key = (operation, path, exe_tags, facts)
        found = self._objects.get(key)
        if found is not None:
            return found
        found = self._older_objects.get(key)
        if found is None:
            shape = (operation, exe_tags, facts, *self._walk(path))
            found = self._verdicts.get(shape)
            if found is None:
                if len(self._verdicts) >= OBJECTS:
                    self._verdicts = {}
                found = self._verdicts[shape] = self._decide(*shape)
            if len(path) > LONGEST_KEPT_BYTES:
                return found
        if len(self._objects) >= OBJECTS:
            self._older_objects, self._objects = self._objects, {}
        self._objects[key] = found
        return found

    def net(self, operation: Operation, packed: bytes, port: int, exe_tags: int = 0, facts: int = 0) -> Verdict:
        """Judge an operation on an address (16 bytes, IPv4 mapped) and port."""
        key = (operation, packed, port, exe_tags, facts)
        found = self._addresses.get(key)
        if found is None:
            if len(self._addresses) >= OBJECTS:
                self._addresses = {}
            found = self._addresses[key] = self._look_up(operation, packed, port, exe_tags, facts)
        return found

    def bare(self, operation: Operation, exe_tags: int = 0, facts: int = 0) -> Verdict:
        """Judge an operation that has no object."""
        return run_bare(self.policy, operation, exe_tags, facts)

    def named(self, operation: Operation, name: str, port: int, exe_tags: int = 0, facts: int = 0) -> Verdict:
        """What a canonical name gives to its addresses, where no rule on these says otherwise."""
        for pattern, entry in self.policy.hosts:
            if pattern.holds(name) and self._applies(entry, operation, port, exe_tags, facts):
                return self._by_rule[entry.rule]
        return self._defaults[operation]

    def exe_tags(self, path: bytes) -> int:
        """The bits that a process running this program carries."""
        found = self._tags.get(path)
        if found is None:
            if len(self._tags) >= DIRECTORIES:
                self._tags = {}
            accepts = self.policy.accepts
            found = 0
            for rows in self._walk(path):
                for row in rows:
                    found |= accepts[row].exe_tags
            if len(path) <= LONGEST_KEPT_BYTES:
                self._tags[path] = found
        return found

    def _unfold(self) -> list[int] | _Multiplied:
        table = self.policy.transitions
        stride = self._stride
        if len(table) > UNFOLD_CELLS:
            return _Multiplied(self.policy)
        states = [s * stride for s in range(self.policy.states)]  # shared: a cell costs a pointer
        cells: list[int] = []
        for at in range(0, len(table), stride):
            cells += [states[t] for t in table[at : at + stride - 2]]
            cells += table[at + stride - 2 : at + stride]
        return cells

    def _walk(self, path: bytes) -> tuple[Rows, Rows]:
        """(rows of the final states, rows of what was entered), the slash after the end included."""
        cut = path.rfind(0x2F) + 1
        directory = path[:cut]
        at = self._directories.get(directory)
        if at is None:
            at = self._steps(self._start, directory)
            if cut <= LONGEST_KEPT_BYTES:
                if len(self._directories) >= DIRECTORIES:
                    self._directories = {}
                self._directories[directory] = at
        state, entered = at
        table, first = self._next, self._sticky_first
        i = cut
        for cls in path[cut:].translate(self._classes):  # `_steps` in place: a call costs as much as ten bytes
            state = table[state + cls]
            i += 1
            if state >= first:
                entered = (*entered, (self._entered(state), i))
        finals: Rows = (table[state + self._accept],)
        beyond = table[state + self._slash]
        if not entered and beyond < first:
            return finals, ()
        rows = [row for row, _ in entered]
        if beyond >= first:
            rows.append(self._entered(beyond))
        for row, i in entered:
            for tail in self.policy.accepts[row].tails:
                if tail:
                    finals += self._go_on(tail, path, i, rows)
        return finals, tuple(dict.fromkeys(rows))

    def _go_on(self, tail: int, path: bytes, at: int, rows: list[int]) -> Rows:
        """Run what continues the automaton at a position; its final row, and what it entered into ``rows``."""
        tails = self.policy.tails
        length, state = tails[tail], tails[tail + 1] * self._stride
        if path[at : at + length] != bytes(tails[tail + 2 : tail + 2 + length].tolist()):
            return ()
        first = self._sticky_first
        if state >= first:
            rows.append(self._entered(state))
        state, entered = self._steps(state, path[at + length :])
        rows += [row for row, _ in entered]
        beyond = self._next[state + self._slash]
        if beyond >= first:
            rows.append(self._entered(beyond))
        return (self._next[state + self._accept],)

    def _steps(self, state: int, text: bytes) -> tuple[int, Entered]:
        table, first = self._next, self._sticky_first
        found: list[tuple[int, int]] = []
        for at, cls in enumerate(text.translate(self._classes), 1):
            state = table[state + cls]
            if state >= first:
                found.append((self._entered(state), at))
        return state, tuple(found)

    def _entered(self, state: int) -> int:
        return self.policy.accepts[self._next[state + self._accept]].enter

    def _decide(self, operation: Operation, exe_tags: int, facts: int, finals: Rows, entered: Rows) -> Verdict:
        accepts = self.policy.accepts
        sticky = 0
        best = NO_RULE
        for row in entered:
            sticky |= accepts[row].sticky
            best = min(best, accepts[row].rules[operation])
        return decide(self.policy, operation, best, list(rows(list(finals), sticky)), sticky, exe_tags, facts)

    def _look_up(self, operation: Operation, packed: bytes, port: int, exe_tags: int, facts: int) -> Verdict:
        if packed.startswith(_MAPPED):
            entries = self._tries[4].longest(int.from_bytes(packed[12:], "big"))
        else:
            entries = self._tries[6].longest(int.from_bytes(packed, "big"))
        for entry in entries:
            if self._applies(entry, operation, port, exe_tags, facts):
                return self._by_rule[entry.rule]
        return self._defaults[operation]

    @staticmethod
    def _applies(entry: NetEntry, operation: Operation, port: int, exe_tags: int, facts: int) -> bool:
        fits = entry.ops >> (operation - Operation.CONNECT) & 1 and entry.port_lo <= port <= entry.port_hi
        if not fits or entry.exe_not & exe_tags or (entry.exe_any and not entry.exe_any & exe_tags):
            return False
        return facts_hold(facts, entry.need, entry.need_not, entry.action)


class _Prefixes:
    """The prefixes of one family by length; IPv4 in its own 32 bits, which are cheaper to shift."""

    def __init__(self, policy: CompiledPolicy, family: int) -> None:
        bits = 32 if family == 4 else 128
        self.fallback: tuple[NetEntry, ...] = ()
        tables: dict[int, dict[int, tuple[NetEntry, ...]]] = {}
        for prefix in policy.net:  # shortest first: the last one that fits is the longest
            address = int.from_bytes(prefix.address, "big")
            if family == 4 and prefix.length_bits <= 96:
                if not (address ^ MAPPED) >> (128 - prefix.length_bits):
                    self.fallback = prefix.entries
                continue
            if family == 4 and address >> 32 != 0xFFFF:
                continue
            shift = 128 - prefix.length_bits
            tables.setdefault(shift, {})[(address & ((1 << bits) - 1)) >> shift] = prefix.entries
        self.tables = sorted(tables.items())

    def longest(self, address: int) -> tuple[NetEntry, ...]:
        """The entries of the longest prefix that holds the address."""
        for shift, table in self.tables:
            entries = table.get(address >> shift)
            if entries is not None:
                return entries
        return self.fallback


class _Multiplied:
    """The transition table of a large policy, multiplied on the fly: slower, but no copy of it."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self._table = policy.transitions
        self._stride = policy.stride

    def __getitem__(self, cell: int) -> int:
        value = self._table[cell]
        return value if cell % self._stride == self._stride - 1 else value * self._stride
