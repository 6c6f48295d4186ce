# SPDX-License-Identifier: Apache-2.0
"""``agentmon daemon``."""

from __future__ import annotations

import argparse
from typing import Any

from agentmon.cli.common import UsageError, add_verb, config_path


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "daemon",
        "run the daemon in the foreground",
        """
        Load the kernel programs, prove them with canaries, and answer at the control socket.
        Usually systemd starts it. On SIGTERM the fence of live sessions stays in force; the
        next daemon takes them over. A second daemon on the same host waits a minute for the
        first to end, and is refused.
        """,
        """
        sudo systemctl start agentmon    as a service
        sudo agentmon daemon             by hand
        """,
    )
    parser.add_argument("--embedded", action="store_true", help="end with the last session (what `run` starts)")
    parser.add_argument(
        "--let-go", action="store_true", help="deny what is held and let go on who is frozen; when there is no daemon"
    )
    parser.add_argument("--wait", action="store_true", help="with --let-go: only if no other daemon comes in 30 s")
    parser.add_argument("--ready-fd", type=int, default=-1, metavar="N", help=argparse.SUPPRESS)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from agentmon.daemon.main import let_go, serve

    if args.wait and not args.let_go:
        raise UsageError("--wait goes with --let-go")
    if args.let_go:
        denied = let_go(config_path(args), required=args.config is not None, wait=args.wait)
        print("the next daemon came" if denied is None else f"{denied} held action(s) denied; nobody is frozen")
        return 0
    return serve(config_path(args), required=args.config is not None, embedded=args.embedded, ready_fd=args.ready_fd)
