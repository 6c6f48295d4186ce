# SPDX-License-Identifier: Apache-2.0
"""What ``{workspace}``, ``~`` and ``{user}`` mean to verbs that judge without a daemon."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentmon.policy.recorded import RecordedSession
    from agentmon.policy.rules import Variables


def add_variables(parser: argparse.ArgumentParser, *, recorded: bool = False) -> None:
    """``--workspace``, ``--home``, ``--user``; ``recorded``: a recorded session has its own."""
    usual = ("the session's", "the session's", "the session's")
    if not recorded:
        usual = ("the current directory", "your home", "you, also under sudo")
    parser.add_argument("--workspace", metavar="DIR", help=f"what {{workspace}} is (default: {usual[0]})")
    parser.add_argument("--home", metavar="DIR", help=f"what ~ is (default: {usual[1]})")
    parser.add_argument("--user", metavar="NAME", help=f"what {{user}} is (default: {usual[2]})")


def variables(args: argparse.Namespace, session: RecordedSession | None = None) -> Variables:
    """Those that were given; else the recorded session's; else of a session that the caller would start here.

    Raises:
        PolicyError: a value is no absolute path, or no name.
    """
    import pwd

    from agentmon.policy.rules import Variables

    user = args.user or (session and session.user) or os.environ.get("SUDO_USER") or _name(os.getuid())
    home = (args.home and os.path.realpath(args.home)) or (session and session.home)
    if not home:
        try:
            home = pwd.getpwnam(user).pw_dir
        except KeyError:
            home = os.environ.get("HOME", "/")
        home = os.path.realpath(home)
    workspace = (args.workspace and os.path.realpath(args.workspace)) or (session and session.workspace)
    return Variables.of(workspace=workspace or os.path.realpath("."), home=home, user=user)


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
