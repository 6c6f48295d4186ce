# SPDX-License-Identifier: Apache-2.0
"""Policies as the daemon handles them: text in, kernel slots out; equal ones are compiled and installed once."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agentmon.daemon.clocks import Clocks
from agentmon.engine import PlanView, View
from agentmon.errors import PolicyError
from agentmon.model.conditions import over_of
from agentmon.model.plans import OUTSIDE
from agentmon.model.tables import CompiledPolicy
from agentmon.plan.fence import Fenced
from agentmon.plan.load import load_text as load_plan
from agentmon.policy.bind import BoundPolicy, bind_policy
from agentmon.policy.compile import compile_policy
from agentmon.policy.fast import FastEvaluator
from agentmon.policy.implied import with_control, without_implied
from agentmon.policy.load import load, load_text, pack_directories
from agentmon.policy.rules import Variables

#: Compiled policies kept although no session uses them.
CACHE = 16


@dataclass(frozen=True, slots=True)
class Source:
    """What a session asked for: the name of an installed pack, or a text and what to call its file."""

    file: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A policy ready to be installed, for one workspace and user."""

    name: str
    compiled: CompiledPolicy
    judge: FastEvaluator
    digest: str
    bound: BoundPolicy
    observed: View | None = None

    @property
    def view(self) -> View:
        """What the engine needs of it."""
        return _view(self.compiled, self.judge, self.bound, self.observed)


class PolicyMaps(Protocol):
    """What is needed of the monitor."""

    def install_policy(self, policy: CompiledPolicy) -> tuple[int, int]: ...
    def remove_policy(self, slot: int) -> None: ...
    def set_clock(self, slot: int, spans: Sequence[tuple[int, int]]) -> None: ...


class PolicyBook:
    """Compiles with a cache, and counts who uses which slot.

    ``implied``: rules that nobody wrote are in force too. ``control``: a socket that every session may connect to.
    """

    def __init__(self, *, implied: bool = True, control: Path | None = None) -> None:
        self._implied = implied
        self._control = os.fsencode(os.path.realpath(control)) if control else b""
        self._prepared: OrderedDict[tuple[object, ...], Prepared] = OrderedDict()
        self._slots: dict[str, tuple[int, int]] = {}  # digest -> slot, generation
        self._users: dict[int, int] = {}  # slot -> sessions
        self.clocks = Clocks()
        self._in_force: dict[str, Prepared] = {}  # by digest

    def prepare(self, source: Source, *, workspace: str, home: str, user: str, plan: Source | None = None) -> Prepared:
        """Load and compile, with the plan that goes with it. Raises `PolicyError`."""
        if not source.text and ("/" in source.file or source.file.endswith((".yaml", ".yml"))):
            # the asker reads its own files: a daemon with root's eyes must not read them for it
            raise PolicyError(f"`{source.file}` is a file: send its text, or name an installed policy")
        try:
            variables = Variables.of(workspace=workspace, home=home, user=user)
        except UnicodeError:
            raise PolicyError("the workspace's name is not text that the file system can have") from None
        key = (source, plan, variables, _packs_stamp())
        found = self._prepared.get(key)
        if found is None:
            policy = load_text(source.text, source.file) if source.text else load(source.file)
            policy = policy if self._implied else without_implied(policy)
            policy = with_control(policy, self._control, variables) if self._control else policy
            if plan is None:
                bound = bind_policy(policy, variables)
                compiled = compile_policy(bound)
            else:
                fenced = Fenced(policy, load_plan(plan.text, plan.file), variables, control=self._control)
                bound, compiled = fenced.policy, fenced.compile()
            observed = None
            if bound.observed is not None:
                full = compile_policy(bound.observed)
                observed = _view(full, FastEvaluator(full), bound.observed)
            found = Prepared(compiled.name, compiled, FastEvaluator(compiled), digest(compiled), bound, observed)
            self._prepared[key] = found
            if len(self._prepared) > CACHE:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return found

    def acquire(self, maps: PolicyMaps, prepared: Prepared) -> tuple[int, int]:
        """Slot and generation of the policy in the kernel, installed if need be. Raises `KernelError`."""
        place = self._slots.get(prepared.digest)
        if place is None:
            place = self._slots[prepared.digest] = maps.install_policy(prepared.compiled)
            self.clocks.start(maps, place[0], prepared.compiled.conditions)
        self._in_force[prepared.digest] = prepared
        self._users[place[0]] = self._users.get(place[0], 0) + 1
        return place

    def in_force(self, digest_: str) -> Prepared | None:
        """The policy of this digest; None if only the kernel has it."""
        return self._in_force.get(digest_)

    def adopt(self, digest_: str, slot: int, generation: int, prepared: Prepared | None = None) -> None:
        """A session of an earlier daemon uses this slot."""
        if prepared is not None:
            self._in_force[digest_] = prepared
        self._slots.setdefault(digest_, (slot, generation))
        self._users[slot] = self._users.get(slot, 0) + 1

    def release(self, maps: PolicyMaps, slot: int) -> None:
        """A session ended: free the slot if it was the last. Raises `KernelError`."""
        left = self._users.get(slot, 1) - 1
        if left > 0:
            self._users[slot] = left
            return
        self._users.pop(slot, None)
        self.clocks.stop(slot)
        self._slots = {d: place for d, place in self._slots.items() if place[0] != slot}
        self._in_force = {d: prepared for d, prepared in self._in_force.items() if d in self._slots}
        maps.remove_policy(slot)


def _view(compiled: CompiledPolicy, judge: FastEvaluator, bound: BoundPolicy, observed: View | None = None) -> View:
    return View(
        compiled.rules, judge, frozenset(entry.rule for _, entry in compiled.hosts), observed,
        rates={rule.index: rule.rule.rate.text for rule in bound.rules if rule.rule.rate},
        over=over_of(compiled.conditions), plan=_plan_view(compiled),
    )  # fmt: skip


def _plan_view(compiled: CompiledPolicy) -> PlanView | None:
    """How to judge by the parts of a plan; made when one is asked for."""
    tables = compiled.plan
    if tables is None:
        return None
    judges: dict[int, FastEvaluator] = {}

    def part(step: int) -> FastEvaluator:
        number = tables.part_of[-1 if step == OUTSIDE else step]
        if number not in judges:
            judges[number] = FastEvaluator(tables.parts[number])
        return judges[number]

    return PlanView(tables.compiled, part)


def digest(policy: CompiledPolicy) -> str:
    """Names the content of a compiled policy, across daemons of the same version."""
    h = hashlib.sha256()
    for field in CompiledPolicy.__dataclass_fields__:
        value = getattr(policy, field)
        h.update(value.tobytes() if isinstance(value, array) else repr(value).encode())
    return h.hexdigest()


def _packs_stamp() -> tuple[tuple[str, int, int], ...]:
    """Changes when any installed pack does: includes are packs."""
    found: list[tuple[str, int, int]] = []
    for directory in pack_directories():
        for path in sorted(directory.glob("*.yaml")) if directory.is_dir() else ():
            try:
                info = os.stat(path)
            except OSError:
                continue  # just removed, or a link to nowhere: whoever includes it is told
            found.append((str(path), info.st_mtime_ns, info.st_size))
    return tuple(found)
