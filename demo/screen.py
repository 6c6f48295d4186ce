# SPDX-License-Identifier: Apache-2.0
"""What people see. Fits a terminal of 80 columns; colours only where there is one, and NO_COLOR is honoured."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from agentmon.cli.render import clean
from demo.play import Attempt
from demo.scenario import Step

REACT_LIMITS = (
    "Without BPF LSM this kernel cannot refuse an exec or an open. agentmon kills the",
    "process before it uses the result; a file that it created or emptied stays so.",
    "Network is refused in both tiers. In a VM with BPF LSM: sudo ./dev demo --lsm",
)


class RichScreen:
    """Lines as they come, and a summary."""

    def __init__(self, file: TextIO, *, color: bool | None = None) -> None:
        self._out = Console(file=file, highlight=False, soft_wrap=False, force_terminal=color)
        self._out.width = min(self._out.width, 100) if self._out.is_terminal else 80

    def _line(self, *parts: tuple[str, str]) -> None:
        line = Text.assemble(*((clean(text), style) for text, style in parts))
        self._out.print(line, overflow="ellipsis", no_wrap=True)

    def begin(self, tier: str, why: str, posture: dict[str, Any]) -> None:
        out = self._line
        out(("agentmon demo", "bold"), ("  a real agent (mini-swe-agent, scripted model), as root", ""))
        if tier == "none":
            out(("NO FENCE: ", "bold red"), ("what the agent does when nothing stands in its way", ""))
        else:
            out(("fence    ", "dim"), ("agentmon run -p coding-agent", "cyan"))
            out(("tier     ", "dim"), (tier, "bold"), (f"  ({why.partition(':')[0]})" if why else "", "dim"))
            words: dict[str, list[str]] = {}
            for operation, value in posture.items():
                words.setdefault(value["posture"], []).append(operation)
            out(("posture  ", "dim"), ("; ".join(f"{word} {', '.join(names)}" for word, names in words.items()), "dim"))
        out(("task     ", "dim"), ("fix ISSUE.md of a small repository; a comment in it orders an audit", "dim"))
        self._out.print()

    def work(self, step: Step, status: int, output: str) -> None:
        command = step.command.partition("\n")[0]
        self._line(("  $ ", "green"), (command, ""))
        lines = [line for line in output.strip().splitlines() if line.strip()]
        if lines:
            self._line(("    ", ""), (lines[-1].strip("= "), "red" if status else "dim"))

    def attempt(self, attempt: Attempt) -> None:
        step, record = attempt.step, attempt.record
        self._line(("  $ ", "red"), (step.command, ""))
        if record is None:
            self._line(("    NOT BLOCKED ", "bold white on red"), (f" {step.attempt}: {attempt.outcome}", "red"))
            return
        what = ((f"{step.operation} ", "bold"), (step.object, ""))
        self._line(("    BLOCKED ", "bold red"), *what, (f" → {attempt.outcome}", "yellow"))
        rule = record["rule"] or "default"
        self._line(("            ", ""), (rule, "cyan"), (f": {record['reason']}" if record["reason"] else "", ""))

    def end(self, summary: dict[str, Any]) -> None:
        self._out.print()
        for what, good in summary["work"].items():
            self._line(("  ✓ " if good else "  ✗ ", "green" if good else "bold red"), (f"{what}", ""))
        for item in summary["detail"]:
            good = item["blocked"]
            what = "blocked" if good else "it had its effect" if item["effect"] else "no record of it"
            self._line(
                ("  ✓ " if good else "  ✗ ", "green" if good else "bold red"),
                (f"{item['attempt']}: {what}", ""),
                (f" ({item['outcome']})", "dim"),
            )
        for path in summary["left"]:
            self._line(("  · ", "yellow"), (f"left behind, empty: {path}", "dim"))
        for record in summary["unexpected"]:
            what = f"{record['operation']} {record['object']}: {record['rule'] or 'default'}"
            self._line(("  · ", "yellow"), (f"also blocked: {what}", "yellow"))
        good = summary["work_ok"] and summary["blocked"] == summary["attempts"]
        self._out.print()
        self._line(
            (f"{summary['blocked']} of {summary['attempts']} attempts blocked", "bold green" if good else "bold red"),
            (", and the agent did its work" if summary["work_ok"] else ", but the agent's work is NOT done", "bold"),
        )
        if summary["tier"] == "react":
            for line in REACT_LIMITS:
                self._line((line, "dim"))
