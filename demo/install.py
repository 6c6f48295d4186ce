# SPDX-License-Identifier: Apache-2.0
"""Installs the agent that the demo runs, in a folder of its own: it shares nothing with agentmon."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements.txt"


class InstallError(Exception):
    """The agent could not be installed; the message says what to do."""


def agent(version: tuple[int, int] = sys.version_info[:2]) -> Path:
    """The folder with the agent's packages for this version of Python; filled at the first use.

    Raises InstallError.
    """
    text = ".".join(map(str, version))
    stamp = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("AGENTMON_CACHE") or Path.home() / ".cache" / "agentmon")
    folder = cache / f"demo-agent-{text}-{stamp}"
    if folder.exists():
        return folder
    print(
        f"demo: installing by pip, for the agent alone: mini-swe-agent and what it needs (in {folder})", file=sys.stderr
    )
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    if version != sys.version_info[:2]:
        command += ["--no-compile", "--only-binary=:all:", "--python-version", text]
    # else with byte code: as root the agent would write it there, outside of its workspace, and be told off for it
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    try:
        new.chmod(0o755)
        done = subprocess.run(
            [*command, "--target", str(new), "-r", str(REQUIREMENTS)],
            check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
            raise InstallError(f"pip could not install the agent; is a package index reachable?\n{tail}")
        _settle(new)
        os.replace(new, folder)  # complete or not there
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def _settle(packages: Path) -> None:
    """Let the agent's Python meet them once, outside of the fence.

    Some hosts have hooks that change packages when Python starts: a ``.pth`` that adds a company's certificate to
    certifi. And pytest writes byte code of its own of its plugins.
    """
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    environment = {"PATH": os.defpath, "PYTHONPATH": str(packages)}
    with contextlib.suppress(OSError):
        subprocess.run([python, "-m", "pytest", "--version"], check=False, capture_output=True, env=environment)
