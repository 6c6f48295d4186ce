# SPDX-License-Identifier: Apache-2.0
"""Steps from recorded sessions: the programs that the agent or its shells started, and what was done below each.

The log says which file was run, not with which arguments; and each distinct action once a session, so what a later
step did that an earlier one had done is not seen. Of several sessions, an order is kept if it held in all that have
both steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from agentmon.model.events import ProcessKey
from agentmon.model.operations import OPERATIONS, Operation
from agentmon.model.records import Record
from agentmon.plan.infer.commands import SHELLS
from agentmon.plan.infer.draft import Draft, Drafts
from agentmon.plan.plan import CHANGES, REACHES
from agentmon.policy.generalise import Place, Source, patterns, place
from agentmon.policy.recorded import target_of
from agentmon.policy.rules import Variables

_WORDS: Final = {o.word: o for o in OPERATIONS}


@dataclass(slots=True)
class _Did:
    """What was done in a step, or outside of all."""

    changed: set[tuple[Place, Source]] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    addresses: set[str] = field(default_factory=set)
    execs: set[str] = field(default_factory=set)
    blocked: int = 0


@dataclass(slots=True)
class _Run:
    program: str
    root: ProcessKey
    alive: set[ProcessKey]
    before: set[str]  # steps that had ended, and were not under way, when it began


@dataclass(slots=True)
class _Step:
    """All runs of one program, in all sessions. ``before``: what had always ended when it first began."""

    did: _Did = field(default_factory=_Did)
    runs: int = 0
    sessions: set[str] = field(default_factory=set)
    before: dict[str, set[str]] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)  # other ends than status 0


class Sessions:
    """Reads one session after the other."""

    def __init__(self) -> None:
        self.steps: dict[str, _Step] = {}
        self.outside = _Did()
        self.shells: dict[str, None] = {}
        self.order: dict[str, list[str]] = {}
        self._count = 0

    def read(self, name: str, records: Iterable[Record], variables: Variables) -> None:
        """Follow the records of one session, oldest first."""
        self._count += 1
        _Reader(self, name, variables).follow(records)

    def drafts(self) -> Drafts:
        """Steps of all that was read."""
        drafts = Drafts()
        numbers: dict[str, int] = {}
        ordered = sorted(self.steps, key=lambda p: (min(o.index(p) for o in self.order.values() if p in o), p))
        edges: dict[str, set[str]] = {}
        for program in ordered:
            step = self.steps[program]
            edges[program] = {other for other in self._always_before(step) if other in numbers}
            numbers[program] = len(numbers)
            drafts.steps.append(self._draft(program, step))
        for program, number in numbers.items():
            drafts.steps[number].after = {numbers[other] for other in _direct(edges, program)}
        drafts.shells = sorted(self.shells)
        drafts.outside_writes = _patterns(self.outside.changed)
        reached = sorted(self.outside.hosts | self.outside.addresses)
        if reached:
            drafts.holes.append(
                f"which of {', '.join(reached[:6])} are the agent's own: it reached them outside of steps"
            )
        if self.outside.blocked:
            drafts.holes.append(f"what {self.outside.blocked} blocked actions outside of steps would have led to")
        return drafts

    def _always_before(self, step: _Step) -> set[str]:
        """Steps that had ended, in each session that has them and this one, before this one first began."""
        candidates = set().union(*step.before.values()) if step.before else set()
        return {
            other for other in candidates
            if all(other in step.before[s] for s in step.sessions & self.steps[other].sessions)
        }  # fmt: skip

    def _draft(self, program: str, step: _Step) -> Draft:
        path = program
        draft = Draft(path.rpartition("/")[2], [((program,), None)])
        ran = f"{step.runs} times" if step.runs > 1 else "once"
        many = f" in {len(step.sessions)} of {self._count} sessions" if self._count > 1 else ""
        draft.told.append(f"{path}, run {ran}{many}")
        draft.repeat = step.runs > len(step.sessions)
        draft.holes.append(f"with which arguments `{draft.name}` is started")
        draft.writes = _patterns(step.did.changed)
        draft.hosts, draft.addresses = sorted(step.did.hosts), sorted(step.did.addresses)
        draft.execs = sorted(step.did.execs)
        draft.files_known = draft.execs_known = True
        draft.no_exec = not draft.execs
        draft.no_network = not (draft.hosts or draft.addresses)
        if step.bad:
            draft.holes.append(f"whether it counts as done when it ends with {', '.join(sorted(step.bad))}")
        if step.did.blocked:
            draft.holes.append(f"what {step.did.blocked} actions would have led to that were blocked")
        return draft


def _patterns(changed: set[tuple[Place, Source]]) -> list[str]:
    return [general.pattern for general in patterns(changed)]


def _direct(edges: dict[str, set[str]], program: str) -> set[str]:
    """Without those that others of them wait for anyway."""
    waits = edges[program]
    further: set[str] = set()
    left = [deeper for other in waits for deeper in edges[other]]
    while left:
        each = left.pop()
        if each not in further:
            further.add(each)
            left += edges[each]
    return waits - further


class _Reader:
    """One session: who is in which run."""

    def __init__(self, into: Sessions, name: str, variables: Variables) -> None:
        self._into = into
        self._variables = variables
        self._name = name
        self._run_of: dict[ProcessKey, _Run | None] = {}
        self._latest: dict[int, ProcessKey] = {}
        self._judged: dict[ProcessKey, bytes] = {}
        self._killed: set[ProcessKey] = set()  # before the first instruction of a program
        self._files: dict[str, bytes] = {}  # by the name that the kernel gives what runs it
        self._agent: ProcessKey | None = None
        self._started = False
        self._ended: set[str] = set()
        self._active: list[_Run] = []

    def follow(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.kind == "decision":
                self._decision(record)
            elif record.kind == "process":
                self._process(record)

    def _key(self, record: Record) -> ProcessKey:
        key = ProcessKey(record.pid, record.start_ns)
        self._latest[key.pid] = key
        if self._agent is None:
            self._agent = key
        return key

    def _process(self, record: Record) -> None:
        key = self._key(record)
        if record.operation == "fork":
            word = record.detail.removeprefix("parent ")
            parent = self._latest.get(int(word)) if word.isdecimal() else None
            run = self._run_of.get(parent) if parent else None
            self._run_of[key] = run
            if run is not None:
                run.alive.add(key)
        elif record.operation == "exec":
            self._exec(key, record)
        elif record.operation == "exit":
            self._exit(key, record.detail)

    def _exec(self, key: ProcessKey, record: Record) -> None:
        file = self._judged.pop(key, self._files.get(record.comm, b""))
        if key in self._killed:
            return
        if self._run_of.get(key) is not None or not file:
            return
        program = place(file, self._variables, changing=False).pattern()
        name = os.fsdecode(file).rpartition("/")[2]
        if key == self._agent and not self._started:
            self._started = True
            return  # the agent itself
        if name in SHELLS:
            self._into.shells[program] = None
            return
        run = _Run(program, key, {key}, self._ended - {each.program for each in self._active})
        self._run_of[key] = run
        self._active.append(run)
        step = self._into.steps.setdefault(program, _Step())
        step.runs += 1
        step.sessions.add(self._name)
        order = self._into.order.setdefault(self._name, [])
        if program not in order:
            order.append(program)
            step.before[self._name] = run.before - {program}

    def _exit(self, key: ProcessKey, how: str) -> None:
        run = self._run_of.pop(key, None)
        if run is None:
            return
        run.alive.discard(key)
        if key == run.root and how not in ("status 0", ""):
            self._into.steps[run.program].bad.add(how)
        if not run.alive:
            self._ended.add(run.program)
            self._active.remove(run)

    def _decision(self, record: Record) -> None:
        key = self._key(record)
        operation = _WORDS.get(record.operation)
        if operation is None:
            return
        run = self._run_of.get(key)
        did = self._into.steps[run.program].did if run else self._into.outside
        if record.blocked:
            did.blocked += 1
            if operation is Operation.EXEC and "killed" in record.flags.split(","):
                self._killed.add(key)
            return
        try:
            target = target_of(operation, record.object)
        except ValueError:
            return
        if operation is Operation.EXEC and isinstance(target, bytes):
            self._judged[key] = target
            if "script" not in record.flags.split(","):
                self._files[os.fsdecode(target).rpartition("/")[2][:15]] = target
            if run:
                did.execs.add(place(target, self._variables, changing=False).pattern())
        elif operation in CHANGES and isinstance(target, bytes):
            if not target.startswith((b"/dev/", b"/proc/")):
                did.changed.add((place(target, self._variables), (record.object, record.operation)))
        elif operation in REACHES and isinstance(target, tuple):
            if record.host:
                did.hosts.add(f"{record.host}:{target[1]}")
            else:
                did.addresses.add(record.object)


def read_sessions(records: Iterable[Record], wanted: Sequence[str]) -> dict[str, list[Record]]:
    """The records of some sessions, in the order of the log."""
    found: dict[str, list[Record]] = {name: [] for name in wanted}
    for record in records:
        if record.session in found:
            found[record.session].append(record)
    return found
