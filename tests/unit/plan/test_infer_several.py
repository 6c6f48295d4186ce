# SPDX-License-Identifier: Apache-2.0
"""One plan of several times that a task was done; and how wide it is."""

from __future__ import annotations

from agentmon.plan.infer.draft import Draft, Drafts
from agentmon.plan.infer.flow import Made
from agentmon.plan.infer.several import Width, together, widen
from agentmon.plan.infer.shell import Shell
from agentmon.plan.infer.write import to_yaml
from agentmon.plan.load import load_text


def session(*commands: str) -> Drafts:
    shell = Shell(each=False)
    shell.read("\n".join(commands), "line {line}")
    return shell.drafts


def joined(*several: Drafts) -> dict[str, Draft]:
    drafts = together(several)
    load_text(to_yaml(drafts, name="p", source="a test"), "p.yaml")
    return {step.name: step for step in drafts.steps}


def before(steps: dict[str, Draft], name: str) -> set[str]:
    order = list(steps)
    return {order[n] for n in steps[name].needs | steps[name].after}


def test_an_order_is_kept_that_always_held() -> None:
    steps = joined(session("a", "b", "c", "d"), session("a", "c", "b", "d"), session("a", "d"))
    assert {name: before(steps, name) for name in steps} == {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}}
    assert not any(step.repeat for step in steps.values())


def test_orders_that_contradict_each_other_give_no_circle() -> None:
    steps = joined(session("a", "b"), session("b", "c"), session("c", "a"))
    assert before(steps, "b") == {"a"}
    assert before(steps, "c") == {"b"}


def test_success_is_asked_for_where_it_always_was() -> None:
    steps = joined(session("a && b"), session("a && b"))
    assert steps["b"].needs == {0}
    steps = joined(session("a && b"), session("a; b"))
    assert (steps["b"].needs, steps["b"].after) == (set(), {0})


def test_what_was_done_twice_in_one_may_be_repeated() -> None:
    steps = joined(session("a", "b", "a"), session("a"))
    assert (steps["a"].repeat, steps["b"].repeat) == (True, False)
    assert steps["a"].told == ["line 1: a", "line 3: a"]


def test_what_each_did_is_allowed_to_all() -> None:
    steps = joined(session("curl -o x https://a.example/"), session("curl -o x https://a.example/", "touch y"))
    assert steps["curl"].hosts == ["a.example:443"]
    wide = together([widen(session("touch a"), Width.ANY), widen(session("touch b"), Width.ANY)])
    assert wide.steps[0].writes == ["{workspace}/a", "{workspace}/b"]
    assert wide.steps[0].ways == [(("**/touch",), None)]


def test_arguments() -> None:
    drafts = session("git push origin main", "git -C x push", "ls -la")
    assert [step.ways[0][1] for step in widen(drafts, Width.COMMAND).steps] == [("push", "**"), None, None]
    assert [step.ways[0][1] for step in widen(drafts, Width.ANY).steps] == [None, None, None]
    assert widen(drafts, Width.EXACT) is drafts


def test_who_made_a_file() -> None:
    made = Made()
    for number, path in enumerate(
        ["{workspace}/a", "{workspace}/d/**", "{workspace}/*.o", "{workspace}/{x,y}", "/etc/a*b", "**/t"]
    ):
        made.note(path, number)
    asked = {
        "{workspace}/a": [0], "{workspace}/d": [1], "{workspace}/d/e/f": [1], "{workspace}/m.o": [2],
        "{workspace}/y": [3], "/etc/a1b": [4], "/q/t": [5], "{workspace}/?": [0, 3], "{workspace}/**": [0, 1, 3],
        "/a": [], "{workspace}/sub/m.o": [], "{workspace}/{a,x}": [0, 3],
    }  # fmt: skip
    assert {path: made.makers(path) for path in asked} == asked


def test_what_was_written_last_counts() -> None:
    made = Made()
    made.note("{workspace}/a", 1)
    made.note("{workspace}/a", 2)
    assert made.makers("{workspace}/a") == [2]
