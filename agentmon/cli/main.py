# SPDX-License-Identifier: Apache-2.0
"""``agentmon``: parse, call the verb, turn errors into one clear line and the right exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from agentmon import __version__
from agentmon.cli.common import USAGE, BadUsage, Parser, complain, print_error
from agentmon.errors import AgentmonError

#: verb -> module with `register(subparsers)`. Only the verb asked for is imported.
VERBS = {
    "run": "run",
    "enroll": "enroll",
    "reload": "reload",
    "release": "release",
    "resume": "resume",
    "risk": "risk",
    "ps": "ps",
    "watch": "watch",
    "top": "top",
    "why": "why",
    "ask": "ask",
    "step": "step",
    "approvals": "approvals",
    "approve": "approve",
    "deny": "deny",
    "answer": "answer",
    "hook": "hook",
    "mcp": "mcp",
    "policy": "policy",
    "plan": "plan",
    "replay": "replay",
    "profile": "profile",
    "audit": "audit",
    "doctor": "doctor",
    "daemon": "daemon",
    "completion": "completion",
}

#: They run inside a fence, and leave no byte code (see the package).
FOR_AGENTS = ("why", "ask", "step", "hook", "mcp")

_DESCRIPTION = """\
Fence AI agents on this host with BPF: which programs they may run, which files they may
read and change, whom they may talk to. What steps over the fence is denied before it happens.
"""

_EPILOG = """\
examples:
  sudo agentmon run -- claude          run an agent inside the default policy, coding-agent
  sudo agentmon run -p my.yaml -- CMD  … inside your own
  agentmon watch                       see what is blocked, as it happens
  agentmon top                         … live on one screen, with sessions and rates
  agentmon why                         inside a fence: what was blocked, and what is allowed instead
  agentmon doctor                      what this host's kernel can enforce

exit status: 0 ok, 1 failure, 2 denied or test failed, 3 invalid policy, plan or configuration,
64 bad usage; `run` ends with the status of its command (127 not found, 126 denied or not
executable, 128 + n when signal n ended it). With --json an error is one object on standard
output, too: its lines in `error`, the exit status in `exit`.
"""


def build_parser(only: str | None = None) -> Parser:
    """The whole parser, or (quicker) just what is needed for the verb `only`."""
    import argparse

    parser = Parser(
        prog="agentmon",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"agentmon {__version__}")
    parser.add_argument("--config", metavar="FILE", help="configuration file (default: /etc/agentmon/agentmon.toml)")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for verb, module in VERBS.items():
        if only is None or verb == only:
            importlib.import_module(f"agentmon.cli.{module}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns its exit status."""
    _open_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in _words(arguments)), None)
    if verb in FOR_AGENTS:
        sys.dont_write_bytecode = True
    parser = build_parser(verb if verb in VERBS else None)
    try:
        args: Any = parser.parse_args(arguments)
    except BadUsage as error:
        if "--json" in arguments and verb != "run":  # whose arguments are another program's
            print_error(error.message, USAGE)
        raise
    try:
        return int(args.func(args))
    except AgentmonError as error:
        complain(args, error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit complains
        return 1


def _open_streams() -> None:
    """Streams that the caller closed lead nowhere, for us alone: whatever we start finds them closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # for good


def _words(arguments: list[str]) -> list[str]:
    """The arguments that are not the global options."""
    words = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--config":
            skip = True
        elif not argument.startswith("-"):
            words.append(argument)
    return words


if __name__ == "__main__":
    sys.exit(main())
