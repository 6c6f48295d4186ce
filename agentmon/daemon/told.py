# SPDX-License-Identifier: Apache-2.0
"""What an agent is told of its own session, and what it asks its owner. It can change nothing by it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentmon.control.protocol import RefusedError
from agentmon.daemon.callers import Caller
from agentmon.daemon.requests import Answer, Approvals, Ask, Asked, Bookmark, Why
from agentmon.engine import Denial, Question, Questions, Session
from agentmon.model.operations import OPERATIONS, Operation
from agentmon.model.records import BY_PLAN, Record
from agentmon.policy.bind import BoundPolicy
from agentmon.policy.instead import instead

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon

#: The operation of a denial by its word; a name that is not resolved is a connection that is not made.
_OPERATIONS = {operation.word: operation for operation in OPERATIONS} | {"name": Operation.CONNECT}


class Told:
    """The answers. One object a daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def why(self, caller: Caller, request: Why, known: Callable[[str, Caller], Session]) -> dict[str, Any]:
        """What was blocked last, by which rule, and what is allowed instead."""
        self._daemon.drain()
        if request.session is not None:
            session = known(request.session, caller)
        elif caller.inside:
            session = _own(caller)
        else:
            raise RefusedError("you are in no session; name one, as `agentmon ps` lists it", "usage")
        after, since_ns = -1 if request.after is None else request.after, 0
        marked = session.bookmarks.get(request.bookmark) if request.bookmark is not None else None
        if marked is not None:
            after = marked
        elif request.within_s is not None:
            since_ns = time.time_ns() - int(request.within_s * 1e9)
        found = session.since(after, since_ns)
        shown = found[-request.limit :]
        allowed = _Allowed(self._bound(session))
        answers = [q for q in self._daemon.questions.of(session.id) if q.answered_ns and not q.told]
        if request.tell and caller.own is session and answers:
            for question in answers:
                question.told = True
            self._save()
        watched = None if caller.inside else self._daemon.risks.of(session.id)  # else an agent could steer by it
        return {
            "session": session.id, "policy": session.policy, "number": session.blocked, "risk": session.risk,
            "fingerprint": watched.as_json() if watched else None,
            "left_out": len(found) - len(shown),
            "denials": [_denial(denial, allowed) for denial in shown],
            "answers": [_question(question) for question in answers],
        }  # fmt: skip

    def bookmark(self, caller: Caller, request: Bookmark) -> dict[str, Any]:
        """Remember a moment."""
        self._daemon.drain()  # what is on its way was before
        session = _own(caller)
        session.bookmark(request.name)
        return {"session": session.id, "number": session.blocked}

    def ask(self, caller: Caller, request: Ask) -> dict[str, Any]:
        """File a question."""
        daemon, session = self._daemon, _own(caller)
        before = daemon.questions.all()
        question = daemon.questions.ask(session.id, caller.peer.pid, request.text, time.time_ns(), self._new_id)
        if question not in before:
            self._report(session, "asked", question.id, question.text, caller)
            self._save()
        return _question(question)

    def asked(self, caller: Caller, request: Asked) -> dict[str, Any]:
        """What was asked, and answered."""
        session = _own(caller)
        questions = self._daemon.questions.of(session.id)
        if request.question is not None:
            questions = [question for question in questions if question.id == request.question]
            if not questions:
                raise RefusedError(f"this session asked no question `{request.question}`", "failed")
        changed = False
        for question in questions:
            changed |= bool(question.answered_ns) and not question.told
            question.told = bool(question.answered_ns)
        if changed:
            self._save()
        return {"session": session.id, "questions": [_question(question) for question in questions]}

    def approvals(self, caller: Caller, request: Approvals) -> dict[str, Any]:
        """What waits for the caller."""
        found = []
        for question in self._daemon.questions.all():
            session = self._daemon.engine.find(question.session)
            if session is not None and caller.may_see(session) and (request.all or not question.answered_ns):
                about = {"policy": session.policy, "uid": session.uid, "command": session.command}
                found.append(_question(question) | about)
        return {"approvals": [], "questions": found}

    def answer(self, caller: Caller, request: Answer) -> dict[str, Any]:
        """Answer a question."""
        question = self._daemon.questions.find(request.question)
        session = self._daemon.engine.find(question.session) if question is not None else None
        if question is None and self._daemon.engine.holds.find(request.question) is not None:
            raise RefusedError(
                f"`{request.question}` is held: use `agentmon approve {request.question}`, or `deny`", "failed"
            )
        if question is None or session is None or not caller.may_see(session):
            raise RefusedError(f"there is no question `{request.question}`; see `agentmon approvals`", "failed")
        Questions.answer(question, request.text, caller.peer.uid, time.time_ns())
        self._report(session, "answered", question.id, question.answer, caller)
        self._save()
        return _question(question)

    def _bound(self, session: Session) -> BoundPolicy | None:
        state = self._daemon.states.get(session.id)
        prepared = self._daemon.book.in_force(state.digest) if state is not None else None
        return prepared.bound if prepared is not None else None

    def _new_id(self) -> str:
        while True:
            found = f"q-{secrets.token_hex(2)}"
            if self._daemon.questions.find(found) is None:
                return found

    def _save(self) -> None:
        self._daemon.directory.save_questions(self._daemon.questions.all())

    def _report(self, session: Session, how: str, question: str, text: str, caller: Caller) -> None:
        self._daemon.report(
            Record(
                time.time_ns(), "session", session.id, uid=session.uid, operation=how, object=question, detail=text,
                reason=f"by uid {caller.peer.uid}",
            )
        )  # fmt: skip
        self._daemon.settle()


def _own(caller: Caller) -> Session:
    if caller.own is not None:
        return caller.own
    if caller.inside:
        raise RefusedError("whose this connection is cannot be told; connect again, and ask yourself", "forbidden")
    raise RefusedError("you are in no session: this is for what runs inside a fence", "usage")


class _Allowed(dict[tuple[str, str], list[str]]):
    """(operation, rule) -> what is allowed instead; found out once, for many denials share it."""

    def __init__(self, bound: BoundPolicy | None) -> None:
        super().__init__()
        self._bound = bound

    def __missing__(self, key: tuple[str, str]) -> list[str]:
        bound, operation = self._bound, _OPERATIONS.get(key[0])
        found = self[key] = instead(bound, operation, key[1]) if bound is not None and operation is not None else []
        return found


def _denial(denial: Denial, allowed: _Allowed) -> dict[str, Any]:
    last = denial.last
    return {
        "number": denial.number, "time_ns": last.time_ns, "times": denial.times, "pid": last.pid, "comm": last.comm,
        "operation": last.operation, "object": last.object, "verdict": last.verdict,
        "killed": "killed" in last.flags.split(",") or last.verdict == "kill", "rule": last.rule, "reason": last.reason,
        "name": last.host, "plan": BY_PLAN in last.flags.split(","),
        # of what the policy allows, the plan may forbid all
        "instead": [] if BY_PLAN in last.flags.split(",") else allowed[last.operation, last.rule],
    }  # fmt: skip


def _question(question: Question) -> dict[str, Any]:
    return {
        "question": question.id, "session": question.session, "pid": question.pid, "text": question.text,
        "asked_ns": question.asked_ns, "answer": question.answer or None, "answered_ns": question.answered_ns or None,
        "by_uid": question.by_uid if question.answered_ns else None,
    }  # fmt: skip
