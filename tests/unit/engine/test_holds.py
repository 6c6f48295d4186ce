# SPDX-License-Identifier: Apache-2.0
"""What waits for an answer: what is one approval, what is asked again, and what is too much."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentmon.engine.holds import OUTCOMES, WAITERS_EACH, Heard, Holds, Limits
from agentmon.model.events import Decision, Flag, ProcessKey
from agentmon.model.operations import Action, Operation, Reason, Tier

NOW = 1_000_000_000_000


def held(pid: int = 7, tid: int = 0, slot: int = 1, same: int = 5, object_: int = 50) -> Decision:
    return Decision(
        0, ProcessKey(pid, 70), tid or pid, 1, 1000, "cat", slot, 1, Operation.READ, Action.HOLD, Tier.LSM, Flag(0), 0,
        Reason.RULE, 0, (1, 2, 3), b"/secret", 0, object_, same,
    )  # fmt: skip


def ask(holds: Holds, event: Decision, now_ns: int = NOW) -> Heard:
    return holds.asked(event, f"s-{event.session}", event.operation.word, "/secret", "rule", "why", now_ns)


def test_the_same_of_one_session_is_one_approval() -> None:
    holds = Holds()
    first, second, other = ask(holds, held()), ask(holds, held(pid=8)), ask(holds, held(pid=9, slot=2))
    assert (first.new, second.new, other.new) == (True, False, True)
    assert first.approval is second.approval is not other.approval
    assert first.approval is not None
    assert [w.process.pid for w in holds.answer(first.approval)] == [7, 8]
    assert holds.open == [other.approval]


def test_what_changed_while_it_was_held_is_another_approval() -> None:
    holds = Holds()
    first, again = ask(holds, held()), ask(holds, held(object_=51))
    assert again.new
    assert again.changed
    assert again.approval is not None
    assert again.approval.changed
    assert again.approval is not first.approval
    assert holds.open == [again.approval]  # nobody waits for the first any more


def test_a_script_and_its_interpreter_wait_at_once_where_programs_are_stopped() -> None:
    holds = Holds()
    program = replace(held(), operation=Operation.EXEC, tier=Tier.REACT)
    ask(holds, replace(program, flags=Flag.SCRIPT))
    ask(holds, replace(program, held=51, same=6))
    assert [(w.halted, w.script) for a in holds.of(program.process) for w in a.waiters] == [(True, True), (True, False)]
    holds.ended(program.process)
    assert not holds.open


def test_what_is_asked_again_has_the_same_waiters_and_another_name() -> None:
    holds = Holds()
    first = ask(holds, held()).approval
    assert first is not None
    again = holds.again(first, NOW + 1)
    assert (again.id, again.changed, again.asked_ns) == ("a-2", True, NOW + 1)
    assert [w.process.pid for w in again.waiters] == [7]
    assert holds.open == [again]
    outcome = holds.outcome(first.id)
    assert outcome is not None
    assert outcome.how == "changed"


def test_a_program_that_was_let_run_does_not_ask_once_more() -> None:
    """Another of that name, later, is news; it has not changed while it was held."""
    holds = Holds()
    program = replace(held(), operation=Operation.EXEC, tier=Tier.REACT)
    first = ask(holds, program).approval
    assert first is not None
    holds.answer(first, allowed=True)
    assert not ask(holds, replace(program, held=51)).changed


def test_what_was_approved_and_had_changed_is_asked_again_as_changed() -> None:
    holds = Holds()
    first = ask(holds, held())
    assert first.approval is not None
    holds.answer(first.approval, allowed=True)
    assert ask(holds, held(object_=51)).changed


def test_what_was_approved_and_used_has_not_changed() -> None:
    holds = Holds()
    first = ask(holds, held())
    assert first.approval is not None
    holds.answer(first.approval, allowed=True)
    holds.used(held())
    assert not ask(holds, held(object_=51)).changed


@pytest.mark.parametrize("operation", [Operation.READ, Operation.RENAME, Operation.EXEC])
@pytest.mark.parametrize("approved", [False, True])
def test_a_call_that_comes_back_for_another_object_has_changed(operation: Operation, approved: bool) -> None:
    """An address in memory, a link in its path. But a rename asks for two names, an exec for its interpreter too."""
    holds = Holds()
    first = ask(holds, replace(held(tid=1), operation=operation)).approval
    assert first is not None
    if approved:
        holds.answer(first, allowed=True)
    other = ask(holds, replace(held(tid=1, same=6, object_=60), operation=operation))
    assert other.changed is (operation is Operation.READ)
    assert [[w.tid for w in approval.waiters] for approval in holds.open] == [[1]]


def test_a_thread_that_asks_for_something_else_left_what_it_asked_before() -> None:
    holds = Holds()
    ask(holds, held(tid=1))
    ask(holds, held(tid=2))
    other = ask(holds, replace(held(tid=1, same=6), operation=Operation.WRITE))
    assert not other.changed
    assert [[w.tid for w in approval.waiters] for approval in holds.open] == [[2], [1]]


def test_a_session_that_asks_too_much_is_refused_and_others_are_not() -> None:
    holds = Holds()
    for number in range(Limits().open_each):
        assert ask(holds, held(tid=number + 1, same=number)).new
    refused = ask(holds, held(tid=99, same=99))
    assert refused.approval is None
    assert str(Limits().open_each) in refused.refused
    assert ask(holds, held(slot=2, tid=100)).new


def test_a_session_whose_threads_wait_in_great_number_leaves_room_to_others() -> None:
    holds = Holds()
    for tid in range(1, WAITERS_EACH + 1):
        assert ask(holds, held(tid=tid)).approval is not None  # all of them one question
    assert len(holds.open) == 1
    assert f"{WAITERS_EACH} threads of this session wait already" in ask(holds, held(tid=9999)).refused
    assert ask(holds, held(slot=2, tid=10000)).new


def test_many_sessions_whose_threads_wait_in_great_number_leave_room_to_one_more() -> None:
    holds = Holds()
    for slot in range(1, 31):
        for tid in range(WAITERS_EACH):
            if refused := ask(holds, held(slot=slot, tid=1000 * slot + tid)).refused:
                assert "more on this host" in refused or str(WAITERS_EACH) in refused
                break
    assert ask(holds, held(slot=31, tid=1)).new


def test_a_session_that_asks_too_often_is_refused_for_a_while() -> None:
    holds = Holds()
    for number in range(Limits().burst):
        heard = ask(holds, held(same=number))
        assert heard.approval is not None
        holds.answer(heard.approval)
    assert "in a minute" in ask(holds, held(same=1000)).refused
    assert ask(holds, held(same=1000), NOW + 61_000_000_000).new


def test_what_was_refused_is_not_counted_so_that_it_is_asked_again_a_minute_later() -> None:
    holds = Holds(Limits(burst=2))
    for number in range(100):
        heard = ask(holds, held(same=number), NOW + number)
        assert (heard.approval is None) == (number >= 2)
        if heard.approval is not None:
            holds.answer(heard.approval)
    assert ask(holds, held(same=1000), NOW + 60_000_000_010).new


def test_it_expires_when_nobody_answers() -> None:
    holds = Holds(Limits(expire_s=10))
    approval = ask(holds, held()).approval
    assert holds.expired(NOW + 9_000_000_000) == []
    assert holds.expired(NOW + 10_000_000_000) == [approval]


def test_an_ended_process_asks_nothing() -> None:
    holds = Holds()
    ask(holds, held())
    ask(holds, held(pid=8, same=6))
    assert holds.ended(ProcessKey(7, 70)) is True
    assert holds.ended(ProcessKey(7, 70)) is False
    assert [w.process.pid for approval in holds.open for w in approval.waiters] == [8]


def test_what_an_earlier_daemon_asked_goes_on_under_its_name() -> None:
    before, holds = Holds(), Holds()
    approval = ask(before, held()).approval
    assert approval is not None
    holds.resume(approval)
    later = ask(holds, held(pid=8, same=6)).approval
    assert later is not None
    assert [a.id for a in holds.open] == ["a-1", "a-2"]


def test_what_became_of_it_is_known_for_a_while() -> None:
    holds = Holds()
    asked = [ask(holds, held(tid=number, same=number)).approval for number in (1, 2)]
    assert holds.outcome("a-1") is None
    holds.ended(held().process)
    for approval in asked:
        assert approval is not None
        outcome = holds.outcome(approval.id)
        assert outcome is not None
        assert outcome.how == "ended"
    first = ask(holds, held(pid=8)).approval
    ask(holds, held(pid=8, object_=51))
    assert first is not None
    outcome = holds.outcome(first.id)
    assert outcome is not None
    assert outcome.how == "changed"
    for number in range(OUTCOMES):
        approval = ask(holds, held(pid=9, slot=10 + number)).approval
        assert approval is not None
        holds.over(approval, "answered", "approved")
    assert holds.outcome(first.id) is None


def test_programs_that_were_started_in_another_way_are_other_approvals() -> None:
    """Whoever was shown one does not approve the other."""
    holds = Holds()
    first, other, same = (
        holds.asked(held(pid=pid), "s-1", "exec", "/w/deploy", "rule", "why", NOW, start=start)
        for pid, start in ((7, "--dry-run"), (8, "--all"), (9, "--dry-run"))
    )
    assert (first.new, other.new, same.new) == (True, True, False)
    assert first.approval is same.approval is not other.approval
