# SPDX-License-Identifier: Apache-2.0
"""Recorded sessions: what the audit log says that was attempted, ready to be judged again.

The kernel reports a plain allowed use of an object once a session, so what is here are *distinct* actions. A record
does not say which program its process ran. That is derived: the file that an exec decision named is the program of
that process from its next ``exec`` on; children inherit it; and a later ``exec`` without a decision of its own (the
kernel reports each once) goes by the name that the same file had before, if no other file had it.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from agentmon.model.events import ProcessKey
from agentmon.model.operations import OPERATIONS, Action, Operation
from agentmon.model.records import BY_CONTENTS, BY_DEFAULT, BY_NAME, USED_UP, Record

#: As `daemon.verbs` writes it. Names of users have no comma; the home is what is left.
_ENROLLED = re.compile(
    r"policy (?P<policy>[^,]*), .*?, by uid \d+(?:, user (?P<user>[^,]*), home (?P<home>.*))?", re.DOTALL
)
_WORDS = {o.word: o for o in OPERATIONS}
_ACTIONS = {a.word: a for a in Action}

#: A path, an (address, port), or None where the operation has no object.
Target = bytes | tuple[bytes, int] | None


@dataclass(frozen=True, slots=True)
class RecordedAction:
    """One distinct thing that a session attempted, and what came of it.

    ``exe`` is the program of the process, as derived; None where it cannot be known. ``by_name`` is False where the
    verdict was not reached by the object's name: the kernel could not judge, the file was pinned, or a directory was
    judged for what is below it. ``host`` is the name that the session had asked for the address by.
    """

    operation: Operation
    object: str
    target: Target
    verdict: Action
    rule: str
    reason: str
    exe: bytes | None
    by_name: bool
    comm: str = field(compare=False)
    host: str = ""


@dataclass(slots=True)
class RecordedSession:
    """The distinct actions of one session with the number of their records, in the order of the log.

    ``workspace``, ``home`` and ``user`` are empty where a log of an earlier version lacks them. ``unjudged`` counts
    records that no policy of this version can judge, by operation.
    """

    id: str
    policy: str = ""
    workspace: str = ""
    home: str = ""
    user: str = ""
    actions: dict[RecordedAction, int] = field(default_factory=dict)
    unjudged: Counter[str] = field(default_factory=Counter)


def sessions(records: Iterable[Record], wanted: Collection[str] | None = None) -> dict[str, RecordedSession]:
    """The sessions of a log by id, oldest first; only those ``wanted``, if given.

    Of two sessions that had the same id, one after the other, the later one counts.
    """
    found: dict[str, _Reader] = {}
    for record in records:
        if not record.session or (wanted is not None and record.session not in wanted):
            continue
        if record.session.startswith("slot-"):
            continue  # of a session whose name the daemon did not know
        reader = found.get(record.session)
        if reader is None or (reader.ended and record.operation == "enrolled"):
            found.pop(record.session, None)
            reader = found[record.session] = _Reader(record.session)
        reader.feed(record)
    return {name: reader.session for name, reader in found.items()}


def target_of(operation: Operation, text: str) -> Target:
    """The object of a record: a path, (address in 16 bytes, port), or nothing.

    Raises:
        ValueError: it is not what the operation has.
    """
    if operation.is_bare and not text:
        return None
    if not operation.is_net:
        abstract = operation is Operation.UNIX and text.startswith("@")
        if operation.is_bare or not (text.startswith("/") or abstract):
            raise ValueError(text)
        return os.fsencode(text)
    host, _, port = text.rpartition(":")
    address = ipaddress.ip_address(host.strip("[]"))
    number = int(port)
    packed = address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed
    return packed, number


class _Reader:
    """Follows one session through its records."""

    def __init__(self, session_id: str) -> None:
        self.session = RecordedSession(session_id)
        self.ended = False
        self._exe: dict[ProcessKey, bytes | None] = {}
        self._latest: dict[int, ProcessKey] = {}
        self._judged: dict[ProcessKey, bytes] = {}  # the file of an exec decision, until the exec itself
        self._names: dict[str, set[bytes]] = {}  # comm after an exec -> the files that it was

    def feed(self, record: Record) -> None:
        if record.kind == "decision":
            self._decision(record)
        elif record.kind == "process":
            self._process(record)
        elif record.kind == "session":
            self._session(record)

    def _session(self, record: Record) -> None:
        if record.operation == "enrolled":
            session, said = self.session, _ENROLLED.fullmatch(record.detail)
            session.workspace = record.object
            if said:
                session.policy, session.user, session.home = (said[k] or "" for k in ("policy", "user", "home"))
        elif record.operation in ("ended", "released"):
            self.ended = True

    def _process(self, record: Record) -> None:
        key = ProcessKey(record.pid, record.start_ns)
        if record.operation == "fork":
            parent = self._latest.get(_parent(record.detail))
            self._exe[key] = self._exe.get(parent) if parent else None
            self._latest[key.pid] = key
        elif record.operation == "exec":
            file = self._judged.pop(key, None)
            known = self._names.setdefault(record.comm, set())
            if file is not None:
                known.add(file)
                self._names.setdefault(_comm(file), set()).add(file)
            elif len(known) == 1:
                (file,) = known
            self._exe[key] = file
            self._latest[key.pid] = key
        elif record.operation == "exit":
            self._exe.pop(key, None)
            self._judged.pop(key, None)

    def _decision(self, record: Record) -> None:
        operation, verdict = _WORDS.get(record.operation), _ACTIONS.get(record.verdict)
        try:
            if operation is None or verdict is None:
                raise ValueError(record.operation)
            target = target_of(operation, record.object)
        except ValueError:
            self.session.unjudged[record.operation] += 1
            return
        key = ProcessKey(record.pid, record.start_ns)
        self._latest.setdefault(key.pid, key)
        flags = record.flags.split(",")
        own = bool(record.rule) or record.reason in ("", BY_DEFAULT) or record.reason.endswith(USED_UP)
        own = own and not record.reason.startswith(BY_CONTENTS)
        action = RecordedAction(
            operation, record.object, target, verdict, record.rule, record.reason, self._exe.get(key),
            own and "pinned" not in flags, record.comm,
            record.detail.removeprefix(BY_NAME) if record.detail.startswith(BY_NAME) else "",
        )  # fmt: skip
        actions = self.session.actions
        actions[action] = actions.get(action, 0) + 1
        if "also_read" in flags and not verdict.blocks:  # which of the two a verdict that blocks was on, is said
            read = replace(action, operation=Operation.READ, rule="", reason="")
            actions[read] = actions.get(read, 0) + 1
        if operation is Operation.EXEC and isinstance(target, bytes) and not verdict.blocks:
            # Of a script, what then runs is its interpreter; its name must not be taken for a program's.
            if "script" in flags:
                self._names.setdefault(record.comm, set()).update((b"", target))
            else:
                self._judged[key] = target


def _parent(detail: str) -> int:
    word = detail.removeprefix("parent ")
    return int(word) if word.isdecimal() else 0


def _comm(file: bytes) -> str:
    """The name that the kernel gives a process that runs the file: 15 bytes of its last component."""
    return file.rpartition(b"/")[2][:15].decode("utf-8", "surrogateescape")
