# SPDX-License-Identifier: Apache-2.0
"""Imports point one way, as the design has it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "agentmon"

#: What each package may import of agentmon, itself apart.
ALLOWED = {
    "model": set(),
    "policy": {"model", "errors"},
    "plan": {"model", "errors", "policy"},
    "fingerprint": {"model", "errors", "agentmon"},
    "engine": {"model", "errors", "policy", "fingerprint"},
    "kernel": {"model", "errors"},
    "host": {"model", "errors"},
    "audit": {"model", "errors"},
    "control": {"model", "errors"},
    "resolver": {"model", "errors"},
    "daemon": {
        "model",
        "errors",
        "policy",
        "plan",
        "fingerprint",
        "engine",
        "kernel",
        "host",
        "audit",
        "control",
        "resolver",
        "agentmon",
    },
}


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "agentmon" else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "agentmon":
                found.add("agentmon" if parts[-1].startswith("__") or len(parts) == 1 else parts[1])
    return found


@pytest.mark.parametrize("name", ALLOWED)
def test_imports_point_one_way(name: str) -> None:
    for path in (PACKAGE / name).rglob("*.py"):
        assert imported(path) <= ALLOWED[name] | {name}, path


def test_only_the_kernel_package_knows_ctypes_and_only_render_knows_rich() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if "kernel" not in path.parts:
            assert "import ctypes" not in text, path
        if path.name != "render.py":
            assert "import rich" not in text, path
            assert "from rich" not in text, path


def test_only_the_live_views_screen_knows_textual() -> None:
    knows = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "import textual" in (text := path.read_text()) or "from textual" in text
    }
    assert knows == {"cli/live/app.py", "cli/live/panes.py", "cli/live/screens.py"}


def test_what_training_needs_is_imported_only_where_it_is_used() -> None:
    """Watching needs neither numpy nor scikit-learn: the daemon runs without them."""
    code = (
        "import sys, agentmon.fingerprint.watching, agentmon.fingerprint.training, agentmon.cli.main;"
        "print(sorted({'numpy', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
