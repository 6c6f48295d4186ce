# SPDX-License-Identifier: Apache-2.0
"""Standing between a shell and the command: signals forwarded, stops mirrored, the status passed on."""

from __future__ import annotations

import contextlib
import os
import signal

from agentmon.host.process import is_descendant

_FORWARDED = {
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT,
}  # fmt: skip

#: Blocked, and taken one by one.
SIGNALS = _FORWARDED | {signal.SIGCHLD}

_TERMINAL_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


def supervise(pid: int, _status_fd: int = -1) -> int:
    """Wait for the command. Returns its wait status. `SIGNALS` must be blocked already."""
    while True:
        status = _wait(pid)
        if status is not None:
            return status
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGCHLD:
            continue
        # What the terminal sends (SI_KERNEL), it sends to the command as well: same process group. And what the
        # command's own tree sends to its process group must not come back to it.
        if info.si_code > 0 or (info.si_pid and is_descendant(info.si_pid, pid)):
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, info.si_signo)


def _wait(pid: int) -> int | None:
    while True:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found == 0:
            return None
        if not os.WIFSTOPPED(status):
            return status
        if os.WSTOPSIG(status) in _TERMINAL_STOPS:
            # Our shell must see a stopped job. It continues the whole group; a lone SIGCONT to us is passed on.
            os.kill(os.getpid(), signal.SIGSTOP)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
