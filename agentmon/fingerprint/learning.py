# SPDX-License-Identifier: Apache-2.0
"""Learning from a session that has ended: towards a first baseline, or on, within the bounds of `drift`.

What is collected of a new agent lies beside its baseline to be, one file a session, until there is enough.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from agentmon.errors import AgentmonError
from agentmon.fingerprint.document import Agent
from agentmon.fingerprint.drift import DriftError, accept, changed_agent, other_tier
from agentmon.fingerprint.store import Store
from agentmon.fingerprint.tokens import Token
from agentmon.fingerprint.training import LEAST_OF_SESSION, LEAST_WINDOWS, Recorded, Tier, to_go, train

#: Acts of one session that are collected; who never ends is learnt from by its beginning.
MOST_ACTS = 50_000
#: Sessions collected at most, in times of those that are enough: short ones may not be.
MOST_SESSIONS = 4
_FOLDER = "learning"
_LEFT = "left.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. ``how``: `collected`, `trained`, `learnt`, `not-learnt` or `drift`; ``text`` is for people."""

    how: str
    text: str
    sessions: int = 0
    """Still to go."""
    windows: int = 0

    @property
    def told(self) -> bool:
        """Whether people should hear of it at once."""
        return self.how == "drift"


def left(store: Store, name: str, enough: int) -> tuple[int, int]:
    """(sessions, windows) still to go for a first baseline, as far as is known."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((store.directory / name / _FOLDER / _LEFT).read_text(encoding="utf-8"))
        return max(0, int(found["sessions"])), max(0, int(found["windows"]))
    return enough, LEAST_WINDOWS


def words(sessions: int, windows: int) -> str:
    """What is to go, for people."""
    more = [f"{sessions} more session{'s' * (sessions != 1)}"] if sessions else []
    more += [f"{windows} more windows of 64 acts"] if windows else []
    return " and ".join(more) or "one more session"


def learn(
    store: Store,
    name: str,
    session: Recorded,
    agent: Agent | None,
    enough: int,
    say: Callable[[str], None],
    tier: Tier = "",
) -> Outcome:
    """Learn from one session. ``enough``: sessions that make a first baseline. Raises `AgentmonError`."""
    if len(session.tokens) < LEAST_OF_SESSION:
        return Outcome("not-learnt", f"it has fewer than {LEAST_OF_SESSION} acts", *left(store, name, enough))
    if name in store.names():
        return _on(store, name, session, agent, tier)
    return _first(store, name, session, agent, enough, say, tier)


def _on(store: Store, name: str, session: Recorded, agent: Agent | None, tier: Tier) -> Outcome:
    baseline = store.load(name)
    if tier and (other := other_tier(baseline, tier)):
        return Outcome("not-learnt", other)
    if agent is not None and (changed := changed_agent(baseline, agent.sha256)):
        return Outcome("not-learnt", changed)
    try:
        extended, refused = accept(baseline, [session])
    except DriftError as error:
        if error.noted is not None:
            store.save(error.noted)
        return Outcome("drift", str(error))
    except AgentmonError as error:
        return Outcome("not-learnt", str(error))
    store.save(extended)
    if refused:
        return Outcome("not-learnt", refused[0].why)
    count = len(extended.body.sessions)
    return Outcome("learnt", f"revision {extended.body.revision} of `{name}`, {count} sessions")


def _first(
    store: Store,
    name: str,
    session: Recorded,
    agent: Agent | None,
    enough: int,
    say: Callable[[str], None],
    tier: Tier,
) -> Outcome:
    folder = store.directory / name / _FOLDER
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        data = {"agent": agent.model_dump() if agent else None, "tokens": session.tokens[:MOST_ACTS]}
        # by when it began: the same id may come again
        began = session.tokens[0].time_ns
        _write(folder / f"{began:020}-{session.id}.json", json.dumps(data))
        found, dropped = _collected(folder, agent, most=MOST_SESSIONS * enough)
        sessions, windows = to_go(found)
        sessions = max(sessions, enough - sum(len(s.tokens) >= LEAST_OF_SESSION for s in found), 0)
        _write(folder / _LEFT, json.dumps({"sessions": sessions, "windows": windows}))
    except OSError as error:
        raise AgentmonError(f"cannot write below `{folder}`: {(error.strerror or str(error)).lower()}") from error
    why = f"; its program changed: {dropped} sessions of the one before were put away" if dropped else ""
    if sessions or windows:
        return Outcome("collected", f"{words(sessions, windows)} to go{why}", sessions, windows)
    try:
        baseline = store.save(train(name, found, agent=agent, tier=tier, say=say))
    except AgentmonError as error:
        return Outcome("collected", f"no baseline yet: {error}{why}", 1, 0)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    best = round(1 / baseline.calibration.least)
    return Outcome("trained", f"baseline `{name}` of {len(found)} sessions: at best one false alert in {best}{why}")


def _collected(folder: Path, agent: Agent | None, most: int) -> tuple[list[Recorded], int]:
    """The sessions, oldest first, and how many were put away because they are of another program."""
    found, dropped = [], 0
    paths = sorted(path for path in folder.glob("*.json") if path.name != _LEFT)
    for path in paths[:-most]:
        path.unlink()
    for path in paths[-most:]:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            known = data["agent"]
            session = Recorded(path.stem.partition("-")[2], [Token(*fields) for fields in data["tokens"]])
        except (ValueError, KeyError, TypeError):
            path.unlink()  # cut off by a crash
            continue
        if agent is not None and known is not None and known["sha256"] != agent.sha256:
            path.unlink()
            dropped += 1
        else:
            found.append(session)
    return found, dropped


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640), "w") as file:
        file.write(text)
    temporary.rename(path)


def as_json(outcome: Outcome) -> str:
    """For another process."""
    return json.dumps(asdict(outcome))
