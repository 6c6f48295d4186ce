# SPDX-License-Identifier: Apache-2.0
"""The child of ``run``: it waits, fenced or dead, until it is let go, and only then becomes the command."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentmon.errors import AgentmonError
from agentmon.kernel import prctl


@dataclass(frozen=True, slots=True)
class Target:
    """Whom the command runs as. `drop`: credentials change before exec."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str
    shell: str
    drop: bool

    def environment(self) -> dict[str, str]:
        """The command's environment: as it is, but with the target's own home and name if credentials change."""
        environment = dict(os.environ)
        if self.drop:
            environment |= {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        return environment


def target_user(user: str | None, *, as_root: bool) -> Target:
    """Whom to run as: the caller, whoever called sudo, or `user`. Raises `AgentmonError`."""
    me = os.geteuid()
    if user is not None:
        try:
            entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        except KeyError:
            raise AgentmonError(f"there is no user `{user}`; see `getent passwd`") from None
        if me not in (0, entry.pw_uid):
            raise AgentmonError(f"only root may run a command as `{user}`; use sudo")
        return _target(entry, drop=entry.pw_uid != me)
    sudo = os.environ.get("SUDO_UID", "")
    if me == 0 and not as_root and sudo.isdigit() and int(sudo) != 0:
        try:
            return _target(pwd.getpwuid(int(sudo)), drop=True)
        except KeyError:
            raise AgentmonError(f"SUDO_UID is `{sudo}`, which is no user here; give --user or --as-root") from None
    try:
        entry = pwd.getpwuid(me)
    except KeyError:
        return Target(me, os.getegid(), tuple(os.getgroups()), str(me), "/", "/bin/sh", drop=False)
    return _target(entry, drop=False)


def _target(entry: pwd.struct_passwd, *, drop: bool) -> Target:
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)  # as initgroups(3) would set them
    return Target(
        entry.pw_uid, entry.pw_gid, tuple(groups), entry.pw_name, entry.pw_dir, entry.pw_shell or "/bin/sh", drop
    )


class Child:
    """A forked process that waits at a pipe, ready to be enrolled. It dies with us, and with the pipe."""

    def __init__(
        self, command: Sequence[str], target: Target, mask: Iterable[int], variables: Mapping[str, str] | None = None
    ) -> None:
        """`mask`: the signal mask that the command gets; `variables`: more of its environment."""
        environment = target.environment() | dict(variables or {})
        candidates = _candidates(command[0], environment.get("PATH", os.defpath))
        go_read, self._go = os.pipe2(os.O_CLOEXEC)
        self._status, status_write = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._go)
                os.close(self._status)
                _become(go_read, status_write, candidates, list(command), target, environment, parent, mask)
            finally:
                os._exit(126)
        os.close(go_read)
        os.close(status_write)
        os.read(self._status, 1)  # it gave up its privileges, or ended: the daemon looks at what it is then

    def kill(self) -> None:
        """It was never let go: end it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def release(self, close: Sequence[int], *, unjudged: bool) -> int:
        """It is fenced: let it go on, without these descriptors. Returns a descriptor for `failure`.

        `unjudged`: see `prctl.refuse_calls`.
        """
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, json.dumps({"unjudged": unjudged, "close": list(close)}).encode() + b"\n")
        os.close(self._go)
        return self._status

    @staticmethod
    def failure(status: int) -> tuple[int, str] | None:
        """After its end: errno and path of an exec that failed, None if it became the command (or was killed)."""
        data = os.read(status, 65536)
        os.close(status)
        if not data:
            return None
        number, _, path = data.partition(b" ")
        return int(number), os.fsdecode(path)


def _candidates(name: str, path: str) -> list[str]:
    if "/" in name or not name:
        return [name] if name else []
    return [os.path.join(directory or ".", name) for directory in path.split(os.pathsep)]


def _become(
    go: int, status: int, candidates: list[str], command: list[str], target: Target, environment: dict[str, str],
    parent: int, mask: Iterable[int],
) -> None:  # fmt: skip
    """In the child. Once it is fenced it opens nothing: its own reads would be judged as the agent's."""
    prctl.die_with_parent(parent)
    if os.geteuid() != 0:
        prctl.no_new_privs()  # before enrolment: the daemon looks
    os.write(status, b"+")
    data = b""
    while not data.endswith(b"\n"):
        chunk = os.read(go, 65536)
        if not chunk:
            os._exit(128 + signal.SIGKILL)  # nobody will let us go
        data += chunk
    go_on = json.loads(data)
    prctl.refuse_calls(unjudged=go_on["unjudged"])
    for fd in go_on["close"]:
        with contextlib.suppress(OSError):
            os.close(fd)
    if target.drop:
        os.setgroups(target.groups)
        os.setresgid(target.gid, target.gid, target.gid)
        os.setresuid(target.uid, target.uid, target.uid)
        prctl.die_with_parent(parent)  # forgotten when credentials changed
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores these; the command should not inherit that
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    failed, path = errno.ENOENT, command[0]
    for candidate in candidates:
        try:
            os.execve(candidate, command, environment)  # noqa: S606  # the user's own command
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                continue
            failed, path = error.errno or errno.EPERM, candidate
            if failed != errno.EACCES:  # execvp(3) looks on only past what may not be searched or run
                break
        except ValueError:
            failed, path = errno.EINVAL, candidate
            break
    os.write(status, b"%d %s" % (failed, os.fsencode(path)))
    os._exit(127 if failed == errno.ENOENT else 126)
