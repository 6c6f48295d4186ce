# SPDX-License-Identifier: Apache-2.0
"""`mode: observe` on a live session: nothing is blocked, and what would have been is told."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import Host


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="agentmon-test-") as directory, Host(Path(directory)) as host:
        (host.directory / "secret").write_text("secret\n")
        (host.directory / "other").write_text("other\n")
        yield host


def told(host: Host) -> list[tuple[str, str, str, str]]:
    """(operation, verdict, flags, rule) of the decisions that the audit log has on our files."""
    lines = host.agentmon("audit", "log", "--json").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    return [
        (r["operation"], r["verdict"], r["flags"], r["rule"])
        for r in records
        if r["kind"] == "decision" and Path(r["object"]).parent == host.directory and r["operation"] == "read"
    ]


def test_a_rule(host: Host) -> None:
    secret, other = host.directory / "secret", host.directory / "other"
    policy = host.policy(
        f"  - {{id: tried, on: read, paths: ['{secret}'], action: deny, mode: observe, reason: maybe}}\n"
        f"  - {{id: firm, on: read, paths: ['{other}'], action: deny}}"
    )
    done = host.agentmon("run", "-p", policy, "--", "sh", "-c", f"cat {secret}; cat {secret}; cat {other}; true")
    assert done.stdout == "secret\nsecret\n"
    assert "1 operation(s) would have been blocked" in done.stderr
    assert "1 operation(s) blocked" in done.stderr
    assert told(host) == [("read", "allow", "would-deny", "tried"), ("read", "deny", told(host)[1][2], "firm")]
    log = host.agentmon("audit", "log").stdout
    assert f"would deny read {secret}  tried: maybe" in log


def test_a_policy(host: Host) -> None:
    secret = host.directory / "secret"
    text = host.policy(f"  - {{id: keys, on: read, paths: ['{secret}'], action: kill}}").read_text()
    policy = host.directory / "observed.yaml"
    policy.write_text(
        text.replace("policy: test", "policy: observed\nmode: observe").replace("write: allow", "write: deny")
    )
    done = host.agentmon("run", "-p", policy, "--", "sh", "-c", f"cat {secret}; echo x > {host.directory}/other")
    assert (done.returncode, done.stdout) == (0, "secret\n")
    assert (host.directory / "other").read_text() == "x\n"
    assert ("read", "allow", "would-kill", "keys") in told(host)
    assert "2 operation(s) would have been blocked" in done.stderr
