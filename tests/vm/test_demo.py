# SPDX-License-Identifier: Apache-2.0
"""``./dev demo --lsm``: in a guest with BPF LSM each attempt gets EPERM, and nothing is left behind."""

from __future__ import annotations

import os

import pytest

from tests.kernel.test_demo import demo
from tests.vm import image


def test_every_attempt_gets_eperm_and_the_work_is_done() -> None:
    if os.geteuid():
        pytest.skip("guests are built and run as root")
    try:
        image.kernel("6.12")
    except image.VmError as error:
        pytest.skip(str(error))
    status, summary, screen = demo("--lsm")
    assert summary["work_ok"], screen
    assert summary["tier"] == "lsm"
    assert (summary["attempts"], summary["blocked"]) == (7, 7), screen
    assert {item["outcome"] for item in summary["detail"]} == {"EPERM"}, screen
    assert (summary["left"], summary["unexpected"]) == ([], [])
    assert status == 0
