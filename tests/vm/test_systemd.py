# SPDX-License-Identifier: Apache-2.0
"""The service on a machine with real systemd: provisioned, started with its hardening, enforcing, restarted."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable

import pytest

from tests.vm import harness, image

#: What runs in the guest, and how its kernel is booted.
SCRIPTS = {"service": "", "service-react": "lsm=landlock,yama preempt=full"}
service = pytest.mark.parametrize("kernel", ["service"])
service_in_react = pytest.mark.parametrize("kernel", ["service-react"])
_building = threading.Lock()


def boot(script: str) -> tuple[int, str, dict[str, str]]:
    """One boot a script: its exit status and output, and the files that it left."""
    # The wheel as a user gets it, on the work disk with the checkout.
    with _building:
        subprocess.run([image.CHECKOUT / "dev", "build", "--wheel"], check=True, stdin=subprocess.DEVNULL)
    command, cmdline = f"/mnt/guest/{script}", SCRIPTS[script]
    with harness.run("6.1", command, cmdline=cmdline, systemd=True, timeout_seconds=1500) as result:
        files = {path.name: path.read_text(errors="replace") for path in result.out.iterdir()}
        return result.status, result.output, files


@pytest.fixture
def seen(booted: Callable[[str], tuple[int, str, dict[str, str]]], kernel: str) -> dict[str, str]:
    """What the script observed, by file name."""
    status, output, files = booted(kernel)
    if status:
        pytest.fail(_story(output, files), pytrace=False)
    return files


def _story(output: str, files: dict[str, str]) -> str:
    return "\n".join([output, *(f"--- {name}\n{text[-3000:]}" for name, text in sorted(files.items()))])


@service
def test_the_unit_has_no_mistakes(seen: dict[str, str]) -> None:
    """systemd itself finds nothing to say about the unit."""
    lines = [line for line in seen["verify"].splitlines() if "agentmon" in line and "not executable" not in line]
    assert not lines


@service
def test_the_service_is_ready_and_enforcing(seen: dict[str, str]) -> None:
    """Under every hardening line BPF loads and the canaries of the daemon are stopped."""
    assert seen["active"] == "active\n", _story("", seen)
    doctor = json.loads(seen["doctor"].splitlines()[-1])
    assert doctor["enforcing"] is True, seen["doctor"]
    assert doctor["tier"] == "lsm"


@service
@pytest.mark.parametrize("process", ["one", "two"])
def test_an_enrolled_process_is_denied(seen: dict[str, str], process: str) -> None:
    """Forbidden: EPERM before the effect. Honest work goes on. Process two acts while the daemon is dead."""
    assert "Operation not permitted" in seen[process], seen[process]
    assert "status 1" in seen[process]
    assert "secret" not in seen[process]
    assert "honest" in seen[process]


@service
def test_the_denial_is_in_the_audit_log(seen: dict[str, str]) -> None:
    """With object and rule."""
    blocked = [line for line in seen["audit"].splitlines() if "/root/.ssh/id_rsa" in line and '"deny"' in line]
    assert blocked, seen["audit"][-2000:]


@service
def test_what_is_held_is_denied_within_a_minute_of_a_crash_for_good(seen: dict[str, str]) -> None:
    """The warden dies with the service, and each next daemon at its start, of a damaged configuration."""
    assert "/root/work/held" in seen["approvals"], _story("", seen)
    assert seen["three-held"] == ""  # it waited
    assert "Operation not permitted" in seen["three"], seen["three"]
    assert "status 1" in seen["three"]
    assert "held\n" not in seen["three"].replace("cat: held", "")
    assert int(seen["seconds"]) <= 60
    assert seen["active-after"] == "active\n", _story("", seen)


@service
def test_the_service_comes_back_after_sigkill(seen: dict[str, str]) -> None:
    """And stops in order when asked to."""
    assert seen["active-again"] == "active\n", _story("", seen)
    assert seen["stopped"] == "inactive\n", _story("", seen)


@service_in_react
def test_an_open_that_is_held_outlives_the_service(seen: dict[str, str]) -> None:
    """Its event is in systemd's store: nobody else waits meanwhile, and the next daemon has it under the same id."""
    story = _story("", seen)
    assert seen["kept"] == "1\n", story
    assert seen["one-held"] == "", story
    assert seen["outsider"] == "as shown\n" * 2, story
    before, after = seen["ids"].split()
    assert before == after, story
    assert seen["one"] == "as shown\nstatus 0\n", story


@service_in_react
def test_an_open_that_is_held_fails_when_the_service_is_stopped(seen: dict[str, str]) -> None:
    assert "as shown" not in seen["two"]
    assert "status 1" in seen["two"], _story("", seen)
    assert seen["kept-stopped"] == "0\n"
