# SPDX-License-Identifier: Apache-2.0
"""Recorded sessions for the verbs that judge them again: which log, which sessions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentmon.cli.common import audit_path, say

if TYPE_CHECKING:
    from agentmon.policy.recorded import RecordedSession

#: What people read about sessions as arguments.
SESSION_HELP = "a session's id (`agentmon audit log`), `last`, or `all`"


def add_log(parser: argparse.ArgumentParser) -> None:
    """``--file``."""
    parser.add_argument("--file", type=Path, metavar="FILE", help="another audit log than this host's")


def recorded(args: argparse.Namespace, names: Sequence[str]) -> list[RecordedSession]:
    """The sessions of these names in the log, each once.

    Raises:
        AgentmonError: the log cannot be read, or has no such session.
    """
    from agentmon.audit.read import read
    from agentmon.errors import AgentmonError
    from agentmon.policy.recorded import sessions

    path = args.file or audit_path(args)
    by_name = not {"last", "all"} & set(names)
    found = sessions(read(path), set(names) if by_name else None)
    if not found and not by_name:
        raise AgentmonError(f"the audit log `{path}` has no session; run one with `agentmon run`")
    chosen: dict[str, RecordedSession] = {}
    for name in names:
        if name == "all":
            chosen |= found
        elif name == "last":
            last = next(reversed(found))
            chosen[last] = found[last]
        elif name in found:
            chosen[name] = found[name]
        else:
            raise AgentmonError(f"there is no session `{name}` in the audit log `{path}`; see `agentmon audit log`")
    for session in chosen.values():
        if session.unjudged:
            words = ", ".join(f"{count} {word}" for word, count in sorted(session.unjudged.items()))
            say(f"session `{session.id}`: records that cannot be judged again were left out ({words})")
        if not session.workspace and not args.workspace:
            say(f"session `{session.id}`: its workspace is not in the log; taking the current directory (--workspace)")
    return list(chosen.values())
