# SPDX-License-Identifier: Apache-2.0
"""``agentmon doctor``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from agentmon.cli.common import add_json, add_verb, connect, print_json, state_path
from agentmon.model.text import clean


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "doctor",
        "say what this host can enforce, and prove it",
        """
        Look at the kernel and what agentmon needs of it, at every program, and send out live
        canaries: throw-away fenced processes that try what is forbidden. `enforcing` is said
        only when all of them were really stopped; then the exit status is 0, else 1.

        Postures: `prevents` (refused before any effect), `stops` (killed before it could use the
        result), `detects` (recorded, and killed, but it has happened), `blind`. HOLD is what becomes
        of what a rule holds: it waits for an answer, always or only where the rule names the file
        exactly, or is denied.
        """,
        """
        sudo agentmon doctor
        agentmon doctor --json | jq .posture
        """,
    )
    parser.add_argument("--skip", action="append", default=[], metavar="PROGRAM", help=argparse.SUPPRESS)
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Look, prove, tell."""
    from agentmon.cli import facts
    from agentmon.control.protocol import UnreachableError

    host = facts.collect()
    report: dict[str, Any] = {"enforcing": False, "error": ""}
    try:
        if args.skip:
            raise UnreachableError("not asked")
        with connect(args) as client:
            reply = client.call("doctor")
        report |= {key: value for key, value in reply.items() if key not in ("id", "ok", "v")}
        report["daemon"] = f"{reply['version']}, pid {reply['pid']}" + (", embedded" if reply["embedded"] else "")
    except UnreachableError:
        report["daemon"] = "not running"
        if os.geteuid() == 0:
            report |= _own(args.skip, state_path(args))
        else:
            report["error"] = "without a daemon only root can send out canaries: use sudo"
    report["host"] = [{"name": f.name, "ok": f.ok, "value": f.value, "remedy": f.remedy} for f in host]
    if args.json:
        print_json(report)
    else:
        _show(report)
    return 0 if report["enforcing"] else 1


def _own(skip: list[str], state: Path) -> dict[str, Any]:
    """Load the programs for ourselves, beside any that are there, and take them away again."""
    from agentmon.daemon.health import check
    from agentmon.daemon.policies import PolicyBook
    from agentmon.errors import AgentmonError
    from agentmon.kernel import canary, objects
    from agentmon.kernel.host import BPFFS
    from agentmon.kernel.monitor import Monitor
    from agentmon.model.operations import OPERATIONS, hold_word

    for stale in BPFFS.glob("agentmon-doctor-*"):
        if not Path("/proc", stale.name.rpartition("-")[2]).exists():
            objects.remove(stale)
    try:
        monitor = Monitor.open(pin_dir=BPFFS / f"agentmon-doctor-{os.getpid()}", skip=skip)
    except (AgentmonError, OSError, KeyError) as error:
        return {"error": str(error)}
    try:
        health = check(monitor, PolicyBook(), state)
        notes = canary.NOTES.get(monitor.tier, {})
        return {
            "tier": monitor.tier.name.lower(),
            "why_react": monitor.why_react,
            "enforcing": health.enforcing,
            "error": health.error,
            "programs": monitor.programs(),
            "posture": {
                op.word: {
                    "posture": str(health.posture(op)),
                    "hold": hold_word(monitor.tier, monitor.holds, op),
                    "note": notes.get(op, ""),
                }
                for op in OPERATIONS
            },
            "canaries": [
                {"operation": f.operation.word, "attempt": f.attempt, "posture": str(f.posture), "note": f.note}
                for f in health.findings
            ],
            "canary_ms": round(health.duration_s * 1000, 1),
            "skipped": health.skipped,
        }
    finally:
        monitor.detach()


def _show(report: dict[str, Any]) -> None:
    from agentmon.cli import render

    out = render.console()
    out.print(
        render.table(
            ("HOST", "", "", "REMEDY"),
            [(f["name"], render.styled("ok" if f["ok"] else "bad"), f["value"], f["remedy"]) for f in report["host"]],
        )
    )
    out.print(f"\ndaemon: {report['daemon']}")
    if "tier" in report:
        out.print(f"tier:   {report['tier']}" + (f" ({report['why_react']})" if report.get("why_react") else ""))
        out.print()
        out.print(
            render.table(
                ("PROGRAM", "STATE"),
                [(name, render.styled(state)) for name, state in sorted(report["programs"].items())],
            )
        )
        out.print()
        out.print(
            render.table(
                ("CANARY", "", "RESULT", "NOTE"),
                [(c["operation"], c["attempt"], render.styled(c["posture"]), c["note"]) for c in report["canaries"]],
            )
        )
        out.print()
        out.print(render.postures(report["posture"]))
    if report.get("skipped"):
        out.print(
            f"\nThis kernel skipped {report['skipped']} runs of programs while the canaries were out: it preempts "
            "tracepoints,\nand an action may go unseen now and then. `lsm=…,bpf` on the kernel's command line mends it."
        )
    error = report.get("error") or report.get("canary_error")
    if error:
        out.print(f"\n{clean(error)}")
    out.print()
    out.print(
        "enforcing" if report["enforcing"] else "NOT enforcing",
        style="bold green" if report["enforcing"] else "bold red",
    )
