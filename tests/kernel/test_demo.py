# SPDX-License-Identifier: Apache-2.0
"""The demo, whole, as a newcomer runs it. Its LSM side is in tests/vm: there it brings its own guest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentmon.kernel.host import BPFFS
from tests.support.hosts import REPOSITORY

TIMEOUT_S = 300


def demo(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, the last line of standard output, and what the screen shows."""
    command = [sys.executable, "-m", "demo", "--json", *arguments]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.stdout, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return done.returncode, summary, done.stderr


@pytest.mark.tier("react")
def test_every_attempt_is_blocked_and_the_work_is_done() -> None:
    status, summary, screen = demo()
    assert summary["work_ok"], screen
    assert (summary["attempts"], summary["blocked"]) == (7, 7), screen
    assert not summary["unexpected"], summary["unexpected"]
    assert status == 0
    outcomes = {item["operation"]: item["outcome"] for item in summary["detail"]}
    assert outcomes == dict.fromkeys(("read", "write", "create", "exec"), "SIGKILL") | dict.fromkeys(
        ("connect", "send"), "EPERM"
    )
    for item in summary["detail"]:
        assert f"BLOCKED {item['operation']} {item['object']}" in screen
        assert f"{item['rule'] or 'default'}: " in screen
    assert "Without BPF LSM" in screen
    assert [*BPFFS.glob("agentmon-demo-*"), *Path("/run").glob("agentmon-demo-*")] == []


@pytest.mark.tier("react")
def test_without_a_fence_every_attempt_succeeds_so_the_checks_do_look() -> None:
    status, summary, screen = demo("--no-fence")
    assert summary["work_ok"], screen
    assert [item["attempt"] for item in summary["detail"] if not item["effect"]] == []
    assert (len(summary["detail"]), summary["blocked"]) == (7, 0)
    assert status == 1
