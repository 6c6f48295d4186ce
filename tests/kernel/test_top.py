# SPDX-License-Identifier: Apache-2.0
"""`agentmon top` in a terminal, on a real daemon."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hosts import Host
from tests.support.terminal import Terminal


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


@pytest.mark.parametrize("end", [subprocess.Popen.terminate, subprocess.Popen.kill])
def test_a_blocked_operation_is_seen_also_after_the_daemon_began_anew(
    host: Host, end: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    """Of a session that began before that, too."""
    daemon = host.start()
    secrets = [host.directory / name for name in ("one-secret", "two-secrets", "three-secrets")]
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
        reads = ("run", "-p", policy, "--", "sh", "-c", 'read name; cat "$name"; read end')
        with host.spawn(*reads, stdin=subprocess.PIPE) as run:
            terminal.until("sh -c read name; cat")  # the session, with its command
            end(daemon)
            daemon.wait()
            terminal.until("daemon is gone, waiting")
            gone = len(terminal.text)
            host.start()
            terminal.until("enforcing", after=gone)  # it follows the new one
            assert run.stdin is not None
            run.stdin.write(f"{secrets[1]}\n")
            run.stdin.flush()
            terminal.until(str(secrets[1]))
            run.terminate()
        with host.spawn("run", "-p", policy, "--", "sh", "-c", f"cat {secrets[2]}; sleep 1000") as run:
            terminal.until(str(secrets[2]))
            terminal.until(f"sh -c cat {secrets[2]}")
            run.terminate()
        terminal.type("q")
        assert terminal.ended() == 0
