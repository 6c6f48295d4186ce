# SPDX-License-Identifier: Apache-2.0
"""Whatever a session does: the tracker and the masks that the kernel is to keep agree, and no step begins too early."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentmon.plan.bind import bind_plan, compile_plan
from agentmon.plan.load import load_text
from agentmon.plan.track import State, Tracker
from agentmon.policy.rules import Variables
from tests.support.plans import NONE, Masks

NAMES = "abcdef"
PROGRAMS = ("/x", "/y", "/z")


@st.composite
def plans(draw: st.DrawFn) -> str:
    lines = ["plan: p", "agent: {rules: [{id: z, on: exec, exe: /z, action: allow}]}", "steps:"]
    for i in range(draw(st.integers(1, len(NAMES)))):
        needs = sorted(draw(st.sets(st.sampled_from(NAMES[:i]), max_size=2))) if i else []
        after = sorted(draw(st.sets(st.sampled_from(NAMES[:i]), max_size=2)) - set(needs)) if i else []
        waits = f"needs: {needs}, after: {after}"
        words = draw(st.lists(st.sampled_from([*PROGRAMS[:2], "mark"]), min_size=1, max_size=3))
        starts = [word if word == "mark" else f"{{exe: {word}}}" for word in words]
        more = draw(
            st.sampled_from(["", ", once: true", ", repeat: true", ", max-procs: 2", ", repeat: true, max-procs: 3"])
        )
        exits = draw(st.sampled_from(["0", "any", "[1, 2]"]))
        lines.append(f"  - {{id: {NAMES[i]}, {waits}, starts: [{', '.join(starts)}], exit: {exits}{more}}}")
    return "\n".join(lines)


class Session(RuleBasedStateMachine):
    """One session: a tree of processes that starts, ends, marks."""

    @initialize(text=plans())
    def begin(self, text: str) -> None:
        bound = bind_plan(load_text(text, "p.yaml"), Variables.of(workspace="/w", home="/h", user="u"))
        self.bound = bound
        self.tracker = Tracker(bound)
        self.masks = Masks(compile_plan(bound))
        self.alive = [0]
        self.next = 1
        self.tracker.enrol(0)
        self.masks.step_of[0] = NONE
        self.was_done: set[str] = set()
        self.had_ended: set[str] = set()

    def pick(self, number: int) -> int:
        return self.alive[number % len(self.alive)]

    @rule(number=st.integers(0, 20))
    def fork(self, number: int) -> None:
        if len(self.alive) > 12:
            return
        pid, child = self.pick(number), self.next
        passes = self.tracker.fork(pid, child).passes
        assert passes == self.masks.fork(pid, child)
        if passes:
            self.next += 1
            self.alive.append(child)

    @rule(number=st.integers(0, 20), program=st.sampled_from(PROGRAMS))
    def execute(self, number: int, program: str) -> None:
        pid = self.pick(number)
        before = self.tracker.step_of(pid)
        ruling = self.tracker.exec(pid, program.encode())
        matched = sum(
            1 << i for i, way in enumerate(self.bound.ways) if any(g.exact == program.encode() for g in way.exe)
        )
        assert ruling.passes == self.masks.exec(pid, matched, program == "/z")
        after = self.tracker.step_of(pid)
        if after != before:
            self.check_enabled(after)

    @rule(number=st.integers(0, 20), step=st.integers(0, 5))
    def mark(self, number: int, step: int) -> None:
        steps = self.bound.plan.steps
        pid, at = self.pick(number), step % len(steps)
        passes = self.tracker.begin(pid, steps[at].id).passes
        assert passes == self.masks.mark(pid, at)
        if passes:
            self.check_enabled(steps[at].id)

    @rule(number=st.integers(0, 20), status=st.sampled_from([0, 0, 1, 137]))
    def unmark(self, number: int, status: int) -> None:
        pid = self.pick(number)
        if self.tracker.end(pid, self.tracker.step_of(pid), status).passes:
            self.masks.leave(pid, status)

    @precondition(lambda self: len(self.alive) > 1)
    @rule(number=st.integers(0, 20), status=st.sampled_from([0, 0, 0, 1, 2, 137]))
    def leave(self, number: int, status: int) -> None:
        pid = self.pick(number)
        self.alive.remove(pid)
        self.tracker.exit(pid, status)
        self.masks.leave(pid, status)

    def check_enabled(self, step: str) -> None:
        """Who is in a step by now began it when all that it needs had been done."""
        begun = self.bound.plan.steps[self.bound.number(step)]
        assert set(begun.needs) <= self.was_done
        assert set(begun.after) <= self.had_ended

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "tracker"):
            return
        for i, step in enumerate(self.bound.plan.steps):
            state = self.tracker.state(step.id)
            assert (state is State.ACTIVE) == bool(self.masks.active >> i & 1)
            assert self.tracker.alive(step.id) == self.masks.alive[i]
            assert self.tracker.alive(step.id) == sum(self.tracker.step_of(pid) == step.id for pid in self.alive)
            if state in (State.DONE, State.FAILED):
                self.had_ended.add(step.id)
            if state is State.DONE:
                self.was_done.add(step.id)
            if state is not State.ACTIVE:  # once done, always done
                assert (state is State.DONE) == (step.id in self.was_done) == bool(self.masks.done >> i & 1)


Session.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSession = Session.TestCase
