# SPDX-License-Identifier: Apache-2.0
"""Sessions, trees and rates, and how they read."""

from __future__ import annotations

import datetime as dt
from typing import Any

from agentmon.cli.live import details, lines
from agentmon.cli.live.inbox import Answer, Batch, Link, Status
from agentmon.cli.live.state import State, tree
from agentmon.cli.live.stream import Row
from agentmon.cli.live.words import head, left, middle, number, plain, right, width
from agentmon.model.records import Record

NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


def process(pid: int, ppid: int, comm: str = "sh") -> dict[str, Any]:
    return {"pid": pid, "ppid": ppid, "uid": 0, "comm": comm, "blocked": 0}


def session(name: str = "s-1", *, decisions: int = 0, blocked: int = 0, **more: Any) -> dict[str, Any]:
    processes = more.pop("processes", [process(10, 1)])
    return {
        "session": name, "policy": "coding-agent", "uid": 0, "workspace": "/w", "command": "claude --go",
        "started_ns": 0, "decisions": decisions, "blocked": blocked, "observed": 0, "risk": "normal",
        "process_count": len(processes), "processes": processes, **more,
    }  # fmt: skip


def status(at_s: float, *sessions: dict[str, Any], **more: Any) -> Batch:
    reply = {
        "enforcing": True, "tier": "lsm", "version": "1", "pid": 5, "embedded": False,
        "posture": {"exec": {"posture": "prevents", "note": ""}, "bpf": {"posture": "blind", "note": "not seen"}},
    }  # fmt: skip
    return Batch(status=Status({**reply, "sessions": list(sessions), **more}, at_s))


def test_rates_are_differences_and_begin_anew_with_the_daemon() -> None:
    state = State()
    state.take(status(1, session(decisions=10, blocked=2), counters={"decisions": 1000, "blocked": 9}), 0)
    assert state.rates.of("s-1") == (0, 0)
    state.take(status(3, session(decisions=30, blocked=6), counters={"decisions": 3000, "blocked": 19}), 0)
    assert state.rates.of("s-1") == (10, 2)
    assert (state.total(0), state.total(1)) == (1000, 5)
    state.take(status(4, session(decisions=1), counters={"decisions": 5, "blocked": 0}), 0)
    assert state.rates.of("s-1") == (0, 0)


def test_without_counters_the_rates_of_the_sessions_are_summed() -> None:
    state = State()
    state.take(status(1, session(), session("s-2")), 0)
    state.take(status(2, session(decisions=3, blocked=1), session("s-2", decisions=4, blocked=2)), 0)
    assert (state.total(0), state.total(1)) == (7, 3)


def test_a_session_that_comes_later_has_a_rate_from_then_on() -> None:
    state = State()
    state.take(status(1), 0)
    state.take(status(2, session(decisions=100)), 0)
    state.take(status(4, session(decisions=140)), 0)
    assert state.rates.of("s-1") == (20, 0)
    assert state.rates.of("s-9") == (0, 0)


def test_the_tree_has_every_process_once() -> None:
    found = [(p["pid"], branch) for p, branch in tree([process(4, 2), process(2, 1), process(3, 2), process(9, 7)])]
    assert found == [(2, "|- "), (4, "|  |- "), (3, "|  `- "), (9, "`- ")]
    loop = [process(1, 2), process(2, 1), process(5, 5)]
    assert sorted(p["pid"] for p, _ in tree(loop)) == [1, 2, 5]
    chain = [process(n + 1, n) for n in range(5000)]
    assert len(list(tree(chain))) == 5000


def text(line: lines.Line) -> str:
    return "".join(part for part, _ in line)


def test_a_plan_has_a_row_that_says_which_step_is_where() -> None:
    steps = [
        {"step": name, "state": state} for name, state in (("get", "done"), ("build", "active"), ("push", "waiting"))
    ]
    planned = session(plan="release\x1b[2J", steps=steps)
    state = State()
    state.take(status(1, planned, session("s-2")), 0)
    assert [item.key for item in state.items] == [("s-1", 0), ("s-1", -1), ("s-1", 10), ("s-2", 0), ("s-2", 10)]
    shown = text(lines.item(state, state.items[1], 79, 0))
    assert shown.endswith("active: build; done: get; waiting: push")
    assert "plan release" in shown
    assert "\x1b" not in shown
    assert "active: build" in details.as_text(details.of_item(state.items[1], state))
    planned["paused"] = "max-write of `build`"
    assert "PAUSED: max-write of `build`  active: build" in text(lines.item(state, state.items[1], 90, 0))
    assert width(text(lines.item(state, state.items[1], 40, 0))) <= 40
    state.fold()  # hides processes only
    assert [item.key for item in state.items] == [("s-1", 0), ("s-1", -1), ("s-2", 0)]


def test_only_one_session_is_shown_when_asked_for() -> None:
    state = State(only="s-2")
    state.take(status(1, session(), session("s-2")), 0)
    assert [item.session["session"] for item in state.items] == ["s-2", "s-2"]
    state.fold()
    assert len(state.items) == 1


def test_a_refused_answer_is_told() -> None:
    state = State()
    state.take(Batch(asked=[{"id": "a"}]), 0)
    state.approvals.answer(9)
    state.take(Batch(answers=[Answer("a", "approved, once", "only root may")]), 9)
    assert state.said == "only root may"
    state.take(Batch(asked=[{"id": "a"}]), 10)
    assert [item.id for item in state.approvals.items] == ["a"]


def test_the_head_says_tier_posture_rates_and_losses() -> None:
    state = State()
    counters = {"decisions": 5, "blocked": 0, "ring_lost": 3}
    state.take(status(1, session(), counters=counters), 0)
    text = [plain(line) for line in lines.top(state, 80, NOON)]
    assert text[0].split() == ["agentmon", "enforcing", "lsm", "tier", "daemon", "1", "pid", "5", "12:00:00"]
    assert "prevents 1  blind 1" in text[1]
    assert text[1].endswith("0 blocked/s")
    assert text[2] == "lost or uncertain: ring_lost 3"
    state.take(status(2, session(), enforcing=False), 0)
    assert "NOT ENFORCING" in plain(lines.top(state, 80, NOON)[0])
    state.take(Batch(link=Link(up=False, why="daemon is gone, waiting")), 0)
    text = [plain(line) for line in lines.top(state, 80, NOON)]
    assert "daemon is gone, waiting" in text[0]
    assert text[1].endswith("- blocked/s")


def test_the_numbers_of_postures_go_before_the_hint() -> None:
    words = ["prevents"] * 2 + ["stops"] * 14 + ["detects"] * 3 + ["blind"] * 4
    state = State()
    state.take(status(1, posture={str(n): {"posture": word, "note": ""} for n, word in enumerate(words)}), 0)
    assert "prevents 2  stops 14  detects 3  blind 4 " in plain(lines.top(state, 80, NOON)[1])
    assert "blind 4  (p: which)" in plain(lines.top(state, 100, NOON)[1])


def test_details_name_the_ancestors_and_the_way_on() -> None:
    state = State()
    state.take(status(1, session(processes=[process(10, 1, "claude"), process(11, 10), process(12, 11, "cat")])), 0)
    record = Record(0, "decision", "s-1", 12, comm="cat", operation="read", object="/a b", verdict="deny", rule="keys")
    text = details.as_text(details.of_row(Row(1, record), state))
    assert text.startswith("deny read /a b\n")
    assert "sh[11] < claude[10]" in text
    assert "agentmon policy explain read '/a b' -p coding-agent" in text
    assert "workspace  /w" in details.as_text(details.of_item(state.items[0], state))
    assert "claude[10]" in details.as_text(details.of_item(state.items[2], state))


def test_what_an_agent_chose_cannot_steer_the_terminal() -> None:
    bad = "\x1b[2J\x9b\n\udcff\u202e"
    state = State()
    state.take(status(1, session(command=bad, processes=[process(1, 0, bad)], policy=bad)), 0)
    record = Record(0, "decision", "s-1", 5, comm=bad, operation="read", object=bad, verdict="deny", rule=bad)
    other = Record(0, "session", "s-1", 5, comm=bad, operation="ended", object=bad, detail=bad)
    state.take(Batch(asked=[{"id": bad, "object": bad, "command": [bad], "parents": [bad], "scope_help": bad}]), 0)
    ask = state.approvals.items[0]
    shown = [lines.item(state, item, 200, 0) for item in state.items]
    shown += [lines.row(Row(1, record), 200), lines.row(Row(1, other), 200), *lines.full(Row(1, record), 200)]
    shown += [lines.approval(ask, 200, 0), *lines.context(ask, 200)]
    assert all(plain(line).isprintable() for line in shown)
    texts = [details.of_row(Row(1, record), state), details.of_item(state.items[1], state), details.of_approval(ask)]
    for text in texts:
        assert all(line.isprintable() for line in details.as_text(text).splitlines())
        assert all(line.isprintable() for line in details.folded(text, 40))
    assert details.one_line(Row(1, record)).isprintable()


def test_a_row_fits_whatever_is_in_it() -> None:
    for text in ("/short", "/" + "x" * 5000, "/" + "\u6f22" * 200, ""):
        record = Record(0, "decision", "s-1234567890", 1, comm=text, operation="read", object=text, verdict="kill")
        for cells in (20, 40, 80, 200):
            found = plain(lines.row(Row(1, record._replace(reason=text, rule="r")), cells))
            assert cells < 40 or width(found) <= cells, (text[:9], cells)


def test_words_are_cut_to_cells() -> None:
    assert head("abcdef", 4) == "ab.."
    assert middle("/root/.ssh/id_rsa", 12).endswith("id_rsa")
    assert (left("ab", 4), right("ab", 4)) == ("ab  ", "  ab")
    assert width(left("\u6f22\u5b57\u6f22", 5)) == 5
    assert [number(n) for n in (0, 0.25, 9.96, 12.3, 1234, 123_456, 2_500_000)] == [
        "0", "0.2", "10.0", "12", "1234", "123k", "2.5M",
    ]  # fmt: skip
