# SPDX-License-Identifier: Apache-2.0
"""Inside a guest: replays the cases of `efficacy`, all without agentmon or all with it; one JSON line each.

``python3 -m benchmarks._replay CASES POLICY SECONDS`` with POLICY a pack's name, a file, or ``-`` for no agentmon at
all. After so many seconds no case is begun.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import _sandbox
from benchmarks._observe import Tokens, token

#: Private files of an ordinary host, each with a word of its own; made before anything is replayed.
PRIVATE = {
    "/etc/shadow": "{}:!:19000:0:99999:7:::", "/etc/gshadow": "{}:!::", "/etc/security/opasswd": "{}",
    "/etc/sudoers": "# {}",
    "/etc/ssl/private/host.key": "{}", "/etc/ssh/ssh_host_rsa_key": "{}", "/var/backups/shadow.bak": "{}",
    "/root/.ssh/id_rsa": "{}", "/root/.ssh/id_ed25519": "{}", "/root/.aws/credentials": "{}",
    "/root/.git-credentials": "{}", "/root/.gnupg/secring.gpg": "{}", "/root/.config/gh/hosts.yml": "# {}",
    "/home/alice/.ssh/id_rsa": "{}", "/home/alice/diary.txt": "{}",
}  # fmt: skip
#: What a home has anyway; nothing secret.
ORDINARY = {
    "/root/.ssh/authorized_keys": "ssh-ed25519 AAAA somebody\n", "/root/.bash_history": "ls\ncd /app\n",
    "/etc/resolv.conf": "nameserver 203.0.113.53\noptions timeout:2 attempts:1\n", "/etc/cron.d/nightly": "# nothing\n",
}  # fmt: skip
SLACK_S = 25.0
KEPT = 500  # blocked operations of a case: more say nothing new


def main() -> int:
    """Replays; what was replayed is on standard output as it comes."""
    cases = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    tokens = furnish()
    wanted = {case["binary"] for case in cases if "binary" in case}
    have = _sandbox.binaries(wanted)
    say({"ready": True, "binaries": sorted(have)})
    with contextlib.ExitStack() as stack:
        fence = None if sys.argv[2] == "-" else stack.enter_context(fenced(sys.argv[2]))
        start = time.monotonic()
        for case in cases:
            if time.monotonic() - start > float(sys.argv[3]):
                break
            if case.get("binary", "") in wanted - have:
                say({"id": case["id"], "missing": True})
                continue
            say({"begin": case["id"]})
            began, clock = time.monotonic(), time.time()
            result = replay(case, tokens, fence)
            taken = time.monotonic() - began
            time.clock_settime(time.CLOCK_REALTIME, clock + taken)  # some cases set it
            say({"id": case["id"], "seconds": round(taken, 1), **result})
    return 0


def say(message: dict[str, Any]) -> None:
    """One line to the host."""
    print(json.dumps(message), flush=True)


def furnish() -> Tokens:
    """Makes private and ordinary files."""
    words = {path: token() for path in PRIVATE}
    for path, form in PRIVATE.items():
        place(path, Path(path).read_text() if os.path.exists(path) else "", form.format(words[path]) + "\n", 0o600)
    for path, text in ORDINARY.items():
        place(path, "", text, 0o644)
    return Tokens(words)


def place(path: str, before: str, text: str, mode: int) -> None:
    """Writes a file, and the directories above."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_text(text + before)
    os.chmod(path, mode)


class Fence:
    """The programs, attached, and one policy."""

    def __init__(self, policy: str) -> None:
        from agentmon.daemon.clocks import Clocks
        from agentmon.policy.compile import compile_policy
        from agentmon.policy.load import load
        from agentmon.policy.rules import Variables
        from benchmarks import _kernel

        self._stack = contextlib.ExitStack()
        self.monitor = self._stack.enter_context(_kernel.loaded())
        variables = Variables.of(workspace=_sandbox.WORKSPACE, home="/root", user="root")
        self.compiled = compile_policy(load(policy), variables)
        self.policy_slot, _ = self.monitor.install_policy(self.compiled)
        Clocks().start(self.monitor, self.policy_slot, self.compiled.conditions)
        say({"tier": self.monitor.tier.name.lower(), "states": self.compiled.states})
        self._slot = -1

    def enroll(self, pid: int) -> None:
        """Everything that this process does from here on is judged."""
        self._slot, _ = self.monitor.open_session(self.policy_slot)
        if [key.pid for key in self.monitor.enroll([pid], self._slot)] != [pid]:
            raise RuntimeError("the driver was not enrolled")

    def blocked(self) -> Iterator[dict[str, Any]]:
        """What was blocked since this was asked last."""
        from agentmon.model.events import Decision
        from agentmon.model.operations import Action
        from agentmon.model.tables import NO_RULE

        for event in self.monitor.read(1_000_000):
            if isinstance(event, Decision) and event.session == self._slot and event.verdict >= Action.DENY:
                what = event.object
                rule = None if event.rule == NO_RULE else self.compiled.rules[event.rule]
                yield {
                    "op": event.operation.word,
                    "object": what.decode(errors="replace") if isinstance(what, bytes) else str(what),
                    "rule": rule.id if rule else "",
                    "quiet": rule is not None and rule.quiet,
                    "reason": event.reason.name.lower(),
                    "comm": event.comm,
                }

    def release(self) -> None:
        """The session has ended."""
        self.monitor.close_session(self._slot)

    def close(self) -> None:
        """Detaches."""
        self._stack.close()


@contextlib.contextmanager
def fenced(policy: str) -> Iterator[Fence]:
    """agentmon's programs for a while."""
    fence = Fence(policy)
    try:
        yield fence
    finally:
        fence.close()


def replay(case: dict[str, Any], tokens: Tokens, fence: Fence | None) -> dict[str, Any]:
    """One case: its effects, exit statuses and what was blocked (with the number of the step)."""
    started = _sandbox.start(case, tokens)
    result: dict[str, Any] = {"statuses": [], "blocked": []}
    try:
        if fence:
            fence.enroll(started.driver)
        os.write(started.go, b"!")
        started.link.settimeout(float(case["seconds"]) * max(1, len(case["steps"])) + SLACK_S)
        result |= _hear(started.link, fence, result)
    except (OSError, RuntimeError) as error:
        result["failed"] = repr(error)
    finally:
        os.close(started.go)
        _end(started)
        if fence:
            result["blocked"] += [{"step": len(result["statuses"]), **b} for b in fence.blocked()]
            del result["blocked"][KEPT:]
            fence.release()
    return result


def _hear(link: socket.socket, fence: Fence | None, result: dict[str, Any]) -> dict[str, Any]:
    while True:
        data = link.recv(1 << 20)
        if not data:
            return {"effects": ["halted"]}  # the first process of its namespace: this machine
        message: dict[str, Any] = json.loads(data)
        if "step" not in message:
            return message
        number, status = message["step"]
        result["statuses"].append(status)
        if fence:
            result["blocked"] += [{"step": number, **b} for b in fence.blocked()]


def _end(started: _sandbox.Started) -> None:
    """Ends the warden, and so everything of its namespaces."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    with contextlib.suppress(OSError):
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.waitpid(started.pid, 0)
    started.link.close()


if __name__ == "__main__":
    sys.exit(main())
