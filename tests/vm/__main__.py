# SPDX-License-Identifier: Apache-2.0
"""Run a command in a guest by hand: ``./dev vm 6.1 -- uname -r``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from tests.vm import harness, image


def main() -> int:
    """Ends with the command's exit status; 125 if there is no guest to run it in."""
    parser = argparse.ArgumentParser(prog="./dev vm", description=__doc__)
    parser.add_argument("kernel", choices=image.KERNELS)
    parser.add_argument("--cmdline", default="", help="more kernel parameters, such as preempt=full")
    parser.add_argument("--systemd", action="store_true", help="boot with systemd as PID 1")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--console", action="store_true", help="show the guest's console at the end")
    parser.add_argument("--out", type=Path, help="folder to receive what the command leaves in /mnt/out")
    parser.add_argument("--file", action="append", default=[], metavar="GUEST=HOST", help="a file or folder to bring")
    parser.add_argument("command", nargs="+", help="one word is a shell command line; several are run as they are")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("guests are built and run as root: try sudo")
    files = {guest: Path(host) for guest, _, host in (word.partition("=") for word in options.file)}
    command = options.command[0] if len(options.command) == 1 else options.command
    try:
        with harness.run(
            options.kernel,
            command,
            files=files,
            cmdline=options.cmdline,
            systemd=options.systemd,
            timeout_seconds=options.timeout,
            cpus=options.cpus,
            sink=harness.to_stdout,
        ) as result:
            if options.console:
                sys.stderr.write(result.console)
            if options.out:
                shutil.copytree(result.out, options.out, dirs_exist_ok=True)
            return result.status
    except image.VmError as error:
        print(f"vm: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
