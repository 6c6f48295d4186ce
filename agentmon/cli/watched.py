# SPDX-License-Identifier: Apache-2.0
"""Sessions under a baseline: the options of `run` and `enroll`, and how the others show what is known of one."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import stat
from typing import Any

from agentmon.cli.common import fingerprint_settings
from agentmon.model.text import clean

PROFILE_HELP = "watch it by this baseline (`agentmon profile list`): what is unusual raises its risk"

LEARN_HELP = "learn this baseline from it when it ends, and watch it by that as soon as there is one"


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--profile`` and ``--learn``."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--profile", metavar="NAME", help=PROFILE_HELP)
    how.add_argument("--learn", metavar="NAME", help=LEARN_HELP)


def fields(args: argparse.Namespace, program: str) -> dict[str, Any]:
    """What to tell the daemon of it. ``program``: the agent's, a path or a name of a command."""
    if not args.profile and not args.learn and not fingerprint_settings(args).get("profiles"):
        return {}
    return {"profile": args.profile, "learn": args.learn, "agent": _hashed(program)}


def _hashed(program: str) -> dict[str, str] | None:
    """The program with the hash of its content; None if it cannot be read, which says nothing."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return {"path": os.path.realpath(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError:
        return None


def score(found: dict[str, Any] | None) -> str:
    """How far a session is from its baseline, as the daemon told, in a few letters; empty if it is not watched."""
    if not found:
        return ""
    if found.get("error"):
        return "?"
    if to_go := found.get("to_go"):
        return f"learning ({to_go['sessions']} to go)" if to_go["sessions"] else "learning"
    if found.get("score") is None:
        return "-"
    return f"{found['score']:.1f}{arrow(found['trend'])}"


def arrow(trend: float) -> str:
    """Where the score goes: half a spread in 64 acts is a trend."""
    return "↑" if trend > 0.5 else "↓" if trend < -0.5 else ""


def lines(session: dict[str, Any]) -> list[str]:
    """What people should know of a watched session besides: that it is not watched, or why its risk is high."""
    found = session.get("fingerprint") or {}
    if found.get("error"):
        return [f"{session['session']} is not watched: {found['error']}"]
    if not found.get("rose") or session["risk"] == "normal":
        return []
    return [f"{session['session']}: {_risk(session['risk'], found)}: {'; '.join(found['rose']['reasons'][:2])}"]


def why(reply: dict[str, Any]) -> list[str]:
    """The same in full, for the owner who asks why."""
    found = reply.get("fingerprint") or {}
    if not found.get("rose"):
        return []
    return [_risk(reply["risk"], found), *(f"  {clean(reason)}" for reason in found["rose"]["reasons"])]


def _risk(level: str, found: dict[str, Any]) -> str:
    return f"risk {level}, by `{found['profile']}`: score {found['rose']['score']:.1f}"


def facts(found: dict[str, Any] | None) -> list[tuple[str, object]]:
    """All that is known of it, each with its name."""
    if not found:
        return []
    said: list[tuple[str, object]] = [("profile", found["profile"])]
    if found.get("error"):
        return [*said, ("not watched", found["error"])]
    if to_go := found.get("to_go"):
        return [*said, ("learning", f"{to_go['sessions']} sessions, {to_go['windows']} windows to go")]
    if found.get("score") is not None:
        limits = found["thresholds"]
        said.append(("score", f"{found['score']:.2f} ({found['trend']:+.2f} in 64 acts), {found['acts']} acts"))
        said.append(("thresholds", f"elevated above {limits['elevated']:.2f}, high above {limits['high']:.2f}"))
    rose = found.get("rose")
    return [*said, *(("rose", reason) for reason in (rose["reasons"] if rose else ()))]
