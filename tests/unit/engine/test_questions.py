# SPDX-License-Identifier: Apache-2.0
"""Questions of agents: their limits."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from agentmon.engine.questions import BURST, INTERVAL_NS, MAX_TEXT, MOST_KEPT, MOST_OPEN, Question, Questions
from agentmon.errors import AgentmonError

Asker = Callable[..., Question]


@pytest.fixture
def questions() -> Questions:
    return Questions()


@pytest.fixture
def ask(questions: Questions) -> Asker:
    numbers = itertools.count()
    return lambda text, now=0, session="s-1": questions.ask(session, 7, text, now, lambda: f"q-{next(numbers)}")


def test_a_question_is_answered(questions: Questions, ask: Asker) -> None:
    question = ask(" may I? ")
    assert (question.text, question.answered_ns) == ("may I?", 0)
    questions.answer(question, " yes ", 1000, 5)
    assert (question.answer, question.by_uid, question.answered_ns, question.told) == ("yes", 1000, 5, False)


@pytest.mark.parametrize("text", ["", " \n", "x" * (MAX_TEXT + 1)])
def test_neither_question_nor_answer_is_empty_or_long(questions: Questions, ask: Asker, text: str) -> None:
    with pytest.raises(AgentmonError):
        ask(text)
    question = ask("may I?")
    with pytest.raises(AgentmonError, match="characters"):
        questions.answer(question, text, 0, 5)
    assert question.answered_ns == 0


def test_the_same_question_is_asked_once_until_it_is_answered(questions: Questions, ask: Asker) -> None:
    first = ask("may I?")
    assert all(ask("may I?") is first for _ in range(100))
    questions.answer(first, "no", 0, 1)
    assert ask("may I?") is not first


def test_a_session_asks_a_few_at_once_then_one_each_interval(ask: Asker) -> None:
    for i in range(BURST):
        ask(f"{i}?")
    with pytest.raises(AgentmonError, match="too many questions at once"):
        ask("more?")
    with pytest.raises(AgentmonError, match="too many questions at once"):
        ask("more?", INTERVAL_NS - 1)
    ask("others are not held up by it?", session="s-2")
    ask("more?", INTERVAL_NS)
    with pytest.raises(AgentmonError, match="too many questions at once"):
        ask("and more?", INTERVAL_NS)


def test_so_many_wait_for_an_answer(questions: Questions, ask: Asker) -> None:
    for i in range(MOST_OPEN):
        ask(f"{i}?", i * INTERVAL_NS)
    now = 100 * INTERVAL_NS
    with pytest.raises(AgentmonError, match="no answer yet"):
        ask("one more?", now)
    questions.answer(questions.of("s-1")[0], "yes", 0, now)
    ask("one more?", now)


def test_old_answers_are_forgotten_and_open_questions_are_not(questions: Questions, ask: Asker) -> None:
    kept = ask("never answered?")
    for i in range(2 * MOST_KEPT):
        questions.answer(ask(f"{i}?", i * INTERVAL_NS), "yes", 0, 1)
    assert len(questions.of("s-1")) == MOST_KEPT
    assert kept in questions.all()


def test_they_end_with_their_session(questions: Questions, ask: Asker) -> None:
    ask("one?")
    other = ask("two?", session="s-2")
    assert questions.forget("s-1")
    assert not questions.forget("s-1")
    assert questions.all() == [other]
    assert questions.find("q-0") is None
