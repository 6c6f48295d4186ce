# SPDX-License-Identifier: Apache-2.0
"""Follows one session through its plan: the reference semantics, without kernel, clock or socket.

Tell it what processes do (`fork`, `exec`, `exit`, `attempt`, `wrote`, `begin`, `end`), in order and with the time; it
says what the plan makes of it. Nothing blocked has any effect. ``docs/design/0008-plans.md`` says the same in prose.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Final

from agentmon.model.operations import Action, Operation
from agentmon.model.plans import Violation
from agentmon.model.tables import NO_RULE
from agentmon.plan.bind import BoundPlan, Way, action_on
from agentmon.plan.plan import CHANGES, OnViolation
from agentmon.policy.arguments import as_path
from agentmon.policy.bind import BoundPolicy
from agentmon.policy.evaluate import Evaluator, Target
from agentmon.policy.glob import Glob
from agentmon.policy.situation import NOBODY, Situation

#: The status of a run that took too long, as `timeout(1)` has it.
OVERTIME_STATUS: Final = 124

#: Stands where a step's number does: outside of all steps.
OUTSIDE: Final = -1


class State(enum.StrEnum):
    """Where a step is."""

    WAITING = "waiting"  # for what it needs
    ENABLED = "enabled"
    ACTIVE = "active"
    FAILED = "failed"  # its last run ended with another status; it may begin again, unless `once`
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the plan makes of an action. ``step``: whose it is, "" for the agent outside of all steps."""

    action: Action
    step: str = ""
    violation: Violation | None = None
    rule: str = ""
    why: str = ""
    pause: bool = False

    @property
    def passes(self) -> bool:
        """Whether it takes place, as far as the plan is concerned."""
        return self.action < Action.HOLD


@dataclass(frozen=True, slots=True)
class Change:
    """A step began, was done, or failed. ``status``: the first that does not count as done, else 0."""

    time_s: float
    step: str
    state: State
    status: int = 0


@dataclass(slots=True)
class _Process:
    step: int = OUTSIDE
    exe: bytes | None = None
    root: bool = False  # it began the step: its exit status counts
    marked: bool = False  # by a mark


@dataclass(slots=True)
class _Run:
    """A step's state. ``alive``: its processes; the rest is of the run under way, but for the last five."""

    alive: int = 0
    began_s: float = 0.0
    used: set[int] = field(default_factory=set)  # ways
    bad: int = 0  # the first status that does not count
    begun: bool = False
    ended: bool = False
    done: bool = False
    written: int = 0
    files: set[Hashable] = field(default_factory=set)


class Tracker:
    """One session under a plan. Processes are any hashable keys; times are in seconds, of one clock.

    ``reacts``: as in the react tier, what is written is told of when it has happened; a step that has written too much
    may nothing more.
    """

    def __init__(self, bound: BoundPlan, *, reacts: bool = False) -> None:
        self.bound = bound
        self._reacts = reacts
        self.steps = bound.plan.steps
        self._needs = [[bound.number(need) for need in step.needs] for step in self.steps]
        self._after = [[bound.number(need) for need in step.after] for step in self.steps]
        self._runs = [_Run() for _ in self.steps]
        self._judges = [Evaluator(part) for part in bound.parts]
        self._agent = Evaluator(bound.agent)
        self._ways = [(way, _matcher(way.exe), _arguments(way)) for way in bound.ways]
        self._processes: dict[Hashable, _Process] = {}
        self._changes: list[Change] = []

    def fresh(self) -> Tracker:
        """Another session under the same plan; what was made of the plan is shared, for that takes time."""
        other = copy(self)
        other._runs = [_Run() for _ in self.steps]  # noqa: SLF001  # one of us
        other._processes, other._changes = {}, []  # noqa: SLF001  # same
        return other

    # ---- what is

    def state(self, step: str) -> State:
        """Where a step is. Raises `ValueError`: there is none of that name."""
        number = self.bound.number(step)
        run = self._runs[number]
        if run.alive:
            return State.ACTIVE
        if run.done:
            return State.DONE
        if run.begun:
            return State.FAILED
        return State.ENABLED if self._ready(number) else State.WAITING

    def step_of(self, process: Hashable) -> str:
        """The step that a process is in; "" for none."""
        known = self._processes.get(process)
        return self._name(known.step) if known else ""

    def alive(self, step: str) -> int:
        """The processes of a step."""
        return self._runs[self.bound.number(step)].alive

    def changes(self) -> list[Change]:
        """What became of steps since the last call."""
        told, self._changes = self._changes, []
        return told

    def overdue(self, now_s: float) -> Iterator[str]:
        """The steps under way that have had their time: whatever they do now is forbidden."""
        for number, step in enumerate(self.steps):
            if self._late(number, now_s):
                yield step.id

    # ---- what happens

    def enrol(self, process: Hashable, exe: bytes | None = None) -> None:
        """A process of the session that was there before: outside of all steps."""
        self._processes[process] = _Process(exe=exe)

    def fork(self, parent: Hashable, child: Hashable, now_s: float = 0.0) -> Ruling:
        """A process makes another. A thread is none."""
        known = self._processes[parent]
        limited = self._over_ruling(known, now_s) or self._full(known.step)
        if limited:
            return limited
        self._processes[child] = _Process(known.step, known.exe)
        if known.step != OUTSIDE:
            self._runs[known.step].alive += 1
        return Ruling(Action.ALLOW, self._name(known.step))

    def exec(
        self, process: Hashable, path: bytes, argv: Sequence[bytes] = (), now_s: float = 0.0, *,
        situation: Situation = NOBODY, approved: bool = False, policy: Action = Action.ALLOW,
    ) -> Ruling:  # fmt: skip
        """A process runs a program; ``argv`` without its own name. ``policy``: what the session's policy says of it.

        ``approved``: somebody let through what is held.
        """
        known = self._processes[process]
        number, way = known.step, -1
        if known.step == OUTSIDE:
            matching = [i for i, (_, exe, words) in enumerate(self._ways) if exe.fullmatch(path) and words(argv)]
            number, way, violation = self._choose(matching)
            ruling = self._starting(number, violation, now_s) if matching else None
        else:
            ruling = None
        if ruling is None:
            late = self._over_ruling(known, now_s)
            ruling = late or self._judge(known, Operation.EXEC, path, situation)
        if not _goes_on(ruling, policy, approved):
            return ruling
        known.exe = path
        if known.step == OUTSIDE and number != OUTSIDE:
            self._join(known, number, way, now_s)
        return ruling

    def attempt(
        self, process: Hashable, operation: Operation, target: Target, now_s: float = 0.0, *,
        file: Hashable = None, situation: Situation = NOBODY, approved: bool = False, policy: Action = Action.ALLOW,
    ) -> Ruling:  # fmt: skip
        """Anything but running a program. ``file``: what tells the file from others (default: its path)."""
        known = self._processes[process]
        ruling = self._over_ruling(known, now_s) or self._judge(known, operation, target, situation)
        if known.step == OUTSIDE or operation not in CHANGES or ruling.action >= Action.DENY:
            return ruling
        step, run = self.steps[known.step], self._runs[known.step]
        identity = target if file is None else file
        most = step.limits.max_files
        if most is not None and identity not in run.files and len(run.files) >= most and not _is_device(target):
            return self._forbid(known.step, operation, Violation.TOO_MANY_FILES, f"max-files {most}")
        if _goes_on(ruling, policy, approved) and not _is_device(target):
            run.files.add(identity)
        return ruling

    def wrote(self, process: Hashable, count_bytes: int, now_s: float = 0.0) -> Ruling:
        """A process is about to write that much to a file (or has, if the tracker ``reacts``)."""
        known = self._processes[process]
        if known.step == OUTSIDE:
            return Ruling(Action.ALLOW)
        late = self._over_ruling(known, now_s)
        if late:
            return late
        run, most = self._runs[known.step], self.steps[known.step].limits.max_write_bytes
        if most is not None and run.written + count_bytes > most:
            run.written += count_bytes if self._reacts else 0
            return self._forbid(known.step, Operation.WRITE, Violation.TOO_MUCH, f"max-write {most}")
        run.written += count_bytes
        return Ruling(Action.ALLOW, self.steps[known.step].id)

    def exit(self, process: Hashable, status: int = 0, now_s: float = 0.0) -> None:
        """A process has ended; 128 + n: by signal n."""
        known = self._processes.pop(process, None)
        if known is not None and known.step != OUTSIDE:
            self._leave(known, status, now_s)

    def begin(self, process: Hashable, step: str, now_s: float = 0.0) -> Ruling:
        """A process says that it begins a step itself: what it does from now on, and who it starts, is of that step."""
        known = self._processes[process]
        try:
            number = self.bound.number(step)
        except ValueError:
            return self._unmarked(known.step, f"there is no step {step}")
        if known.step != OUTSIDE:
            return self._unmarked(known.step, f"it is in step {self._name(known.step)}, which has to end first")
        if not any(start.mark for start in self.steps[number].starts):
            return self._unmarked(number, f"step {step} starts with a program, not with a mark")
        run = self._runs[number]
        if not self._may_begin(number) and not (run.alive and self.steps[number].repeat):
            return self._starting(number, self._why_not(number), now_s)
        limited = self._over_run(number, now_s) or self._full(number)
        if limited:
            return limited
        known.marked = True
        self._join(known, number, -1, now_s)
        return Ruling(Action.ALLOW, step, rule="starts")

    def end(self, process: Hashable, step: str, status: int = 0, now_s: float = 0.0) -> Ruling:
        """A process says that it has ended the step that it began. Whom it started is still of it, while it lives."""
        known = self._processes[process]
        if known.step == OUTSIDE or self._name(known.step) != step:
            return self._unmarked(known.step, f"it is not in step {step}")
        if not known.marked:
            return self._unmarked(known.step, f"it did not begin step {step} with a mark, so it ends when it exits")
        self._leave(known, status, now_s)
        known.step, known.root, known.marked = OUTSIDE, False, False
        return Ruling(Action.ALLOW, step, rule="starts")

    # ---- steps

    def _name(self, number: int) -> str:
        return "" if number == OUTSIDE else self.steps[number].id

    def _ready(self, number: int) -> bool:
        return not self._missing(number)

    def _missing(self, number: int) -> list[str]:
        """What has to be done, or to end, before a step may begin."""
        missing = [need for need in self._needs[number] if not self._runs[need].done]
        missing += [need for need in self._after[number] if not self._runs[need].ended]
        return [self.steps[need].id for need in missing]

    def _may_begin(self, number: int) -> bool:
        """A run of its own."""
        step, run = self.steps[number], self._runs[number]
        if run.alive or not self._ready(number):
            return False
        return not (run.begun and step.once) and (not run.done or step.repeat)

    def _may_join(self, number: int, way: int) -> bool:
        """The run under way. Each way counts once in a run, unless the step may be repeated."""
        run = self._runs[number]
        return bool(run.alive) and (self.steps[number].repeat or way not in run.used)

    def _choose(self, ways: Sequence[int]) -> tuple[int, int, Violation | None]:
        """Of the steps that a program may start, the one that it does: first what was not done yet, then what is under
        way or may be repeated; of these as in the file. Else the first that it may not, and why.
        """
        for fresh in (True, False):
            for way in ways:
                number = self._ways[way][0].step
                run = self._runs[number]
                if fresh and self._may_begin(number) and not run.done:
                    return number, way, None
                if not fresh and (self._may_join(number, way) or self._may_begin(number)):
                    return number, way, None
        if not ways:
            return OUTSIDE, -1, None
        number = self._ways[ways[0]][0].step
        return number, ways[0], self._why_not(number)

    def _why_not(self, number: int) -> Violation:
        run, step = self._runs[number], self.steps[number]
        if run.alive:
            return Violation.RUNNING
        if run.done or (run.begun and step.once):
            return Violation.DONE
        return Violation.OUT_OF_ORDER

    def _starting(self, number: int, violation: Violation | None, now_s: float) -> Ruling:
        step = self.steps[number]
        if violation is None:
            return self._over_run(number, now_s) or self._full(number) or Ruling(Action.ALLOW, step.id, rule="starts")
        why = {
            Violation.RUNNING: f"step {step.id} is under way",
            Violation.DONE: f"step {step.id} was begun before, and is not to be repeated",
        }.get(violation, "")
        if violation is Violation.OUT_OF_ORDER:
            why = f"step {step.id} comes after {', '.join(self._missing(number))}"
        return self._forbid(number, Operation.EXEC, violation, "starts", why)

    def _join(self, process: _Process, number: int, way: int, now_s: float) -> None:
        run = self._runs[number]
        if not run.alive:
            run.began_s, run.bad, run.begun = now_s, 0, True
            run.used.clear()
            self._changes.append(Change(now_s, self.steps[number].id, State.ACTIVE))
        run.used.add(way)
        run.alive += 1
        process.step, process.root = number, True

    def _leave(self, process: _Process, status: int, now_s: float) -> None:
        step, run = self.steps[process.step], self._runs[process.step]
        if process.root and step.exits is not None and status not in step.exits and not run.bad:
            run.bad = status or 256  # 0 may be one that does not count
        late = self._late(process.step, now_s)
        run.alive -= 1
        if run.alive:
            return
        if late and not run.bad:
            run.bad = OVERTIME_STATUS
        run.ended = True
        run.done |= not run.bad
        state = State.FAILED if run.bad else State.DONE
        self._changes.append(Change(now_s, step.id, state, run.bad % 256))

    # ---- rulings

    def _judge(self, process: _Process, operation: Operation, target: Target, situation: Situation) -> Ruling:
        outside = process.step == OUTSIDE
        judge = self._agent if outside else self._judges[process.step]
        bound: BoundPolicy = judge.bound
        verdict = judge.judge(operation, target, process.exe, judge.facts(situation))
        rule = bound.rules[verdict.rule].rule if verdict.rule != NO_RULE else None
        name = self._name(process.step)
        if verdict.action < Action.HOLD:
            return Ruling(verdict.action, name, rule=rule.id if rule else "")
        violation = Violation.NO_STEP if outside else Violation.NOT_ALLOWED
        why = (rule.reason if rule else "") or (
            "the plan has no such action outside of its steps" if outside else f"no rule of step {name} allows it"
        )
        by_plan = rule is None or rule.implied
        how = self.bound.plan.on_violation if outside else self.steps[process.step].on_violation
        return Ruling(
            verdict.action, name, violation, rule.id if rule else "", why, by_plan and how is OnViolation.PAUSE
        )

    def _forbid(self, number: int, operation: Operation, violation: Violation, rule: str, why: str = "") -> Ruling:
        how = self.bound.plan.on_violation if number == OUTSIDE else self.steps[number].on_violation
        return Ruling(
            action_on(how, operation), self._name(number), violation, rule, why or rule, how is OnViolation.PAUSE
        )

    def _unmarked(self, number: int, why: str) -> Ruling:
        return Ruling(Action.DENY, self._name(number), Violation.NOT_MARKED, "starts", why)

    def _full(self, number: int) -> Ruling | None:
        if number == OUTSIDE:
            return None
        most = self.steps[number].limits.max_procs
        if most is None or self._runs[number].alive < most:
            return None
        # nobody can wait in a fork
        how = self.steps[number].on_violation
        action = Action.DENY if how is OnViolation.HOLD else how.action
        why = f"max-procs {most}"
        return Ruling(action, self.steps[number].id, Violation.TOO_MANY_PROCESSES, why, why, how is OnViolation.PAUSE)

    def _late(self, number: int, now_s: float) -> bool:
        run, limit = self._runs[number], self.steps[number].limits.timeout_s
        return bool(run.alive) and limit is not None and now_s - run.began_s > limit

    def _over_ruling(self, process: _Process, now_s: float) -> Ruling | None:
        return None if process.step == OUTSIDE else self._over_run(process.step, now_s)

    def _over_run(self, number: int, now_s: float) -> Ruling | None:
        limits = self.steps[number].limits
        if self._late(number, now_s):
            violation, why = Violation.OVERTIME, f"timeout {limits.timeout_s:.0f} s"
        elif limits.max_write_bytes is not None and self._runs[number].written > limits.max_write_bytes:
            violation, why = Violation.TOO_MUCH, f"max-write {limits.max_write_bytes}"
        else:
            return None
        how = self.steps[number].on_violation
        action = Action.DENY if how is OnViolation.HOLD else how.action  # no answer gives time or room
        return Ruling(action, self._name(number), violation, why, why, how is OnViolation.PAUSE)


def _goes_on(ruling: Ruling, policy: Action, approved: bool) -> bool:
    """Whether an action takes place: the stricter of plan and policy wins."""
    return max(ruling.action, policy) < (Action.DENY if approved else Action.HOLD)


def _is_device(target: Target) -> bool:
    return isinstance(target, bytes) and target.startswith((b"/dev/", b"/proc/"))


def _matcher(globs: Sequence[Glob]) -> re.Pattern[bytes]:
    return re.compile(b"|".join(b"(?:" + glob.regex() + b")" for glob in globs), re.DOTALL)


class _Words:
    def __init__(self, globs: Sequence[Glob]) -> None:
        self._regex = _matcher(globs)

    def __call__(self, argv: Sequence[bytes]) -> bool:
        return self._regex.fullmatch(as_path(argv)) is not None


def _any(_argv: Sequence[bytes]) -> bool:
    return True


def _arguments(way: Way) -> Callable[[Sequence[bytes]], bool]:
    return _any if way.argv is None else _Words(way.argv)
