# SPDX-License-Identifier: Apache-2.0
"""Questions that agents ask their owners. No clock, no file: the caller has both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agentmon.errors import AgentmonError

MAX_TEXT = 2_000
#: Of one session: questions without an answer, and all that are remembered.
MOST_OPEN = 8
MOST_KEPT = 64
#: Questions that a session may ask at once, and how long it takes until it may ask one more.
BURST = 4
INTERVAL_NS = 15_000_000_000


@dataclass(slots=True)
class Question:
    """One question of one session. ``answered_ns`` is 0 until somebody answered; ``told``: the agent has read it."""

    id: str
    session: str
    pid: int
    text: str
    asked_ns: int
    answer: str = ""
    answered_ns: int = 0
    by_uid: int = -1
    told: bool = False


class Questions:
    """Those of all live sessions, oldest first."""

    def __init__(self, kept: Iterable[Question] = ()) -> None:
        self._questions: dict[str, Question] = {question.id: question for question in kept}
        self._next_ns: dict[str, int] = {}  # session -> when its bucket was, or will be, full again

    def ask(self, session: str, pid: int, text: str, now_ns: int, new_id: Callable[[], str]) -> Question:
        """File a question; one that is open already is not filed again. Raises `AgentmonError`."""
        text = text.strip()
        if not text:
            raise AgentmonError("the question is empty")
        if len(text) > MAX_TEXT:
            raise AgentmonError(
                f"the question is {len(text):,} characters long; at most {MAX_TEXT:,} are shown: say less"
            )
        own = self.of(session)
        waiting = [question for question in own if not question.answered_ns]
        for question in waiting:
            if question.text == text:
                return question
        if len(waiting) >= MOST_OPEN:
            raise AgentmonError(f"{len(waiting)} questions of this session have no answer yet; wait for one")
        full_ns = max(self._next_ns.get(session, 0), now_ns) + INTERVAL_NS
        if full_ns - now_ns > BURST * INTERVAL_NS:
            raise AgentmonError(
                f"too many questions at once: one each {INTERVAL_NS // 1_000_000_000} seconds; put them into one"
            )
        self._next_ns[session] = full_ns
        if len(own) >= MOST_KEPT:
            del self._questions[next(question for question in own if question.answered_ns).id]
        question = Question(new_id(), session, pid, text, now_ns)
        self._questions[question.id] = question
        return question

    def find(self, question_id: str) -> Question | None:
        """The question of this id."""
        return self._questions.get(question_id)

    def of(self, session: str) -> list[Question]:
        """All questions of a session."""
        return [question for question in self._questions.values() if question.session == session]

    def all(self) -> list[Question]:
        """All questions."""
        return list(self._questions.values())

    def forget(self, session: str) -> bool:
        """A session ended. Returns whether it had asked anything."""
        self._next_ns.pop(session, None)
        gone = self.of(session)
        for question in gone:
            del self._questions[question.id]
        return bool(gone)

    @staticmethod
    def answer(question: Question, text: str, by_uid: int, now_ns: int) -> None:
        """Answer it, or answer it again. Raises `AgentmonError`."""
        text = text.strip()
        if not text or len(text) > MAX_TEXT:
            raise AgentmonError(f"an answer has 1 to {MAX_TEXT:,} characters")
        question.answer, question.by_uid, question.answered_ns, question.told = text, by_uid, now_ns, False
