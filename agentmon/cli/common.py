# SPDX-License-Identifier: Apache-2.0
"""What the verbs share: options, the daemon's socket, JSON and diagnostics."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from agentmon.errors import AgentmonError
from agentmon.model.text import clean

if TYPE_CHECKING:
    from agentmon.control.client import Client

DEFAULT_CONFIG = Path("/etc/agentmon/agentmon.toml")
USAGE = 64
#: Where the daemon of a session answers, in the environment of what `run` started.
SOCKET_VARIABLE = "AGENTMON_SOCKET"

Subparsers = argparse._SubParsersAction  # noqa: SLF001  # argparse has no public name for it


class UsageError(AgentmonError):
    """Bad usage that argparse cannot see."""

    exit_code = USAGE


class BadUsage(SystemExit):
    """Bad usage that argparse saw; the message is printed already."""

    def __init__(self, message: str) -> None:
        super().__init__(USAGE)
        self.message = message


class Parser(argparse.ArgumentParser):
    """Ends with 64 on bad usage, as sysexits.h has it; 2 means denied here."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Complain of what is not known here, by the verb's own usage: argparse would leave it to the first parser."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Print usage and the mistake, exit 64."""
        message = f"{message}; see `{self.prog} --help`"
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise BadUsage(message)


def add_verb(subparsers: Any, name: str, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A verb's parser, with help that reads like a short manual page."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=textwrap.dedent(description).strip(),
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line on standard output, with a version; of an error, `error` and `exit`",
    )


def say(message: str) -> None:
    """A diagnostic, on standard error."""
    print(f"agentmon: {clean(message)}", file=sys.stderr, flush=True)


def print_json(value: dict[str, Any]) -> None:
    """Data, on standard output."""
    print(json.dumps({"v": 1, **value} if "v" not in value else value, separators=(",", ":")), flush=True)


def print_error(message: str, exit_code: int, **more: Any) -> None:
    """An error as data, on standard output: what ``--json`` promises of each verb."""
    print_json({**more, "error": message, "exit": exit_code})


def complain(args: argparse.Namespace, error: AgentmonError, **more: Any) -> None:
    """An error, on standard error; with ``--json`` as one object on standard output too, with what more is known.

    Where ``args.as_compiler``, lines that begin with their place stand alone, as editors know it from compilers.
    """
    text = str(error) or type(error).__name__
    if getattr(args, "json", False):
        reply = getattr(error, "reply", {})  # the daemon's
        told = {key: value for key, value in reply.items() if key not in ("v", "id", "ok", "error", "code")}
        print_error(text, error.exit_code, **more, **told)
    for line in text.splitlines():
        if getattr(args, "as_compiler", False) and re.match(r".+?:\d+:\d+: ", line):
            print(line, file=sys.stderr)
        else:
            say(line)


def config_path(args: argparse.Namespace) -> Path:
    """The configuration file that was asked for, or the usual one."""
    given = args.config or os.environ.get("AGENTMON_CONFIG")
    return Path(given).absolute() if given else DEFAULT_CONFIG  # a daemon that we start is elsewhere


def socket_path(args: argparse.Namespace) -> Path:
    """Where the daemon answers, by the configuration file. Nothing heavy is imported for that. Raises `ConfigError`."""
    return Path(_setting(args, "socket", "/run/agentmon/control.sock"))


def session_socket(args: argparse.Namespace) -> Path:
    """The same for what an agent runs: `run` says where its daemon answers. Rights do not hang on it."""
    given = os.environ.get(SOCKET_VARIABLE, "")
    return Path(given) if given.startswith("/") and not args.config else socket_path(args)


def audit_path(args: argparse.Namespace) -> Path:
    """Where the audit log is, by the configuration file."""
    return Path(_setting(args, "audit", "/var/lib/agentmon/audit.db"))


def state_path(args: argparse.Namespace) -> Path:
    """Where the daemon keeps what it must remember, by the configuration file."""
    return Path(_setting(args, "state", "/run/agentmon"))


def fingerprint_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the configuration file says of baselines."""
    return _settings(args, "fingerprint")


def _setting(args: argparse.Namespace, name: str, default: str) -> str:
    return str(_settings(args, "daemon").get(name, default))


def _settings(args: argparse.Namespace, table: str) -> dict[str, Any]:
    from agentmon.errors import ConfigError

    path = config_path(args)
    if not path.exists():
        if args.config:
            raise ConfigError(f"there is no configuration file `{path}`")
        return {}
    import tomllib

    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get(table, {})
    except (OSError, ValueError):
        return {}  # the daemon says what is wrong with the file
    return found if isinstance(found, dict) else {}


def connect(args: argparse.Namespace, timeout_s: float | None = 30.0) -> Client:
    """A connection to the daemon. Raises `UnreachableError`."""
    from agentmon.control.client import Client
    from agentmon.control.protocol import UnreachableError

    path = socket_path(args)
    try:
        return Client(path, timeout_s)
    except UnreachableError as error:
        inside = os.environ.get(SOCKET_VARIABLE)
        if not inside or inside == str(path):
            raise
        # another's socket is not asked: who sets a person's environment would choose what they see
        raise UnreachableError(
            f"{SOCKET_VARIABLE} says that this is inside a session, where `agentmon why`, `ask` and `step` are answered"
            f" alone; this verb is for people outside of it. No daemon answers them at `{path}`"
        ) from error


def connect_inside(args: argparse.Namespace, timeout_s: float | None = 30.0) -> Client:
    """The same for verbs that are for agents. Raises `UnreachableError`."""
    from agentmon.control.client import Client

    return Client(session_socket(args), timeout_s)


def workspace_directory(given: str | None) -> str:
    """The true path of the workspace: what was given, else the current directory. Raises `AgentmonError`."""
    try:
        path = os.path.realpath(given or os.getcwd())
    except FileNotFoundError:
        raise AgentmonError("the current directory is gone; cd somewhere, or give --workspace") from None
    if given and not os.path.isdir(path):
        raise AgentmonError(f"the workspace `{given}` is no directory; make it first, or give another")
    return path


def plan_reference(name: str) -> dict[str, str]:
    """A plan as sent to the daemon: its file is read here, with the caller's own rights. Raises `PolicyError`."""
    from agentmon.errors import PolicyError

    if "/" not in name and not Path(name).exists():
        raise PolicyError(f"{name}: there is no such file; give the file of a plan, such as ./plan.yaml")
    return policy_reference(name if "/" in name else f"./{name}")


def policy_reference(name: str) -> dict[str, str]:
    """A policy as sent to the daemon: a file is read here, with the caller's own rights. Raises `PolicyError`."""
    from agentmon.control.protocol import MAX_LINE_BYTES, MAX_POLICY_BYTES
    from agentmon.errors import PolicyError
    from agentmon.policy.text import read_text

    if "/" not in name and not name.endswith((".yaml", ".yml")):
        return {"name": name}
    text = read_text(name)
    if not text.strip():
        raise PolicyError(f"{name}:1:1: the policy is empty; it starts with `policy: NAME`")
    size = len(text.encode())
    # as sent, letters beyond ASCII take more room
    if size > MAX_POLICY_BYTES or len(json.dumps(text)) > MAX_LINE_BYTES - (64 << 10):
        raise PolicyError(f"{name}:1:1: the policy is {size:,} bytes long; at most {MAX_POLICY_BYTES:,} fit: use globs")
    return {"name": str(Path(name).resolve()), "text": text}
