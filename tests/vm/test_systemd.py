# SPDX-License-Identifier: Apache-2.0
"""The service on a machine with real systemd: provisioned, started with its hardening, enforcing, restarted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.vm import harness, image


def boot(_: str) -> tuple[int, str, dict[str, str]]:
    """One boot for all tests here: exit status and output of ``guest/service``, and the files that it left."""
    # The wheel as a user gets it, on the work disk with the checkout.
    subprocess.run([image.CHECKOUT / "dev", "build", "--wheel"], check=True, stdin=subprocess.DEVNULL)
    with harness.run("6.1", "/mnt/guest/service", systemd=True, timeout_seconds=1500) as result:
        files = {path.name: path.read_text(errors="replace") for path in result.out.iterdir()}
        return result.status, result.output, files


@pytest.fixture
def seen(booted: Callable[[], tuple[int, str, dict[str, str]]]) -> dict[str, str]:
    """What ``guest/service`` observed, by file name."""
    status, output, files = booted()
    if status:
        pytest.fail(_story(output, files), pytrace=False)
    return files


def _story(output: str, files: dict[str, str]) -> str:
    return "\n".join([output, *(f"--- {name}\n{text[-3000:]}" for name, text in sorted(files.items()))])


def test_the_unit_has_no_mistakes(seen: dict[str, str]) -> None:
    """systemd itself finds nothing to say about the unit."""
    lines = [line for line in seen["verify"].splitlines() if "agentmon" in line and "not executable" not in line]
    assert not lines


def test_the_service_is_ready_and_enforcing(seen: dict[str, str]) -> None:
    """Under every hardening line BPF loads and the canaries of the daemon are stopped."""
    assert seen["active"] == "active\n", _story("", seen)
    doctor = json.loads(seen["doctor"].splitlines()[-1])
    assert doctor["enforcing"] is True, seen["doctor"]
    assert doctor["tier"] == "lsm"


@pytest.mark.parametrize("process", ["one", "two"])
def test_an_enrolled_process_is_denied(seen: dict[str, str], process: str) -> None:
    """Forbidden: EPERM before the effect. Honest work goes on. Process two acts while the daemon is dead."""
    assert "Operation not permitted" in seen[process], seen[process]
    assert "status 1" in seen[process]
    assert "secret" not in seen[process]
    assert "honest" in seen[process]


def test_the_denial_is_in_the_audit_log(seen: dict[str, str]) -> None:
    """With object and rule."""
    blocked = [line for line in seen["audit"].splitlines() if "/root/.ssh/id_rsa" in line and '"deny"' in line]
    assert blocked, seen["audit"][-2000:]


def test_what_is_held_is_denied_within_a_minute_of_a_crash_for_good(seen: dict[str, str]) -> None:
    """The warden dies with the service, and each next daemon at its start, of a damaged configuration."""
    assert "/root/work/held" in seen["approvals"], _story("", seen)
    assert seen["three-held"] == ""  # it waited
    assert "Operation not permitted" in seen["three"], seen["three"]
    assert "status 1" in seen["three"]
    assert "held\n" not in seen["three"].replace("cat: held", "")
    assert int(seen["seconds"]) <= 60
    assert seen["active-after"] == "active\n", _story("", seen)


def test_the_service_comes_back_after_sigkill(seen: dict[str, str]) -> None:
    """And stops in order when asked to."""
    assert seen["active-again"] == "active\n", _story("", seen)
    assert seen["stopped"] == "inactive\n", _story("", seen)
