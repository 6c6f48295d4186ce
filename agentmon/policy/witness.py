# SPDX-License-Identifier: Apache-2.0
"""Witnesses: for each way in which some path can match a set of globs, one such path, the shortest.

Every true path falls into one of these ways, so what holds of the witnesses holds of all paths. It is the subset
construction (Rabin and Scott, 1959), explored breadth first over the paths that can be true ones: absolute, no empty
component, no ``.`` or ``..``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from agentmon.policy.glob import ABSTRACT, ANY, ANYTHING, DIRECTORIES, SLASH, STAR, TAIL, Element, Glob

#: States explored before giving up; up to half a minute.
MOST_STATES: Final = 120_000

#: Which byte stands for all that mean the same: the most readable one.
_READABLE: Final = bytes(
    dict.fromkeys([*b"abcdefghijklmnopqrstuvwxyz0123456789", *range(0x21, 0x7F), *range(1, 256)])
).replace(b"/", b"")
_NOT_SLASH: Final = frozenset(_READABLE)
_EVERY: Final = _NOT_SLASH | {SLASH}
_DOT: Final = 0x2E

_Node = tuple[int, int]  # glob; twice the position, odd inside a loop; DONE when it matches whatever follows
_DONE: Final = -1
_State = frozenset[_Node]
_Move = tuple[frozenset[int], tuple[_Node, ...]]

# Where in a component a path is: at its start, behind `.`, behind `..`, behind a name. Or in an abstract name.
_START, _ONE_DOT, _TWO_DOTS, _NAME, _ABSTRACT = range(5)


class Witnesses:
    """Iterates over ``(path, numbers of the globs that match it)``, each set of numbers once.

    Names of abstract sockets (``@…``) come beside paths, each set of numbers once again.
    ``alive``: paths on which none of these globs can match any more are left out. ``complete`` says, after the
    iteration, whether all there is was seen.
    """

    def __init__(
        self, globs: Sequence[Glob], *, alive: Collection[int] | None = None, limit: int = MOST_STATES
    ) -> None:
        self.globs = globs
        self.alive = alive
        self.limit = limit
        self.complete = True
        self._moves: dict[_Node, tuple[_Move, ...]] = {}

    def __iter__(self) -> Iterator[tuple[bytes, frozenset[int]]]:
        start = self._enter((g, 0) for g in range(len(self.globs)))
        states = {(self._step(start, SLASH), _START): b"/", (self._step(start, ABSTRACT), _ABSTRACT): b"@"}
        todo = list(states)
        seen: set[tuple[frozenset[int], bool]] = set()
        for at, place in todo:
            path = states[at, place]
            if self.alive is not None and not any(g in self.alive for g, _ in at):
                continue
            matched = self._matched(at)
            abstract = place == _ABSTRACT
            if (place == _NAME or abstract or path == b"/") and (matched, abstract) not in seen:
                seen.add((matched, abstract))
                yield path, matched
            for byte in self._bytes(at):
                after = _place(place, byte)
                if after is None:
                    continue
                to = (self._step(at, byte), after)
                if to not in states:
                    if len(states) >= self.limit:
                        self.complete = False
                        return
                    states[to] = path + bytes([byte])
                    todo.append(to)

    def _matched(self, state: _State) -> frozenset[int]:
        return frozenset(
            g for g, at in state if at == _DONE or at == 2 * len(self.globs[g].elements) or self._element(g, at) == TAIL
        )

    def _element(self, g: int, at: int) -> Element:
        return self.globs[g].elements[at // 2]

    def _enter(self, nodes: Iterable[_Node]) -> _State:
        """These nodes and what they are at without another byte. A glob that is done needs no other node."""
        found: set[_Node] = set()
        todo = list(nodes)
        while todo:
            node = g, at = todo.pop()
            if node in found:
                continue
            found.add(node)
            if at == _DONE or at % 2 or at == 2 * len(self.globs[g].elements):
                continue
            element = self._element(g, at)
            if element in (STAR, ANYTHING, DIRECTORIES):
                todo.append((g, at + 2))
                if element == DIRECTORIES:
                    todo.append((g, at + 1))
                    found.discard(node)
                elif element == ANYTHING and at == 2 * len(self.globs[g].elements) - 2:
                    todo.append((g, _DONE))
        done = {g for g, at in found if at == _DONE}
        return frozenset(n for n in found if n[0] not in done or n[1] == _DONE)

    def _moves_of(self, node: _Node) -> tuple[_Move, ...]:
        moves = self._moves.get(node)
        if moves is None:
            moves = self._moves[node] = tuple(self._work_out(*node))
        return moves

    def _work_out(self, g: int, at: int) -> Iterator[_Move]:
        if at == _DONE:
            yield _EVERY, ((g, _DONE),)
        elif at % 2:  # inside DIRECTORIES
            yield _EVERY, ((g, at),)
            yield frozenset({SLASH}), tuple(self._enter([(g, at + 1)]))
        elif at < 2 * len(self.globs[g].elements):
            element = self._element(g, at)
            if element == TAIL:
                yield frozenset({SLASH}), ((g, _DONE),)
            elif element in (STAR, ANYTHING):
                yield _NOT_SLASH if element == STAR else _EVERY, tuple(self._enter([(g, at)]))
            else:
                chosen = _NOT_SLASH if element == ANY else element
                chosen = chosen if isinstance(chosen, frozenset) else frozenset({chosen})
                yield chosen, tuple(self._enter([(g, at + 2)]))

    def _step(self, state: _State, byte: int) -> _State:
        found = {to for node in state for chosen, targets in self._moves_of(node) if byte in chosen for to in targets}
        done = {g for g, at in found if at == _DONE}
        return frozenset(n for n in found if n[0] not in done or n[1] == _DONE)

    def _bytes(self, state: _State) -> Iterator[int]:
        """One byte of each kind that the state tells apart."""
        sets = {chosen for node in state for chosen, _ in self._moves_of(node)} - {_EVERY, _NOT_SLASH}
        single = {byte for chosen in sets if len(chosen) == 1 for byte in chosen}
        large = [chosen for chosen in sets if len(chosen) > 1]
        yield SLASH
        yield from sorted(single - {SLASH, 0})
        kinds: set[tuple[bool, ...]] = set()
        for byte in _READABLE:
            if byte not in single:
                kind = tuple(byte in chosen for chosen in large)
                if kind not in kinds:
                    kinds.add(kind)
                    yield byte
                    if not large:
                        return


def _place(place: int, byte: int) -> int | None:
    """Where in a component the next byte leads; None: no true path goes on so."""
    if place == _ABSTRACT:
        return place
    if byte == SLASH:
        return _START if place == _NAME else None
    if byte == _DOT and place in (_START, _ONE_DOT):
        return place + 1
    return _NAME
