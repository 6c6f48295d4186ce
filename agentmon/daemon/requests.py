# SPDX-License-Identifier: Apache-2.0
"""The verbs of the control socket: their fields, and who may use them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentmon.control.protocol import MAX_POLICY_BYTES, RefusedError


class Request(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Ping(Request):
    """Is anybody there?"""


class Ps(Request):
    """Sessions and processes: an ordinary user's own."""


class PolicyRef(Request):
    """A policy: the name of an installed pack, or a text with the name of its file."""

    name: str = Field(max_length=4096)
    text: str = Field(default="", max_length=MAX_POLICY_BYTES)


class Agent(Request):
    """The agent's program, as whoever starts it sees it."""

    path: str = Field(max_length=4096)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class PlanRef(Request):
    """The text of a plan, with the name of its file."""

    name: str = Field(max_length=4096)
    text: str = Field(max_length=MAX_POLICY_BYTES)


class Enroll(Request):
    """Fence a process and all its descendants."""

    pid: int = Field(gt=1, lt=1 << 31)
    policy: PolicyRef
    workspace: str = Field(max_length=4096)
    uid: int | None = Field(default=None, ge=0, lt=1 << 32)
    """For whom the policy speaks (`~`, `{user}`); only root may name another than itself."""
    command: str = Field(default="", max_length=4096)
    waiting: bool = False
    """`run`: the process is a child of the sender that waits to be let go; it need not be stopped."""
    accept: list[str] = Field(default_factory=list, max_length=4096)
    profile: str | None = Field(default=None, max_length=64)
    """The baseline that it is watched by."""
    learn: str | None = Field(default=None, max_length=64)
    """The baseline that its end is learnt for; it is watched by it, if there is one already."""
    agent: Agent | None = None
    plan: PlanRef | None = None
    """What it follows besides."""


class Step(Request):
    """The sender begins a step of its session's plan, or ends it."""

    name: str = Field(min_length=1, max_length=200)
    ends: bool = False
    status: int = Field(default=0, ge=0, le=255)
    """Of one that ends, as a shell has it."""
    parent: bool = False
    """Of a command: not the sender itself, but who runs it."""


class ToolStep(Request):
    """A tool call of the agent program begins a step, or has ended; the sender is a hook that it runs."""

    steps: list[str] = Field(min_length=1, max_length=64)
    """Which one; with `ends`, one of these."""
    ends: bool = False
    call: str | None = Field(default=None, max_length=200)
    """The call; None, with `ends`: all that there are."""
    status: int = Field(default=0, ge=0, le=255)
    """Of one that ends, as a shell has it."""
    program: str | None = Field(default=None, min_length=1, max_length=255)
    """What the agent program is called; None: it is the first ancestor that is no shell with `-c`."""


class Release(Request):
    """End a session: its processes run on, unfenced."""

    session: str = Field(max_length=64)


class Resume(Request):
    """Let a session go on that its plan has paused."""

    session: str = Field(max_length=64)


class SetRisk(Request):
    """Say how far a session is from what is usual."""

    session: str = Field(max_length=64)
    level: str = Field(max_length=16)


class Reload(Request):
    """Put a session under another policy while it runs."""

    session: str = Field(max_length=64)
    policy: PolicyRef
    dry_run: bool = False
    """Only say what would change."""


class Approve(Request):
    """Let what is held go on."""

    approval: str = Field(max_length=32)
    """The question's id."""
    scope: Literal["once", "session"] = "once"
    """This very action, or the same by anybody of the session."""
    for_s: float | None = Field(default=None, gt=0, le=31 * 86400)
    """`session`: no longer than that."""


class Deny(Request):
    """Refuse what is held."""

    approval: str = Field(max_length=32)
    """The question's id."""
    reason: str = Field(default="", max_length=400)


class Summary(Request):
    """What was blocked in a session, also shortly after its end."""

    session: str = Field(max_length=64)


class Watch(Request):
    """Follow records as they are made."""

    all: bool = False
    session: str | None = Field(default=None, max_length=64)


class Why(Request):
    """What was blocked last in the sender's own session, or (from outside) in one that it may see."""

    session: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=10, ge=1, le=100)
    after: int | None = Field(default=None, ge=0)
    """Only what was blocked after so many were: `number` of an earlier answer."""
    bookmark: str | None = Field(default=None, max_length=200)
    """The same, by a name that `bookmark` gave; `within_s` counts if there is none of it."""
    within_s: float | None = Field(default=None, ge=0, le=1e9)
    tell: bool = False
    """The answers to questions are being read: they are not news the next time."""


class Bookmark(Request):
    """Give this moment of the sender's own session a name."""

    name: str = Field(min_length=1, max_length=200)


class Ask(Request):
    """A question for the owner of the sender's own session."""

    text: str = Field(max_length=20_000)


class Asked(Request):
    """The questions of the sender's own session, or one of them, with their answers."""

    question: str | None = Field(default=None, max_length=64)


class Approvals(Request):
    """What waits for somebody outside: what is held, and questions."""

    all: bool = False
    """With those that have an answer."""


class Answer(Request):
    """Answer a question."""

    question: str = Field(max_length=64)
    text: str = Field(max_length=20_000)


class Doctor(Request):
    """Run the canaries again and report."""


#: verb -> (fields, may a process that is itself fenced ask it, only root or the group)
VERBS: dict[str, tuple[type[Request], bool, bool]] = {
    "ping": (Ping, True, False),
    "ps": (Ps, True, False),
    "summary": (Summary, True, False),
    "why": (Why, True, False),
    "bookmark": (Bookmark, True, False),
    "step": (Step, True, False),
    "toolstep": (ToolStep, True, False),
    "ask": (Ask, True, False),
    "asked": (Asked, True, False),
    "approvals": (Approvals, False, False),
    "answer": (Answer, False, False),
    "approve": (Approve, False, False),
    "deny": (Deny, False, False),
    "enroll": (Enroll, False, False),
    "watch": (Watch, False, False),
    "resume": (Resume, False, False),
    "doctor": (Doctor, False, False),
    "release": (Release, False, True),
    "risk": (SetRisk, False, True),
    "reload": (Reload, False, True),
}


def parse(verb: str, fields: dict[str, Any]) -> Request:
    """Check a request's fields. Raises `RefusedError` that says what is wrong."""
    if verb not in VERBS:
        raise RefusedError(f"unknown verb `{verb}`; known: {', '.join(sorted(VERBS))}", "usage")
    try:
        return VERBS[verb][0].model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(
            f"`{'.'.join(map(str, item['loc']))}`: {item['msg'][:1].lower()}{item['msg'][1:]}"
            for item in error.errors()
        )
        raise RefusedError(f"bad `{verb}` request: {problems}", "usage") from error
