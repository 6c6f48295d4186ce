# SPDX-License-Identifier: Apache-2.0
"""Many globs, one deterministic automaton over bytes.

Globs share their common beginnings in a trie of NFA nodes; subset construction (Rabin and Scott, 1959) makes it
deterministic. A *sticky* glob is only reported on the step that completes it, and then needs no state: this keeps
twenty ``**/.x/**`` at a hundred states where remembering each match in the state would take a million.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agentmon.model.tables import MAX_STATES
from agentmon.policy.glob import ANY, ANYTHING, DIRECTORIES, SLASH, STAR, TAIL, Element, Glob

DEAD: Final = 0

#: NFA nodes: those of literal paths become states one by one, so many more are refused before they cost memory.
MAX_NODES: Final = 4 * MAX_STATES

_LOOP_NONE, _LOOP_COMPONENT, _LOOP_ANY = 0, 1, 2


class TooManyStatesError(Exception):
    """The automaton outgrew its limit. ``patterns`` are those alive in most states, the worst first.

    They are numbered as given: the plain ones, the sticky ones, then those of each tail.
    """

    def __init__(self, patterns: list[int]) -> None:
        super().__init__("too many states")
        self.patterns = patterns


@dataclass(slots=True)
class _Node:
    """An NFA state: what it does on a byte, where it is at once, what it means."""

    loop: int = _LOOP_NONE
    literals: dict[int, int] = field(default_factory=dict)
    sets: dict[Element, int] = field(default_factory=dict)
    free: dict[Element, int] = field(default_factory=dict)  # reached without a byte
    accepts: int = 0  # bit mask of patterns
    sticks: int = 0  # bit mask of sticky bits
    owner: int = -1  # a pattern that runs through here, for blame

    @property
    def useful(self) -> bool:
        return bool(self.loop or self.literals or self.sets or self.accepts)


#: The transitions of a state: where most bytes lead, and the classes of bytes that lead elsewhere.
Row = tuple[int, dict[int, int]]


@dataclass(slots=True)
class Automaton:
    """State 0 is dead."""

    classes: bytes
    width: int
    starts: list[int]  # of the patterns, then of each tail
    rows: list[Row]
    accepts: list[int]  # per state: mask of the patterns that match what was read
    sticks: list[int]  # per state: mask of the sticky bits that arriving here sets

    @property
    def start(self) -> int:
        """Where a walk begins."""
        return self.starts[0]


@dataclass(slots=True)
class Patterns:
    """Globs, each with its bit in `Automaton.accepts` or in `Automaton.sticks`. Equal meanings share a bit."""

    plain: Mapping[Glob, int] = field(default_factory=dict)
    sticky: Mapping[Glob, int] = field(default_factory=dict)


class _Trie:
    def __init__(self) -> None:
        self.nodes = [_Node()]

    def _new(self, loop: int = _LOOP_NONE) -> int:
        self.nodes.append(_Node(loop))
        if len(self.nodes) > MAX_NODES:
            raise TooManyStatesError([])
        return len(self.nodes) - 1

    def _child(self, edges: dict[int, int], key: int, loop: int = _LOOP_NONE) -> int:
        if key not in edges:
            edges[key] = self._new(loop)
        return edges[key]

    def root(self) -> int:
        """Another beginning."""
        return self._new()

    def add(self, glob: Glob, root: int = 0, *, accept: int = 0, stick: int = 0, owner: int = -1) -> None:
        """Add a glob that is reported by the state (``accept``) or by a sticky bit (``stick``)."""
        nodes, at = self.nodes, root
        last = len(glob.elements) - 1
        for i, element in enumerate(glob.elements):
            node = nodes[at]
            if element == TAIL:
                node.accepts |= accept
                at = self._child(node.literals, SLASH)
                if not stick:
                    at = self._free(at, ANYTHING, _LOOP_ANY)
            elif element == ANYTHING:
                if not (stick and i == last):
                    at = self._free(at, ANYTHING, _LOOP_ANY)
            elif element == STAR:
                at = self._free(at, STAR, _LOOP_COMPONENT)
            elif element == DIRECTORIES:
                inside = self._free(at, DIRECTORIES, _LOOP_ANY)
                after = self._child(nodes[inside].literals, SLASH)
                nodes[at].free[TAIL] = after  # no directory at all; the key only has to differ
                at = after
            elif isinstance(element, frozenset) or element == ANY:
                if element not in node.sets:
                    node.sets[element] = self._new()
                at = node.sets[element]
            else:
                at = self._child(node.literals, element)
            nodes[at].owner = owner
        nodes[at].accepts |= accept
        nodes[at].sticks |= stick

    def _free(self, at: int, key: int, loop: int) -> int:
        free = self.nodes[at].free
        if key not in free:
            free[key] = self._new(loop)
        return free[key]

    def share(self) -> list[int]:
        """Make equal branches one node, from the leaves on: but for loops on themselves, nodes form no cycles.

        Returns, per node, the one that stands for it.
        """
        table: dict[Hashable, int] = {}
        same = list(range(len(self.nodes)))
        for n in range(len(self.nodes) - 1, -1, -1):  # a child is always made after its parent
            node = self.nodes[n]
            node.literals = {key: same[child] for key, child in node.literals.items()}
            node.sets = {key: same[child] for key, child in node.sets.items()}
            node.free = {key: same[child] for key, child in node.free.items()}
            edges_key = (
                tuple(sorted(node.literals.items())),
                frozenset(node.sets.items()),
                frozenset(node.free.items()),
            )
            same[n] = table.setdefault((node.loop, node.accepts, node.sticks, edges_key), n)
        return same

    def closure(self, at: int) -> tuple[frozenset[int], int]:
        """What being at a node means: (useful nodes, sticky bits)."""
        seen, todo, sticks = {at}, [at], 0
        while todo:
            node = self.nodes[todo.pop()]
            sticks |= node.sticks
            for target in node.free.values():
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return frozenset(n for n in seen if self.nodes[n].useful), sticks


def _classes(nodes: Iterable[_Node]) -> tuple[bytes, dict[frozenset[int], tuple[int, ...]]]:
    """Bytes that no pattern tells apart share a class; and the classes that make up each set."""
    literals = {SLASH}
    sets: dict[frozenset[int], None] = {}
    for node in nodes:
        literals.update(node.literals)
        sets.update((s, None) for s in node.sets if isinstance(s, frozenset))
    kinds: dict[tuple[int, ...], int] = {}
    table = bytearray(256)
    for byte in range(256):
        kind = (byte if byte in literals else -1, *(byte in s for s in sets))
        table[byte] = kinds.setdefault(kind, len(kinds))
    return bytes(table), {s: tuple(sorted({table[b] for b in s})) for s in sets}


def build(
    plain: Mapping[Glob, int], sticky: Mapping[Glob, int], limit: int = MAX_STATES, tails: Sequence[Patterns] = ()
) -> Automaton:
    """The automaton of some globs, each with its bit in `Automaton.accepts` or in `Automaton.sticks`.

    Globs that mean the same should have the same bit: their common ends are then one. Each of ``tails`` is an
    automaton of its own in the same table, with its own start: a walk that knows where to goes on there.

    Raises:
        TooManyStatesError: more than ``limit``.
    """
    trie = _Trie()
    owner = 0
    roots = []
    for i, patterns in enumerate([Patterns(plain, sticky), *tails]):
        roots.append(trie.root() if i else 0)
        for glob, bit in patterns.plain.items():
            trie.add(glob, roots[-1], accept=1 << bit, owner=owner)
            owner += 1
        for glob, bit in patterns.sticky.items():
            trie.add(glob, roots[-1], stick=1 << bit, owner=owner)
            owner += 1
    same = trie.share()
    return _Construction(trie, [same[r] for r in roots], owner, limit).run()


_Target = tuple[frozenset[int], int]


class _Construction:
    def __init__(self, trie: _Trie, roots: Sequence[int], patterns: int, limit: int) -> None:
        self.nodes = trie.nodes
        self.roots = roots
        self.limit = limit
        self.patterns = patterns
        self.classes, self.set_classes = _classes(trie.nodes)
        self.width = max(self.classes) + 1
        self.slash = self.classes[SLASH]
        self.closures = [trie.closure(n) for n in range(len(trie.nodes))]
        self.ids: dict[_Target, int] = {(frozenset(), 0): DEAD}
        self.order: list[_Target] = [(frozenset(), 0)]
        self.known_rows: dict[frozenset[int], Row] = {}

    def run(self) -> Automaton:
        starts = [self._id(*self.closures[root]) for root in self.roots]
        rows: list[Row] = []
        while len(rows) < len(self.order):
            alive = self.order[len(rows)][0]
            row = self.known_rows.get(alive)
            if row is None:
                row = self.known_rows[alive] = self._row(alive)
            rows.append(row)
        accepts = []
        for alive, _ in self.order:
            mask = 0
            for n in alive:
                mask |= self.nodes[n].accepts
            accepts.append(mask)
        return Automaton(self.classes, self.width, starts, rows, accepts, [sticks for _, sticks in self.order])

    def _id(self, alive: frozenset[int], sticks: int) -> int:
        key = (alive, sticks)
        found = self.ids.get(key)
        if found is None:
            found = self.ids[key] = len(self.order)
            self.order.append(key)
            if found >= self.limit:
                raise TooManyStatesError(self._blame())
        return found

    def _row(self, alive: frozenset[int]) -> Row:
        """All transitions of a set: few bytes matter to it, the rest go where the loops go."""
        nodes, closures, classes = self.nodes, self.closures, self.classes
        always: frozenset[int] = frozenset()
        component: frozenset[int] = frozenset()
        sticks = 0
        special: dict[int, list[int]] = {self.slash: []}
        for n in alive:
            node = nodes[n]
            if node.loop == _LOOP_ANY:
                always |= closures[n][0]
            elif node.loop == _LOOP_COMPONENT:
                component |= closures[n][0]
            for byte, child in node.literals.items():
                special.setdefault(classes[byte], []).append(child)
            for chosen, child in node.sets.items():
                if isinstance(chosen, frozenset):
                    for cls in self.set_classes[chosen]:
                        special.setdefault(cls, []).append(child)
                else:
                    component |= closures[child][0]
                    sticks |= closures[child][1]
        usual = always | component
        default = self._id(usual, sticks)
        row: dict[int, int] = {}
        for cls, children in special.items():
            target, stuck = (always, 0) if cls == self.slash else (usual, sticks)
            for child in children:
                target |= closures[child][0]
                stuck |= closures[child][1]
            state = self._id(target, stuck)
            if state != default:
                row[cls] = state
        return default, row

    def _blame(self) -> list[int]:
        counts = [0] * self.patterns
        for alive, _ in self.order[-4096:]:
            for pattern in {self.nodes[n].owner for n in alive}:
                if pattern >= 0:
                    counts[pattern] += 1
        return sorted(range(self.patterns), key=lambda p: -counts[p])


def merge(automaton: Automaton, labels: Sequence[Hashable]) -> list[int]:
    """Merge states that no continuation tells apart, from the ends backwards; rewrites ``rows`` in place.

    ``labels`` say what each state stands for. Two states are merged when label and row agree (a step to itself
    agrees with a step to itself), again and again: minimal but for some cycles, and linear in practice.
    Returns, per state, the state that stands for it.
    """
    rows, sticks = automaton.rows, automaton.sticks
    stands_for = list(range(len(rows)))
    before: list[set[int]] = [set() for _ in rows]
    for state, (default, others) in enumerate(rows):
        before[default].add(state)
        for target in others.values():
            before[target].add(state)
    table: dict[Hashable, int] = {(labels[DEAD], sticks[DEAD], t, ()): DEAD for t in (DEAD, -1)}
    keys: list[Hashable] = [None] * len(rows)
    todo = list(range(1, len(rows)))
    while todo:
        state = todo.pop()
        if stands_for[state] != state or state == DEAD:
            continue
        default, others = rows[state]
        items = [(cls, -1 if t == state else t) for cls, t in sorted(others.items())]
        key = (labels[state], sticks[state], -1 if default == state else default, tuple(items))
        other = table.get(key)
        if other is None or other == state:
            table[key] = state
            keys[state] = key
            continue
        stands_for[state] = other
        for previous in before[state]:
            if stands_for[previous] != previous:
                continue
            old = keys[previous]
            if old is not None and table.get(old) == previous:
                del table[old]
                keys[previous] = None
            rows[previous] = _redirected(rows[previous], state, other)
            before[other].add(previous)
            todo.append(previous)
        before[other].discard(state)
    for state in range(len(rows)):
        at = state
        while stands_for[at] != at:
            at = stands_for[at]
        stands_for[state] = at
    return stands_for


def _redirected(row: Row, old: int, new: int) -> Row:
    default = new if row[0] == old else row[0]
    moved = {cls: new if t == old else t for cls, t in row[1].items()}
    return default, {cls: t for cls, t in moved.items() if t != default}
