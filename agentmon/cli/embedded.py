# SPDX-License-Identifier: Apache-2.0
"""A daemon for the lifetime of one session, when none is installed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agentmon.cli.common import config_path, connect, say, state_path
from agentmon.errors import AgentmonError

if TYPE_CHECKING:
    from agentmon.control.client import Client

_ATTEMPTS = 5
#: How long to wait for a daemon that is starting: canaries take a second, in an emulated guest a minute.
START_WAIT_S = 120.0
_SILENT_S = 3.0


def connect_or_start(args: argparse.Namespace) -> Client:
    """A connection to the daemon, which is started if there is none and we are root. Raises `AgentmonError`.

    One that is starting already is waited for.
    """
    from agentmon.control.protocol import UnreachableError

    attempts = 0
    waiting = _Patience()
    while True:
        try:
            client = connect(args)
            client.call("ping")
        except UnreachableError as error:
            if waiting.on(state_path(args)):
                continue
            if os.geteuid() != 0:
                raise AgentmonError(f"{error}; or use sudo: then none is needed") from error
            attempts += 1
            if attempts == _ATTEMPTS:
                raise
            _start(args)
        else:
            return client


class _Patience:
    """Waiting for a daemon that somebody else started."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._told = False

    def on(self, state: Path) -> bool:
        """Wait a little, if one is starting. Raises `AgentmonError` when it has been long enough."""
        from agentmon.host import starting

        pid = starting.under_way(state)
        if pid is None:
            return False
        waited_s = time.monotonic() - self._began
        if waited_s > START_WAIT_S:
            raise AgentmonError(
                f"the daemon (process `{pid}`) is still starting after {START_WAIT_S:.0f} s; try again later, or end it"
            )
        if waited_s > _SILENT_S and not self._told:
            self._told = True
            say(f"waiting for the daemon (process `{pid}`), which is starting")
        time.sleep(0.05)
        return True


def _start(args: argparse.Namespace) -> None:
    read, write = os.pipe2(os.O_CLOEXEC)
    log = state_path(args) / "embedded.log"
    log.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "agentmon.cli.main"]
    if args.config or config_path(args).exists():
        command += ["--config", str(config_path(args))]
    command += ["daemon", "--embedded", "--ready-fd", str(write)]
    # -P, and our own place first: never import from the current directory, which may be the agent's
    environment = dict(os.environ, PYTHONPATH=_search_path())
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    offset = os.fstat(fd).st_size
    try:
        daemon = subprocess.Popen(  # lives on by itself
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=fd, pass_fds=[write],
            start_new_session=True, cwd="/", env=environment,
        )  # fmt: skip
    finally:
        os.close(fd)
        os.close(write)
    try:
        if os.read(read, 1) == b"+":
            return
    finally:
        os.close(read)
    for _ in range(100):
        if daemon.poll() is not None:
            break
        time.sleep(0.05)
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(offset)
        lines = [line.removeprefix("agentmon: ") for line in file.read().strip().splitlines()]
    raise AgentmonError("the daemon did not start: " + ("\n".join(lines[-5:]) or f"see `{log}`"))


def _search_path() -> str:
    own = str(Path(__file__).parents[2])
    rest = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(p) and p != own]
    return os.pathsep.join([own, *rest])
