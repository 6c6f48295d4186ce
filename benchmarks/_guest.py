# SPDX-License-Identifier: Apache-2.0
"""The LSM tier: ratios and instruction counts, in an emulated guest. Times mean nothing there and are not told."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import _kernel
from benchmarks._common import HERE

LOOPS, ROUNDS = 400, 9
_PROGRAM = "/root/loops"


def in_guest() -> dict[str, Any]:
    """What the guest measures of itself."""
    with tempfile.TemporaryDirectory(prefix="agentmon-bench-", dir="/tmp") as name:
        folder = Path(name)
        target = folder / "src" / "package" / "module.py"
        target.parent.mkdir(parents=True)
        target.write_text("x = 1\n")
        policy = _kernel.pack(folder)
        times: dict[str, list[int]] = {"pristine": [], "loaded": [], "enrolled": []}
        with _kernel.worker(Path(_PROGRAM), [target]) as loop:
            loop.ask("warm", LOOPS)
            times["pristine"] += [loop.ask("warm", LOOPS)[0] for _ in range(ROUNDS)]
            with _kernel.loaded() as monitor:
                tier = monitor.tier.name.lower()
                cost = _kernel.Cost(monitor.pin_directory)
                instructions = cost.verified()
                cost.close()
                for _ in range(ROUNDS):
                    times["loaded"].append(loop.ask("warm", LOOPS)[0])
                    with _kernel.session(monitor, policy, [loop.pid]):
                        loop.ask("warm", 20)
                        times["enrolled"].append(loop.ask("warm", LOOPS)[0])
            times["pristine"] += [loop.ask("warm", LOOPS)[0] for _ in range(ROUNDS)]
    middle = {condition: statistics.median(values) for condition, values in times.items()}
    return {
        "tier": tier,
        "open + close, loaded / pristine": round(middle["loaded"] / middle["pristine"], 3),
        "open + close, enrolled / pristine": round(middle["enrolled"] / middle["pristine"], 3),
        "instructions the verifier went through": instructions,
    }


def of_kernel(kernel: str) -> dict[str, Any]:
    """Boots a guest with one of the VM tests' kernels, and asks it."""
    from tests.vm import harness

    with tempfile.TemporaryDirectory(prefix="agentmon-bench-") as name:
        program = Path(name) / "loops"
        subprocess.run(["cc", "-O2", "-static", "-o", program, HERE / "loops.c"], check=True)
        with harness.run(kernel, "python3 -m benchmarks._guest", files={_PROGRAM: program}) as result:
            for line in result.output.splitlines():
                if line.startswith("{"):
                    found: dict[str, Any] = json.loads(line)
                    return found
            raise RuntimeError(f"the guest said: {result.output[-500:]}")


if __name__ == "__main__":
    print(json.dumps(in_guest()))
    sys.exit(0)
