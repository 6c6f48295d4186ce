# SPDX-License-Identifier: Apache-2.0
"""Starting the daemon: one at a time, kernel first, then everything else."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from agentmon.control.client import reachable
from agentmon.daemon import gatekeeping, warden
from agentmon.daemon.config import PATH, Config, load
from agentmon.errors import AgentmonError, ConfigError, NotSupportedError
from agentmon.host import starting
from agentmon.kernel import priority
from agentmon.kernel.monitor import Monitor

#: How long to wait for another daemon that is just ending.
LOCK_WAIT_S = 60.0


def serve(config_path: Path = PATH, *, required: bool = False, embedded: bool = False, ready_fd: int = -1) -> int:
    """Run the daemon to its end. Returns its exit status. Raises `AgentmonError`.

    `ready_fd` gets one byte when requests are answered: by this daemon, or (embedded) by one that was there already.
    """
    if os.geteuid() != 0:
        raise NotSupportedError("the daemon needs root, to load programs into the kernel; use sudo")
    config = load(config_path, required=required)
    os.umask(0o077)

    def told() -> None:
        if ready_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(ready_fd, b"+")
                os.close(ready_fd)

    def ready() -> None:
        starting.withdraw(config.daemon.state)
        told()

    lock = _lock(config, embedded=embedded)
    if lock is None:
        told()
        return 0
    try:
        starting.announce(config.daemon.state)
        return _serve(config, embedded, ready)
    finally:
        starting.withdraw(config.daemon.state)
        os.close(lock)


def let_go(config_path: Path = PATH, *, required: bool = False, wait: bool = False) -> int | None:
    """Deny what is held and let go on who is frozen. Returns how many were denied. Raises `AgentmonError`.

    `wait`: give the next daemon time to come (`warden.GRACE_S`). None: it came, and sees to it.
    """
    config = _config_of_the_dead(config_path, required=required)
    pins, state = config.daemon.pins, config.daemon.state
    with _lock_file(state) as lock:
        if wait and lock is not None and not warden.nobody_comes(lock, state):
            return None
        if not wait and reachable(config.daemon.socket):
            raise AgentmonError("a daemon runs, and sees to what is held: use `agentmon approvals` and `agentmon deny`")
        return sum(warden.let_go(build, warden.lot_name(pins)) for build in sorted(pins.glob("*")) or [pins])


def _config_of_the_dead(path: Path, *, required: bool) -> Config:
    """Nobody may stay frozen for want of a file that can be read: it may be what the daemon died of."""
    try:
        return load(path, required=required)
    except ConfigError as error:
        if required:
            raise
        print(f"{error}\nagentmon: going by the defaults", file=sys.stderr, flush=True)
        return Config()


def _lock_file(state: Path) -> contextlib.AbstractContextManager[BinaryIO | None]:
    """None in it: no daemon was ever here."""
    try:
        return open(state / "lock", "rb")
    except FileNotFoundError:
        return contextlib.nullcontext()


def _serve(config: Config, embedded: bool, ready: Callable[[], None]) -> int:
    priority.hasten()
    gates = gatekeeping.take_over(config.daemon.state)
    loading = _load_ahead(config)
    from agentmon.daemon.app import Daemon

    os.waitpid(loading, 0)
    monitor = _monitor(config)  # takes over what is pinned by now
    daemon = Daemon(config, monitor, embedded=embedded, gates=gates)
    asyncio.run(daemon.run(ready))
    return 0


def _monitor(config: Config) -> Monitor:
    return Monitor.open(pin_dir=config.daemon.pins, park_ms=config.hold.park_ms)


def _load_ahead(config: Config) -> int:
    """Have the programs loaded and pinned by a child, whose PID is returned: for as long, Python reads its own.

    What goes wrong there goes wrong again when we open them ourselves, and is told then.
    """
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            _monitor(config)
        os._exit(0)
    return child


def _lock(config: Config, *, embedded: bool) -> int | None:
    """Be the only daemon of this state directory. None: another one answers, and that is as good."""
    path = config.daemon.state / "lock"
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.parent.chmod(0o755)  # the socket in it is for everyone
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AgentmonError(f"cannot use the state directory `{path.parent}`: {error}") from error
    deadline = time.monotonic() + LOCK_WAIT_S
    waiting = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if embedded and reachable(config.daemon.socket):
                os.close(fd)
                return None
            if time.monotonic() > deadline:
                os.close(fd)
                raise AgentmonError(
                    f"another daemon holds `{path}`, and did not end within {LOCK_WAIT_S:.0f} s; if `agentmon run`"
                    " started it, it ends with its last session"
                ) from None
            if not waiting:
                waiting = True
                print(f"agentmon: another daemon holds `{path}`; waiting for its end", file=sys.stderr, flush=True)
            time.sleep(0.05)
        else:
            return fd
