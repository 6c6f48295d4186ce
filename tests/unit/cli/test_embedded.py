# SPDX-License-Identifier: Apache-2.0
"""Waiting for a daemon that somebody else is starting."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from agentmon.cli import embedded
from agentmon.errors import AgentmonError
from agentmon.host import starting


def test_who_starts_is_known_until_it_ends(tmp_path: Path) -> None:
    assert starting.under_way(tmp_path) is None
    starting.announce(tmp_path)
    assert starting.under_way(tmp_path) == os.getpid()
    assert (tmp_path / "starting").stat().st_mode & 0o777 == 0o644
    (tmp_path / "starting").write_text(f"{os.getpid()} 1\n")  # another process once had this number
    assert starting.under_way(tmp_path) is None
    (tmp_path / "starting").write_text("nonsense")
    assert starting.under_way(tmp_path) is None
    starting.withdraw(tmp_path)
    starting.withdraw(tmp_path)
    assert starting.under_way(tmp_path) is None


def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "agentmon.toml"
    config.write_text(f'[daemon]\nsocket = "{tmp_path}/control.sock"\nstate = "{tmp_path}"\n')
    monkeypatch.setattr(embedded, "START_WAIT_S", 0.2)
    starting.announce(tmp_path)
    with pytest.raises(AgentmonError, match=rf"`{os.getpid()}`\) is still starting after 0 s; try again later"):
        embedded.connect_or_start(argparse.Namespace(config=config, socket=None))
