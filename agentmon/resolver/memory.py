# SPDX-License-Identifier: Apache-2.0
"""What the resolver remembers: answers, which names were asked below a wildcard, and which address had which name."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from agentmon.model.names import HostPattern
from agentmon.resolver.answer import Answer

#: Answers kept for all sessions together; about 1 KiB each.
MAX_ANSWERS: Final = 4096
#: Addresses of one session whose name is known, for queries by address.
MAX_REVERSE: Final = 4096
#: Distinct names below one wildcard that a session may have forwarded in one minute. A name can carry some 200 bytes
#: out to whoever owns the domain; browsing a large site asks for about ten.
NAMES_PER_MINUTE: Final = 60
WINDOW_S: Final = 60.0


class Cache:
    """Answers until their TTL ends. Times are seconds of any clock that does not go back."""

    def __init__(self, most: int = MAX_ANSWERS) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, int], tuple[float, Answer]] = OrderedDict()

    def get(self, name: str, rdtype: int, now_s: float) -> tuple[Answer, int] | None:
        """The answer, and the seconds that are left of it (at least one)."""
        found = self._kept.get((name, rdtype))
        if found is None:
            return None
        ends_s, answer = found
        if ends_s <= now_s:
            del self._kept[name, rdtype]
            return None
        return answer, max(1, int(ends_s - now_s))

    def put(self, name: str, rdtype: int, answer: Answer, now_s: float) -> None:
        """Keep an answer; the oldest makes room."""
        if answer.ttl_s <= 0:
            return
        self._kept.pop((name, rdtype), None)
        self._kept[name, rdtype] = now_s + answer.ttl_s, answer
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


class Budget:
    """How many new names below each wildcard a session had forwarded lately."""

    def __init__(self, most: int = NAMES_PER_MINUTE) -> None:
        self.most = most
        self._asked: dict[tuple[str, HostPattern], OrderedDict[str, float]] = {}

    def spend(self, session: str, pattern: HostPattern, name: str, now_s: float) -> bool:
        """Whether the name may be forwarded; if so, it counts. A name counts once a minute."""
        if not pattern.wildcard:
            return True
        asked = self._asked.setdefault((session, pattern), OrderedDict())
        while asked and next(iter(asked.values())) <= now_s - WINDOW_S:
            asked.popitem(last=False)
        if name not in asked and len(asked) >= self.most:
            return False
        asked.setdefault(name, now_s)
        return True

    def forget(self, session: str) -> None:
        """The session ended."""
        self._asked = {key: asked for key, asked in self._asked.items() if key[0] != session}


@dataclass(slots=True)
class Reverse:
    """Which name each granted address of one session was asked by."""

    names: OrderedDict[bytes, str]

    @classmethod
    def empty(cls) -> Reverse:
        """Knowing nothing yet."""
        return cls(OrderedDict())

    def note(self, name: str, addresses: tuple[bytes, ...]) -> None:
        """These addresses were given out for this name."""
        for packed in addresses:
            self.names.pop(packed, None)
            self.names[packed] = name
        while len(self.names) > MAX_REVERSE:
            self.names.popitem(last=False)
