# SPDX-License-Identifier: Apache-2.0
"""``agentmon approve --always``: the policy is edited before the daemon is told."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import pwd
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmon.cli.common import UsageError, connect, say
from agentmon.errors import AgentmonError
from agentmon.model.text import clean

if TYPE_CHECKING:
    from agentmon.policy.approving import Edit


@dataclass(frozen=True, slots=True)
class _Target:
    """The file to write, and what is in it, or will be (``old`` None: there is none yet)."""

    path: str
    old: str | None
    text: str


def write(args: argparse.Namespace) -> dict[str, Any] | None:
    """Show, ask, write. None: that was not wanted. Raises `AgentmonError`; then nothing was written."""
    if not args.yes and not sys.stdin.isatty():
        raise UsageError("--always asks whether to write the policy: run it on a terminal, or give --yes")
    approval = _find(args)
    target = _target(approval)
    edit = _edit(approval, target)
    changes = _diff(target, edit.text)
    out = sys.stderr if args.json else sys.stdout
    print("".join(changes), end="", file=out, flush=True)
    if edit.writable:
        say(f"warning: the policy lets its own agent write `{target.path}`; keep it where the agent may not write")
    if approval["operation"] == "exec":
        say("it will be started with any arguments that this rule names, or with any if it names none")
    if not args.yes:
        print(f"Write this to {clean(target.path)}, and approve {args.id} for the session? [y/N] ", end="", file=out)
        out.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            say(f"nothing was written; {args.id} still waits")
            return None
    replace(target.path, target.old, edit.text)
    if not args.json:
        how = f" (use it with -p {clean(target.path)})" if target.path != approval["policy_file"] else ""
        print(f"wrote rule {edit.rule} to {clean(target.path)}{how}")
    return {"file": target.path, "rule": edit.rule, "diff": "".join(changes)}


def _find(args: argparse.Namespace) -> dict[str, Any]:
    with connect(args) as client:
        found: list[dict[str, Any]] = client.call("approvals")["approvals"]
    for approval in found:
        if approval["id"] == args.id:
            return approval
    raise AgentmonError(f"nothing waits under `{args.id}` (any more); see `agentmon approvals`")


def _target(approval: dict[str, Any]) -> _Target:
    from agentmon.policy.approving import stub

    given = approval.get("policy_file", "")
    if not given:
        raise AgentmonError("what policy the session is under was lost; approve for the session")
    if "/" in given or given.endswith((".yaml", ".yml")):
        text = _read(given)
        if text is None:
            raise AgentmonError(f"`{given}`, which the session is under, is gone; approve for the session")
        return _Target(given, text, text)
    name, text = stub(given)
    home = pwd.getpwuid(os.geteuid()).pw_dir
    path = f"{home}/.config/agentmon/policies/{name}.yaml"
    old = _read(path)
    return _Target(path, old, text if old is None else old)


def _edit(approval: dict[str, Any], target: _Target) -> Edit:
    from agentmon.model.operations import Operation
    from agentmon.policy.approving import Held, approve_always
    from agentmon.policy.rules import Variables

    operation = Operation[approval["operation"].upper()]
    held = Held(operation, approval["object"], approval["rule"], also_read=approval["also_read"])
    variables = Variables.of(workspace=approval["workspace"], home=approval["home"], user=approval["user"])
    who = os.environ.get("SUDO_USER") if os.geteuid() == 0 else None
    who = who or pwd.getpwuid(os.getuid()).pw_name
    return approve_always(target.text, target.path, variables, held, who, time.strftime("%Y-%m-%d"))


def _diff(target: _Target, new: str) -> list[str]:
    before = target.path if target.old is not None else "/dev/null"
    old = (target.old or "").splitlines(keepends=True)
    lines = difflib.unified_diff(old, new.splitlines(keepends=True), before, target.path)
    # a file without a newline at its end must not run into the next line; nothing in it may move a cursor
    return ["\t".join(map(clean, line.rstrip("\r\n").split("\t"))) + "\n" for line in lines]


def _read(path: str) -> str | None:
    """The text of a plain file. None: there is none. Raises `AgentmonError`."""
    try:
        with _directory(path) as directory:
            return _content(path, directory)[0]
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise AgentmonError(f"cannot read `{path}`: {error}") from error


@contextlib.contextmanager
def _directory(path: str) -> Any:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _content(path: str, directory: int) -> tuple[str, os.stat_result]:
    # not by another's symbolic link, nor a pipe: root may be asked to edit what an agent's user owns
    fd = os.open(os.path.basename(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise AgentmonError(f"`{path}` is no plain file")
        return file.read().decode(), status


def replace(path: str, old: str | None, new: str) -> None:
    """Put the new text in the place of the old one, at once; the file keeps its owner and mode. Raises `AgentmonError`.

    ``old`` None: there is no such file.
    """
    name = os.path.basename(path)
    part = f".{name}.{os.getpid()}.new"
    try:
        if old is None:
            Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        elif not os.access(path, os.W_OK, effective_ids=True):
            raise AgentmonError(f"you may not write `{path}`: let its owner approve, or approve for the session")
        with _directory(path) as directory:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(part, flags, 0o600, dir_fd=directory)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(new.encode())
                    _take_over(path, old, directory, fd)
                    file.flush()
                    os.fsync(fd)
                os.replace(part, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                os.unlink(part, dir_fd=directory)
                raise
            os.fsync(directory)
    except OSError as error:
        raise AgentmonError(f"cannot write `{path}`: {error}") from error


def _take_over(path: str, old: str | None, directory: int, fd: int) -> None:
    """The old file's owner and mode, if it is still what was shown."""
    try:
        text, status = _content(path, directory)
    except FileNotFoundError:
        text = None
    if text != old:
        raise AgentmonError(f"`{path}` was changed meanwhile; look again")
    if text is not None:
        mine = os.fstat(fd)
        if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
            os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, stat.S_IMODE(status.st_mode))
