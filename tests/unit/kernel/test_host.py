# SPDX-License-Identifier: Apache-2.0
"""What is read of a kernel that is not this one: whether it preempts itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentmon.kernel import host

CASES = {
    "a server kernel": ("#1 SMP Debian 5.10.1", "", "", "", False),
    "a realtime kernel": ("#1 SMP PREEMPT_RT Debian", "", "", "", True),
    "a preemptible kernel": ("#1 SMP PREEMPT Debian", "", "", "", True),
    "voluntary now": ("#1 SMP PREEMPT_DYNAMIC Debian", "none (voluntary) full", "preempt=full", "", False),
    "switched to full": ("#1 SMP PREEMPT_DYNAMIC Debian", "none voluntary (full)", "preempt=none", "", True),
    "lazy": ("#1 SMP PREEMPT_DYNAMIC Debian", "(lazy) full", "", "", True),
    "booted with none": ("#1 SMP PREEMPT_DYNAMIC Debian", "", "quiet preempt=none", "", False),
    "the last word counts": ("#1 SMP PREEMPT_DYNAMIC Debian", "", "preempt=none preempt=full", "", True),
    "built as voluntary": ("#1 SMP PREEMPT_DYNAMIC Debian", "", "", "CONFIG_PREEMPT_VOLUNTARY=y", False),
    "built as full": ("#1 SMP PREEMPT_DYNAMIC Debian", "", "", "CONFIG_PREEMPT=y", True),
    "nothing is known": ("#1 SMP PREEMPT_DYNAMIC Debian", "", "", "", True),
}


@pytest.mark.parametrize("version,now,cmdline,config,preempts", CASES.values(), ids=CASES)
def test_whether_a_kernel_preempts_itself(
    version: str, now: str, cmdline: str, config: str, preempts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a kernel that says it does not lets go of the tier that is sure there."""
    (tmp_path / "sched").mkdir()
    if now:
        (tmp_path / "sched/preempt").write_text(now + "\n")
    (tmp_path / "cmdline").write_text(cmdline + "\n")
    (tmp_path / "config").write_text(f"# made by hand\n{config}\n")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "here", "6.0", version, "x86_64")))
    monkeypatch.setattr(host, "mount_if_absent", lambda kind, where: None)
    monkeypatch.setattr(host, "DEBUGFS", tmp_path)
    monkeypatch.setattr(host, "_CMDLINE", tmp_path / "cmdline")
    monkeypatch.setattr(host, "_CONFIGS", (str(tmp_path / "absent"), str(tmp_path / "config")))
    assert host.preempts() is preempts
