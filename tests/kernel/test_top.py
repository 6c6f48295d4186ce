# SPDX-License-Identifier: Apache-2.0
"""`agentmon top` in a terminal, on a real daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import Host
from tests.support.terminal import Terminal


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


def test_a_blocked_operation_is_seen_also_after_the_daemon_began_anew(host: Host) -> None:
    daemon = host.start()
    secrets = [host.directory / "one-secret", host.directory / "two-secrets"]
    for secret in secrets:
        secret.write_text("x")
    policy = host.policy(
        f"  - {{id: secret, on: read, paths: ['{host.directory}/*-secret*'], action: deny, reason: it is secret}}"
    )
    environment = host.environment() | {"TERM": "xterm"}
    with Terminal(host.command("top"), environment, size=(200, 24)) as terminal:
        terminal.until("enforcing")
        terminal.until("no live sessions")
        host.agentmon("run", "-p", policy, "--", "cat", secrets[0])
        terminal.until(str(secrets[0]))
        terminal.until("secret: it is secret")
        terminal.type("gj\r")  # the first is the session's beginning
        terminal.until("agentmon policy explain read")
        terminal.type("q")
        daemon.terminate()
        daemon.wait()
        terminal.until("daemon is gone, waiting")
        host.start()
        with host.spawn("run", "-p", policy, "--", "sh", "-c", f"cat {secrets[1]}; sleep 1000") as run:
            terminal.until(str(secrets[1]))
            terminal.until(f"sh -c cat {secrets[1]}")  # the session, with its command
            run.terminate()
        terminal.type("q")
        assert terminal.ended() == 0
