# SPDX-License-Identifier: Apache-2.0
"""The reference semantics: order, subtrees, constraints, marks."""

from __future__ import annotations

import pytest

from agentmon.model.operations import Action, Operation
from agentmon.model.plans import Violation
from agentmon.plan.bind import bind_plan, compile_plan
from agentmon.plan.load import load_text
from agentmon.plan.track import Ruling, State, Tracker
from agentmon.policy.rules import Variables
from agentmon.policy.situation import Situation

AGENT = 1
HERE = Variables.of(workspace="/w", home="/home/me", user="me")


def tracker(steps: str, agent: str = "{}", plan: str = "") -> Tracker:
    tracked = Tracker(bind_plan(load_text(f"plan: p\n{plan}\nagent: {agent}\nsteps:\n{steps}", "p.yaml"), HERE))
    tracked.enrol(AGENT, b"/bin/agent")
    return tracked


def run(tracked: Tracker, pid: int, command: str, now_s: float = 0.0) -> Ruling:
    """The agent forks, and the child runs a program."""
    if not tracked.fork(AGENT, pid, now_s).passes:
        raise AssertionError("outside of the steps, nothing keeps the agent from forking")
    path, *argv = command.split()
    ruling = tracked.exec(pid, path.encode(), [word.encode() for word in argv], now_s)
    if not ruling.passes:
        tracked.exit(pid, 126, now_s)
    return ruling


CHAIN = """
  - {id: fetch, starts: {exe: "**/git", argv: [clone, "**"]}}
  - {id: build, needs: fetch, starts: {exe: "**/make"}}
  - {id: push, needs: build, starts: {exe: "**/git", argv: [push, "**"]}, once: true}
"""


# ---- order


def test_in_the_right_order_each_step_is_done() -> None:
    t = tracker(CHAIN)
    assert [t.state(s) for s in ("fetch", "build", "push")] == [State.ENABLED, State.WAITING, State.WAITING]
    for pid, (step, command) in enumerate(
        [("fetch", "/usr/bin/git clone x"), ("build", "/usr/bin/make all"), ("push", "/usr/bin/git push")], 10
    ):
        ruling = run(t, pid, command)
        assert (ruling.action, ruling.step, ruling.violation) == (Action.ALLOW, step, None)
        assert (t.state(step), t.step_of(pid)) == (State.ACTIVE, step)
        t.exit(pid, 0)
        assert t.state(step) is State.DONE
    assert [(c.step, c.state) for c in t.changes()] == [
        (step, state) for step in ("fetch", "build", "push") for state in (State.ACTIVE, State.DONE)
    ]
    assert t.changes() == []


def test_out_of_order_is_denied_and_nothing_is_begun() -> None:
    t = tracker(CHAIN)
    ruling = run(t, 10, "/usr/bin/make")
    assert (ruling.action, ruling.step, ruling.violation) == (Action.DENY, "build", Violation.OUT_OF_ORDER)
    assert ruling.why == "step build comes after fetch"
    assert t.state("build") is State.WAITING
    assert t.alive("build") == 0
    run(t, 11, "/usr/bin/git clone x")
    assert run(t, 12, "/usr/bin/make").violation is Violation.OUT_OF_ORDER  # begun is not done
    t.exit(11, 0)
    assert run(t, 13, "/usr/bin/make").passes


def test_what_is_of_no_step_is_denied() -> None:
    t = tracker(CHAIN)
    ruling = run(t, 10, "/usr/bin/curl evil.example")
    assert (ruling.action, ruling.step, ruling.violation) == (Action.DENY, "", Violation.NO_STEP)
    assert t.attempt(AGENT, Operation.WRITE, b"/w/a").violation is Violation.NO_STEP
    assert t.attempt(AGENT, Operation.CONNECT, ("evil.example", 443)).violation is Violation.NO_STEP
    assert t.attempt(AGENT, Operation.READ, b"/w/a").passes
    assert t.attempt(AGENT, Operation.WRITE, b"/dev/null").passes


def test_the_agent_may_what_the_plan_says() -> None:
    t = tracker(CHAIN, "{hosts: [api.example:443], rules: [{id: shell, on: exec, exe: /bin/sh, action: allow}]}")
    assert run(t, 10, "/bin/sh -c x").step == ""
    assert t.attempt(10, Operation.CONNECT, ("api.example", 443)).passes
    assert not t.attempt(10, Operation.CONNECT, ("api.example", 80)).passes
    assert t.fork(10, 11).passes
    assert t.exec(11, b"/usr/bin/git", [b"clone"]).step == "fetch"  # also from below a shell
    assert t.exec(10, b"/usr/bin/make").violation is Violation.OUT_OF_ORDER


def test_a_start_out_of_order_is_no_start_even_if_the_agent_may_run_the_program() -> None:
    t = tracker(CHAIN, '{rules: [{id: any, on: exec, exe: "**", action: allow}]}')
    assert run(t, 10, "/usr/bin/git status").step == ""
    assert run(t, 11, "/usr/bin/git push").violation is Violation.OUT_OF_ORDER


def test_a_failed_step_is_not_done_and_may_be_tried_again() -> None:
    t = tracker(CHAIN)
    run(t, 10, "/usr/bin/git clone x")
    t.exit(10, 1)
    assert t.state("fetch") is State.FAILED
    assert t.changes()[-1].status == 1
    assert run(t, 11, "/usr/bin/make").violation is Violation.OUT_OF_ORDER
    assert run(t, 12, "/usr/bin/git clone x").passes
    t.exit(12, 0)
    assert t.state("fetch") is State.DONE


def test_what_is_done_is_not_done_again_unless_it_may_be_repeated() -> None:
    t = tracker("  - {id: a, starts: {exe: /a}}\n  - {id: b, starts: {exe: /b}, repeat: true}\n")
    for pid in (10, 11):
        assert run(t, pid, "/b").passes
        t.exit(pid, 0)
    run(t, 12, "/a")
    assert run(t, 13, "/a").violation is Violation.RUNNING
    t.exit(12, 0)
    assert run(t, 14, "/a").violation is Violation.DONE


def test_a_repeated_step_stays_done_while_it_runs_again() -> None:
    t = tracker("  - {id: a, starts: {exe: /a}, repeat: true}\n  - {id: b, needs: a, starts: {exe: /b}}\n")
    run(t, 10, "/a")
    t.exit(10, 0)
    run(t, 11, "/a")
    assert run(t, 12, "/b").passes


def test_after_asks_for_an_end_and_needs_for_success() -> None:
    t = tracker("""
  - {id: test, starts: {exe: /test}}
  - {id: report, after: test, starts: {exe: /report}}
  - {id: push, needs: test, starts: {exe: /push}}
""")
    assert run(t, 10, "/report").violation is Violation.OUT_OF_ORDER
    run(t, 11, "/test")
    assert run(t, 12, "/report").violation is Violation.OUT_OF_ORDER
    t.exit(11, 1)
    assert run(t, 13, "/report").passes
    assert run(t, 14, "/push").violation is Violation.OUT_OF_ORDER


def test_once_counts_failures() -> None:
    t = tracker("  - {id: pay, starts: {exe: /pay}, once: true}\n")
    run(t, 10, "/pay")
    t.exit(10, 1)
    assert run(t, 11, "/pay").violation is Violation.DONE


def test_parallel_branches_meet() -> None:
    t = tracker("""
  - {id: a, starts: {exe: /a}}
  - {id: b, needs: a, starts: {exe: /b}}
  - {id: c, needs: a, starts: {exe: /c}}
  - {id: d, needs: [b, c], starts: {exe: /d}}
""")
    run(t, 10, "/a")
    t.exit(10)
    assert run(t, 11, "/b").passes
    assert run(t, 12, "/c").passes
    t.exit(11)
    assert run(t, 13, "/d").violation is Violation.OUT_OF_ORDER
    t.exit(12)
    assert run(t, 14, "/d").passes


def test_of_several_steps_the_first_that_is_not_done_begins() -> None:
    t = tracker("""
  - {id: a, starts: {exe: /x}, repeat: true}
  - {id: b, needs: a, starts: {exe: /x}}
""")
    steps = []
    for pid in range(10, 14):
        steps.append(run(t, pid, "/x").step)
        t.exit(pid, 0)
    assert steps == ["a", "b", "a", "a"]


def test_the_ways_of_a_step_are_taken_together_and_each_once() -> None:
    t = tracker("  - {id: count, starts: [{exe: /cat}, {exe: /wc}]}\n")
    assert run(t, 10, "/cat").passes
    assert run(t, 11, "/wc").passes  # cat | wc
    assert run(t, 12, "/wc").violation is Violation.RUNNING
    t.exit(10, 0)
    assert t.state("count") is State.ACTIVE
    t.exit(11, 0)
    assert t.state("count") is State.DONE


def test_any_of_its_programs_fails_a_step() -> None:
    t = tracker("  - {id: count, starts: [{exe: /cat}, {exe: /wc}], exit: [0, 3]}\n")
    run(t, 10, "/cat")
    run(t, 11, "/wc")
    t.exit(10, 1)
    t.exit(11, 3)
    assert t.state("count") is State.FAILED


# ---- subtrees


def test_a_step_is_done_when_the_last_of_its_processes_has_ended() -> None:
    t = tracker(CHAIN)
    run(t, 10, "/usr/bin/git clone x")
    t.fork(10, 20)
    t.fork(20, 21)
    t.exit(10, 0)
    assert t.state("fetch") is State.ACTIVE
    assert t.step_of(21) == "fetch"
    t.exit(20, 9)  # only who began it has a status that counts
    assert t.state("fetch") is State.ACTIVE
    t.exit(21, 9)
    assert t.state("fetch") is State.DONE


def test_inside_of_a_step_nothing_else_begins() -> None:
    t = tracker(CHAIN)
    run(t, 10, "/usr/bin/git clone x")
    t.fork(10, 20)
    ruling = t.exec(20, b"/usr/bin/make")
    assert (ruling.passes, ruling.step) == (True, "fetch")
    assert t.state("build") is State.WAITING


def test_a_step_killed_by_a_signal_has_failed() -> None:
    t = tracker(CHAIN)
    run(t, 10, "/usr/bin/git clone x")
    t.exit(10, 137)
    assert t.state("fetch") is State.FAILED


def test_two_sessions_do_not_touch_each_other() -> None:
    bound = bind_plan(load_text(f"plan: p\nsteps:\n{CHAIN}", "p.yaml"), HERE)
    one = Tracker(bound)
    two = one.fresh()
    for t in (one, two):
        t.enrol(AGENT)
    run(one, 10, "/usr/bin/git clone x")
    one.exit(10, 0)
    assert two.state("build") is State.WAITING
    assert run(two, 10, "/usr/bin/make").violation is Violation.OUT_OF_ORDER


def test_what_the_policy_forbids_begins_nothing() -> None:
    t = tracker(CHAIN)
    t.fork(AGENT, 10)
    assert t.exec(10, b"/usr/bin/git", [b"clone"], policy=Action.DENY).passes  # as far as the plan is concerned
    assert (t.state("fetch"), t.step_of(10)) == (State.ENABLED, "")


# ---- what a step may do


def test_rules_close_the_rest_of_their_kind() -> None:
    t = tracker("""
  - id: a
    starts: {exe: /a}
    rules:
      - {id: out, on: write, paths: ["{workspace}/dist/**"], action: allow}
      - {id: no-keys, on: read, paths: ["~/.ssh/**"], action: kill}
""")
    run(t, 10, "/a")
    assert t.attempt(10, Operation.WRITE, b"/w/dist/x").rule == "out"
    for operation in (Operation.WRITE, Operation.CREATE, Operation.DELETE):
        ruling = t.attempt(10, operation, b"/w/src/x")
        assert (ruling.action, ruling.violation) == (Action.DENY, Violation.NOT_ALLOWED)
        assert ruling.why == "no rule of step a allows it"
    assert t.attempt(10, Operation.READ, b"/w/src/x").passes
    assert t.attempt(10, Operation.READ, b"/home/me/.ssh/id").action is Action.KILL
    assert t.attempt(10, Operation.CONNECT, ("x.example", 1)).passes  # the policy decides


def test_defaults_say_more_than_rules() -> None:
    t = tracker(
        "  - {id: a, starts: mark, default: {read: deny, write: allow}, rules: [{id: w, on: write, action: allow}]}"
    )
    t.begin(AGENT, "a")
    assert not t.attempt(AGENT, Operation.READ, b"/x").passes
    assert t.attempt(AGENT, Operation.DELETE, b"/x").passes  # part of write
    assert not t.attempt(AGENT, Operation.CREATE, b"/x").passes


@pytest.mark.parametrize(
    ("constraint", "forbidden", "free"),
    [
        ("read-only: true", [(Operation.WRITE, b"/w/a"), (Operation.CREATE, b"/w/a"), (Operation.RENAME, b"/w/a")],
         [(Operation.READ, b"/w/a"), (Operation.WRITE, b"/dev/tty"), (Operation.CONNECT, ("a.example", 1))]),
        ("no-network: true", [(Operation.CONNECT, ("a.example", 1)), (Operation.BIND, (b"\0" * 16, 1)),
                              (Operation.LISTEN, (b"\0" * 16, 1))],
         [(Operation.UNIX, b"/run/x"), (Operation.WRITE, b"/a")]),
        ("no-exec: true", [(Operation.EXEC, b"/bin/sh")], [(Operation.WRITE, b"/a")]),
        ("hosts: ['*.a.example:443']", [(Operation.CONNECT, ("a.test", 443)), (Operation.SEND, (b"\x20" * 16, 53))],
         [(Operation.CONNECT, ("x.a.example", 443)), (Operation.BIND, (b"\0" * 16, 1))]),
    ],
)  # fmt: skip
def test_constraints(
    constraint: str, forbidden: list[tuple[Operation, bytes]], free: list[tuple[Operation, bytes]]
) -> None:
    t = tracker(f"  - {{id: a, starts: mark, {constraint}}}")
    t.begin(AGENT, "a")
    for operation, target in forbidden:
        ruling = t.attempt(AGENT, operation, target)
        assert (ruling.action, ruling.step, ruling.violation) == (Action.DENY, "a", Violation.NOT_ALLOWED)
    for operation, target in free:
        assert t.attempt(AGENT, operation, target).passes
    t.end(AGENT, "a")
    assert t.attempt(AGENT, Operation.READ, b"/w/a").passes


def test_conditions_count_in_a_step() -> None:
    t = tracker("  - {id: a, starts: mark, rules: [{id: r, on: read, when: {risk: high}, action: deny}]}")
    t.begin(AGENT, "a")
    assert t.attempt(AGENT, Operation.READ, b"/x").passes
    from agentmon.model.conditions import Risk

    assert not t.attempt(AGENT, Operation.READ, b"/x", situation=Situation(risk=Risk.HIGH)).passes


def test_bytes_are_counted_over_all_runs() -> None:
    t = tracker("  - {id: a, starts: {exe: /a}, max-write: 10, repeat: true}")
    run(t, 10, "/a")
    assert t.wrote(10, 7).passes
    ruling = t.wrote(10, 4)
    assert (ruling.action, ruling.violation, ruling.rule) == (Action.DENY, Violation.TOO_MUCH, "max-write 10")
    assert t.wrote(10, 2).passes
    t.exit(10)
    run(t, 11, "/a")
    assert t.wrote(11, 1).passes
    assert not t.wrote(11, 1).passes
    assert t.wrote(AGENT, 1000).passes


def test_who_has_written_too_much_may_nothing_more_where_it_is_told_when_it_has_happened() -> None:
    text = "plan: p\nsteps: [{id: a, starts: mark, max-write: 10, repeat: true}]"
    tracker = Tracker(bind_plan(load_text(text, "p.yaml"), HERE), reacts=True)
    tracker.enrol(1)
    assert tracker.begin(1, "a").passes
    assert tracker.wrote(1, 10).passes
    assert tracker.fork(1, 2).passes
    assert tracker.wrote(1, 1).violation is Violation.TOO_MUCH
    said = [tracker.fork(1, 3), tracker.attempt(2, Operation.READ, b"/x"), tracker.begin(1, "a")]
    assert [ruling.violation for ruling in said[:2]] == [Violation.TOO_MUCH] * 2
    assert not said[2].passes


def test_files_are_counted_once_each() -> None:
    t = tracker("  - {id: a, starts: {exe: /a}, max-files: 2}")
    run(t, 10, "/a")
    for operation, path in ((Operation.CREATE, b"/w/1"), (Operation.WRITE, b"/w/1"), (Operation.DELETE, b"/w/2")):
        assert t.attempt(10, operation, path).passes
    assert t.attempt(10, Operation.WRITE, b"/w/3").violation is Violation.TOO_MANY_FILES
    assert t.attempt(10, Operation.READ, b"/w/3").passes
    assert t.attempt(10, Operation.WRITE, b"/dev/null").passes
    assert t.attempt(10, Operation.WRITE, b"/w/link", file="another name of it").violation is Violation.TOO_MANY_FILES
    assert t.attempt(10, Operation.WRITE, b"/w/2").passes


def test_what_is_denied_uses_nothing_up() -> None:
    t = tracker("  - {id: a, starts: mark, max-files: 1, rules: [{id: r, on: create, paths: /ok, action: allow}]}")
    t.begin(AGENT, "a")
    assert t.attempt(AGENT, Operation.CREATE, b"/no").violation is Violation.NOT_ALLOWED
    t.attempt(AGENT, Operation.CREATE, b"/ok", policy=Action.DENY)
    assert t.attempt(AGENT, Operation.CREATE, b"/ok", file=2).passes


def test_processes_are_counted_while_they_live() -> None:
    t = tracker("  - {id: a, starts: {exe: /a}, max-procs: 2}")
    run(t, 10, "/a")
    assert t.fork(10, 11).passes
    ruling = t.fork(10, 12)
    assert (ruling.action, ruling.violation) == (Action.DENY, Violation.TOO_MANY_PROCESSES)
    t.exit(11)
    assert t.fork(10, 12).passes
    assert t.alive("a") == 2


def test_when_its_time_is_over_a_step_may_nothing_and_is_not_done() -> None:
    t = tracker(
        "  - {id: a, starts: {exe: /a}, timeout: 10s}\n  - {id: b, needs: a, starts: {exe: /b}}",
        plan="on-violation: hold",
    )
    run(t, 10, "/a", now_s=100)
    assert t.attempt(10, Operation.READ, b"/x", 110).passes
    assert list(t.overdue(110)) == []
    for ruling in (t.attempt(10, Operation.READ, b"/x", 111), t.fork(10, 11, 111), t.wrote(10, 1, 111)):
        assert (ruling.action, ruling.violation) == (Action.DENY, Violation.OVERTIME)
    assert list(t.overdue(111)) == ["a"]
    t.exit(10, 0, 112)
    assert t.state("a") is State.FAILED
    run(t, 12, "/a", now_s=200)
    t.exit(12, 0, 205)
    assert t.state("a") is State.DONE


@pytest.mark.parametrize(
    ("word", "action"), [("deny", Action.DENY), ("hold", Action.HOLD), ("kill", Action.KILL), ("pause", Action.DENY)]
)
def test_on_violation(word: str, action: Action) -> None:
    t = tracker(
        f"  - {{id: a, starts: {{exe: /a}}, read-only: true, on-violation: {word}}}\n  - {{id: z, starts: mark}}"
    )
    run(t, 10, "/a")
    ruling = t.attempt(10, Operation.WRITE, b"/x")
    assert (ruling.action, ruling.pause) == (action, word == "pause")
    assert run(t, 11, "/a").action is action
    assert t.attempt(AGENT, Operation.WRITE, b"/x").action is Action.DENY


def test_what_is_held_counts_when_somebody_approves() -> None:
    t = tracker("  - {id: a, starts: {exe: /a}}\n  - {id: b, needs: a, starts: {exe: /b}, on-violation: hold}")
    assert run(t, 10, "/b").action is Action.HOLD
    assert t.state("b") is State.WAITING
    t.fork(AGENT, 11)
    t.exec(11, b"/b", approved=True)
    assert t.state("b") is State.ACTIVE


# ---- marks

MARKED = """
  - {id: think, starts: mark}
  - {id: write, needs: think, starts: mark, max-procs: 2}
  - {id: build, needs: write, starts: {exe: /make}}
"""


def test_marks_follow_the_order() -> None:
    t = tracker(MARKED)
    assert t.begin(AGENT, "write").violation is Violation.OUT_OF_ORDER
    assert t.begin(AGENT, "think").passes
    assert t.step_of(AGENT) == "think"
    assert t.begin(AGENT, "write").why == "it is in step think, which has to end first"
    assert t.end(AGENT, "write").violation is Violation.NOT_MARKED
    assert t.end(AGENT, "think", status=1).passes
    assert t.state("think") is State.FAILED
    assert (t.begin(AGENT, "think").passes, t.end(AGENT, "think").passes) == (True, True)
    assert t.begin(AGENT, "write").passes


def test_a_mark_cannot_begin_what_a_program_begins() -> None:
    t = tracker(MARKED)
    assert t.begin(AGENT, "build").why == "step build starts with a program, not with a mark"
    assert t.begin(AGENT, "nothing").why == "there is no step nothing"


def test_whom_a_marked_process_starts_stays_in_the_step_after_its_end() -> None:
    t = tracker(MARKED)
    t.begin(AGENT, "think")
    t.fork(AGENT, 10)
    t.end(AGENT, "think")
    assert t.state("think") is State.ACTIVE
    assert t.begin(AGENT, "write").violation is Violation.OUT_OF_ORDER
    assert t.end(10, "think").violation is Violation.NOT_MARKED  # it did not begin it
    t.exit(10, 3)
    assert t.state("think") is State.DONE


def test_nobody_unmarks_a_step_that_a_program_began() -> None:
    t = tracker(CHAIN)
    run(t, 10, "/usr/bin/git clone")
    assert t.end(10, "fetch").violation is Violation.NOT_MARKED
    assert t.step_of(10) == "fetch"


def test_a_marked_process_that_dies_ends_the_step_with_its_status() -> None:
    t = tracker(MARKED)
    t.begin(AGENT, "think")
    t.exit(AGENT, 1)
    assert t.state("think") is State.FAILED


# ---- what is compiled


def test_the_compiled_plan() -> None:
    bound = bind_plan(load_text(f"plan: p\nsteps:\n{CHAIN}", "p.yaml"), HERE)
    compiled = compile_plan(bound)
    assert [(step.id, step.needs, step.once) for step in compiled.steps] == [
        ("fetch", 0, False), ("build", 0b1, False), ("push", 0b10, True),
    ]  # fmt: skip
    assert compiled.ways == (0, 1, 2)
    assert compiled.ways_of(0b101) == 0b101
    assert compiled.closed[Operation.EXEC] == 1 << 64
    assert compiled.closed[Operation.READ] == 0
    assert compiled.steps[0].exits == 1
