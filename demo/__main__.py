# SPDX-License-Identifier: Apache-2.0
"""``./dev demo [--lsm] [--json]``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from demo.install import InstallError, agent
from demo.play import DemoError, play

GUEST_KERNEL = "6.12"
GUEST_PYTHON = (3, 11)  # of the guest's Debian
GUEST_PACKAGES = "/opt/demo-agent"


def main() -> int:
    """0 if every attempt was blocked and the agent's work is done, 1 if not, 64 for bad usage."""
    parser = argparse.ArgumentParser(
        prog="./dev demo", description="A real agent works on a small repository, and obeys an injected instruction."
    )
    parser.add_argument(
        "--lsm", action="store_true", help=f"in a VM with Linux {GUEST_KERNEL}, where BPF LSM is active"
    )
    parser.add_argument("--json", action="store_true", help="a summary as the last line of stdout, the rest on stderr")
    parser.add_argument("--no-fence", action="store_true", help="the same without a fence: each attempt succeeds")
    parser.add_argument("--packages", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--color", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without UTF-8
    if os.geteuid():
        print("demo: BPF programs and namespaces need root: try `sudo ./dev demo`", file=sys.stderr)
        return 1
    for tool, package in (("git", "git"), ("unshare", "util-linux"), ("mount", "util-linux")):
        if not options.lsm and shutil.which(tool) is None:
            print(f"demo: `{tool}` is missing: install {package}", file=sys.stderr)
            return 1
    try:
        summary = _in_guest(options) if options.lsm else _here(options)
    except (DemoError, InstallError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(summary), flush=True)
    return 0 if summary["work_ok"] and summary["blocked"] == summary["attempts"] else 1


def _here(options: argparse.Namespace) -> dict[str, Any]:
    from demo.screen import RichScreen

    file = sys.stderr if options.json else sys.stdout
    screen = RichScreen(file, color=True if options.color else None)
    pause_seconds = 0.7 if file.isatty() else 0.0
    return play(screen, options.packages or agent(), fence=not options.no_fence, pause_seconds=pause_seconds)


def _in_guest(options: argparse.Namespace) -> dict[str, Any]:
    from tests.vm import harness, image

    file = sys.stderr if options.json else sys.stdout
    print(f"demo: booting Linux {GUEST_KERNEL} in an emulator; this takes a minute or two", file=sys.stderr)
    words = ["python3", "-m", "demo", "--json", "--packages", GUEST_PACKAGES]
    words += ["--no-fence"] if options.no_fence else []
    words += ["--color"] if file.isatty() and not os.environ.get("NO_COLOR") else []
    lines = _Lines(file)
    try:
        # through a pipe: a serial line is a device, which the policy does not let an agent write
        command = f"{shlex.join(words)} 2>&1 | cat"
        with harness.run(GUEST_KERNEL, command, files={GUEST_PACKAGES: agent(GUEST_PYTHON)}, sink=lines.feed):
            lines.close()
    except image.VmError as error:
        raise DemoError(str(error)) from error
    if lines.summary is None:
        raise DemoError("the guest's demo gave no summary; what it said is above")
    return lines.summary


class _Lines:
    """Shows a guest's output line by line, and keeps its last one, the summary, for itself."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._rest = b""
        self.summary: dict[str, Any] | None = None

    def feed(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._show(line.decode(errors="replace"))

    def close(self) -> None:
        if self._rest:
            self._show(self._rest.decode(errors="replace"))

    def _show(self, line: str) -> None:
        if line.startswith('{"work_ok"'):
            self.summary = json.loads(line)
        else:
            print(line, file=self._file, flush=True)


if __name__ == "__main__":
    sys.exit(main())
