# SPDX-License-Identifier: Apache-2.0
"""What must hold of any bytes that somebody calls a policy, a plan, or messages to the daemon."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentmon.control.protocol import EXIT_CODES, MAX_LINE_BYTES, Peer, RefusedError
from agentmon.control.server import Connection
from agentmon.daemon.requests import parse
from agentmon.errors import PolicyError
from agentmon.plan.fence import Fenced
from agentmon.plan.load import load_text as load_plan
from agentmon.policy.bind import bind_policy
from agentmon.policy.cases import NEUTRAL
from agentmon.policy.compile import compile_policy
from agentmon.policy.load import load_text
from agentmon.policy.rules import Variables
from agentmon.policy.text import decode

VARIABLES = Variables.of(**NEUTRAL)
#: Processor time for texts of some KiB. Compiling is the most of it; its own limits are tested elsewhere.
SECONDS = 5

_LINE = re.compile(r"[^:\n]+\.yaml:[1-9][0-9]*:[1-9][0-9]*: .*; ")


_DOCS = Path(__file__).parents[2] / "docs"
#: The plans that are shown to people.
PLANS = [
    *(text.encode() for text in re.findall(r"```yaml\n(.*?)```", (_DOCS / "plans.md").read_text(), re.DOTALL)),
    *(path.read_bytes() for path in sorted((_DOCS / "examples").glob("*.yaml"))),
]

_POLICY = {"name": "p.yaml", "text": "policy: p"}
_FIELDS: list[dict[str, Any]] = [
    {"verb": "ping"}, {"verb": "ps"}, {"verb": "doctor"}, {"verb": "approvals", "all": True},
    {"verb": "summary", "session": "s-1"}, {"verb": "release", "session": "s-1"}, {"verb": "resume", "session": "s-1"},
    {"verb": "why", "session": "s-1", "limit": 3, "after": 2, "bookmark": "b", "within_s": 1.5, "tell": True},
    {"verb": "bookmark", "name": "b"}, {"verb": "step", "name": "build", "ends": True, "status": 1, "parent": False},
    {"verb": "toolstep", "steps": ["a", "b"], "ends": False, "call": "c", "status": 0, "program": "agent"},
    {"verb": "ask", "text": "why?"}, {"verb": "asked", "question": "q-1"},
    {"verb": "answer", "question": "q-1", "text": "so"}, {"verb": "deny", "approval": "a-1", "reason": "no"},
    {"verb": "approve", "approval": "a-1", "scope": "session", "for_s": 60.0},
    {"verb": "watch", "all": True, "session": None}, {"verb": "risk", "session": "s-1", "level": "high"},
    {"verb": "reload", "session": "s-1", "policy": _POLICY, "dry_run": True},
    {
        "verb": "enroll", "pid": 7, "policy": _POLICY, "workspace": "/w", "uid": 1000, "command": "c", "waiting": True,
        "accept": ["7:fd3"], "profile": "p", "learn": "l", "agent": {"path": "/a", "sha256": "0" * 64},
        "plan": {"name": "plan.yaml", "text": "plan: p"},
    },
]  # fmt: skip
#: A request of each verb, with all its fields.
REQUESTS = [json.dumps({"v": 1, "id": number, **fields}).encode() + b"\n" for number, fields in enumerate(_FIELDS)]

#: What a plan is bound together with.
_BESIDE = load_text(
    "policy: p\ndefault: {exec: allow, read: allow, write: deny, connect: deny}\nrules: []\n", "beside.yaml"
)


def judge(data: bytes) -> bool:
    """Load it as a policy. Returns whether that succeeds; fails if there is neither that nor clear errors, soon."""

    def load() -> Callable[[], object]:
        policy = load_text(decode(data, "p.yaml"), "p.yaml")
        if len(policy.packs) > 1:  # the shipped packs compile, and take most of the time
            return lambda: None
        return lambda: compile_policy(bind_policy(policy, VARIABLES))

    return _judged(load)


def judge_plan(data: bytes) -> bool:
    """The same as a plan, which is compiled with a policy that says little."""

    def load() -> Callable[[], object]:
        plan = load_plan(decode(data, "p.yaml"), "p.yaml")
        return lambda: Fenced(_BESIDE, plan, VARIABLES).compile()

    return _judged(load)


def _judged(load: Callable[[], Callable[[], object]]) -> bool:
    before = time.process_time()
    try:
        compiling = load()
        loaded = time.process_time() - before
        assert loaded < SECONDS, f"loading took {loaded:.1f} s"
        compiling()
    except PolicyError as error:
        lines = str(error).split("\n")
        assert len(lines) <= 21, "too many errors"
        for line in lines:
            assert _LINE.match(line), f"no place, or no remedy: {line!r}"
            assert line.isprintable(), f"cannot be shown: {line!r}"
            assert len(line) < 1_000, f"too long: {line!r}"
        return False
    finally:
        took = time.process_time() - before
        assert took < 2 * SECONDS, f"took {took:.1f} s"
    return True


class _Client(Connection):
    """A connection of which only what is sent over it is real."""

    def __init__(self) -> None:
        super().__init__(self, None, 2, 1000)  # type: ignore[arg-type]  # neither is asked for anything else
        self.sent = bytearray()
        self.understood = 0

    def handle(self, _connection: Connection, _peer: Peer, verb: str, fields: dict[str, Any]) -> dict[str, Any]:
        """As `daemon.verbs` begins."""
        try:
            parse(verb, fields)
        except RefusedError as error:
            return {"ok": False, "error": str(error), "code": error.code}
        self.understood += 1
        return {"ok": True}

    def take(self, data: bytes, peer: Peer) -> None:
        if not self._closed:
            self._take(data, peer)

    def close(self) -> None:
        self._closed = True

    def _write(self, data: bytes) -> None:
        self.sent += data


def judge_messages(data: bytes) -> int:
    """Send it to the daemon's end of a control socket, in pieces. Returns how many messages are well-formed requests.

    Fails unless each line has one answer, which is a line of JSON that says yes, or what is wrong.
    """
    before = time.process_time()
    client, peer = _Client(), Peer(2, 1000, 1000)
    for at in range(0, len(data), 1000):
        client.take(data[at : at + 1000], peer)
    lines = data.count(b"\n")
    assert data.rpartition(b"\n")[2] == bytes(client._line) or client._closed
    answers = [json.loads(line) for line in client.sent.decode("ascii").split("\n")[:-1]]
    assert len(answers) == lines or (client._closed and len(data) > MAX_LINE_BYTES)
    for answer in answers:
        assert answer["v"] == 1
        assert answer["ok"] is True or (answer["code"] in EXIT_CODES and answer["error"])
    took = time.process_time() - before
    assert took < SECONDS, f"took {took:.1f} s"
    return client.understood
