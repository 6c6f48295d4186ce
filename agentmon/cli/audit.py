# SPDX-License-Identifier: Apache-2.0
"""``agentmon audit``."""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmon.cli.common import Parser, add_json, add_verb, audit_path, print_json, say
from agentmon.errors import AgentmonError

if TYPE_CHECKING:
    from agentmon.model.records import Record


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "audit",
        "read the audit log, and prove that it was not changed",
        """
        The audit log is one SQLite file, append-only and hash-chained: every record depends on
        all before it. `verify` walks the chain; the head that it prints, kept elsewhere, also
        proves later that the end was not cut off.
        """,
        """
        sudo agentmon audit log --since 1h
        sudo agentmon audit log --session s-7f3a --last 20
        sudo agentmon audit log --json --blocked | jq -r .object
        sudo agentmon audit verify
        """,
    )
    verbs = parser.add_subparsers(dest="audit_verb", metavar="log|verify", required=True, parser_class=Parser)
    log = verbs.add_parser("log", help="print records, oldest first")
    log.add_argument("--session", metavar="SESSION", help="only this session")
    log.add_argument("--blocked", action="store_true", help="only what was denied or killed")
    log.add_argument("--since", metavar="TIME", type=_span_ns, default=0, help="such as 90s, 15m, 2h, 3d")
    log.add_argument("--last", metavar="N", type=_count, help="only the last N of these")
    log.set_defaults(func=handle_log)
    verify = verbs.add_parser("verify", help="walk the hash chain; exit status 2 if it does not hold")
    verify.set_defaults(func=handle_verify)
    for verb in (log, verify):
        verb.add_argument("--file", type=Path, help="another log than this host's")
        add_json(verb)


def handle_log(args: argparse.Namespace) -> int:
    """Print records. 1 if the session that was asked for has none."""
    found = _chosen(args)
    out = None
    for record in found if args.last is None else deque(found, args.last):
        if args.json:
            print_json(record.as_json())
            continue
        from agentmon.cli import render

        out = out or render.console()
        out.print(render.record_line(record))
    return 0


def _chosen(args: argparse.Namespace) -> Iterator[Record]:
    from agentmon.audit.read import read

    path = args.file or audit_path(args)
    since_ns = time.time_ns() - args.since if args.since else 0
    known = not args.session
    for record in read(path, since_ns=since_ns):
        if (args.session and record.session != args.session) or record.time_ns < since_ns:
            continue
        known = True
        if record.blocked or not args.blocked:
            yield record
    if not known:
        raise AgentmonError(
            f"the audit log `{path}` has no record of a session `{args.session}`" + " since then" * bool(since_ns)
        )


def handle_verify(args: argparse.Namespace) -> int:
    """Walk the chain."""
    from agentmon.audit.read import verify

    path = args.file or audit_path(args)
    batches, records, head, problem = verify(path)
    if args.json:
        print_json(
            {
                "path": str(path), "ok": problem is None, "batches": batches, "records": records, "head": head.hex(),
                "problem": {"batch": problem.batch, "message": problem.message} if problem else None,
            }
        )  # fmt: skip
    elif problem is None:
        print(f"{path}: {records} records in {batches} batches hold; head {head.hex()}")
    if problem is not None:
        say(f"`{path}`: batch {problem.batch}: {problem.message}; the {records} records before it hold")
        return 2
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"`{text}` is no number of records; give such as 20")
    return int(text)


def _span_ns(text: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    try:
        return int(float(text[:-1]) * units[text[-1]] * 1e9)
    except (ValueError, KeyError, IndexError):
        raise argparse.ArgumentTypeError(
            f"`{text}` is no span of time; give a number and one of s, m, h, d, such as 15m"
        ) from None
