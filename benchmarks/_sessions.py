# SPDX-License-Identifier: Apache-2.0
"""Real sessions of an agent and attacks, recorded in a guest; then judged by baselines, attacks at random places.

``python -m benchmarks._sessions DIR`` records (hours, under emulation; what is there already is not done again, and
whatever is there is a fair sample). `benchmarks._judged` asks baselines about them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import _cases
from benchmarks._common import say

Case = dict[str, Any]

#: Snippets of each category, and attacks after each round of sessions.
SNIPPETS, A_ROUND = 12, 24
FILE = "sessions.jsonl"
KERNEL = "6.12"


def with_attack(case: Mapping[str, Any], attack: Mapping[str, Any], seed: int) -> Case:
    """The session with the attack's steps at a random place; what the attack needs is there."""
    at = random.Random(f"{case['id']} {seed}").randrange(len(case["steps"]) + 1)
    steps = [*case["steps"][:at], *attack["steps"], *case["steps"][at:]]
    return {
        **case,
        **{key: attack[key] for key in ("files", "ports", "victims", "wanted") if key in attack},
        "id": f"{case['id']}+{attack['id']}",
        "steps": steps,
        "seconds": max(case["seconds"], attack["seconds"]),
        "attack": [at, at + len(attack["steps"])],
    }


def cases(data: Path, seed: int = 1) -> list[Case]:
    """All to record: sessions, attacks by themselves, then sessions with an attack.

    In rounds with one session of each task, so that the work may end anywhere. Raises `OSError` without the data.
    """
    drawn = random.Random(seed)
    by_task = defaultdict(list)
    for case in _cases.sessions(_cases.read(data / _cases.FILES[_cases.SESSIONS])):
        by_task[case["category"]].append(case)
    benign = [[each[n] for each in by_task.values() if n < len(each)] for n in range(max(map(len, by_task.values())))]
    snippets = _cases.sample(list(_cases.snippets(_cases.read(data / _cases.FILES[_cases.SNIPPETS]))), SNIPPETS, seed)
    attacks = [*snippets, *_cases.procedures(_cases.read(data / _cases.FILES[_cases.PROCEDURES]))]
    drawn.shuffle(attacks)
    found = []
    for number, turn in enumerate(benign):
        found += [*turn, *attacks[number * A_ROUND : (number + 1) * A_ROUND]]
    found += attacks[len(benign) * A_ROUND :]
    return [*found, *(with_attack(case, drawn.choice(attacks), seed) for turn in benign for case in turn)]


def record(directory: Path, data: Path, kernel: str, seconds: float) -> int:
    """Records what is not recorded yet. Returns how many sessions there are then."""
    from benchmarks import _efficacy_image
    from tests.vm import harness

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    done = {line["id"] for line in _lines(path)}
    wanted = {case["id"]: case for case in cases(data)}
    rest = [case for name, case in wanted.items() if name not in done]
    say(f"{len(done)} of {len(wanted)} sessions are recorded")
    deadline = time.monotonic() + seconds
    while rest and time.monotonic() < deadline:
        with tempfile.TemporaryDirectory(prefix="agentmon-record-") as name, path.open("a", encoding="utf-8") as out:
            listed = Path(name) / "cases.jsonl"
            listed.write_text("".join(json.dumps(case) + "\n" for case in rest))
            ear = _Ear(out, wanted)
            left = int(deadline - time.monotonic())
            words = ["python3", "-m", "benchmarks._record", "/root/cases.jsonl", str(left)]
            with harness.run(
                kernel, words, files={"/root/cases.jsonl": listed}, root=_efficacy_image.root(), sink=ear,
                memory_mib=3072, timeout_seconds=left + 600.0,
            ):  # fmt: skip
                pass
        done |= ear.told
        if ear.begun:  # it ended its guest: it is not tried again
            done.add(ear.begun)
        elif not ear.told:
            break
        rest = [case for case in rest if case["id"] not in done]
    return len(done)


class _Ear:
    """Takes the guest's lines as they come, and keeps those of sessions."""

    def __init__(self, out: Any, wanted: Mapping[str, Case]) -> None:
        self._out, self._wanted, self._buffer = out, wanted, b""
        self.told: set[str] = set()
        self.begun = ""

    def __call__(self, piece: bytes) -> None:
        *lines, self._buffer = (self._buffer + piece).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line) if line.startswith(b"{") else {}
            except ValueError:
                continue
            if "begin" in message:
                self.begun = message["begin"]
            elif message.get("id") in self._wanted:
                case = self._wanted[message["id"]]
                self._out.write(json.dumps({**message, "task": case["category"], "attack": case.get("attack")}) + "\n")
                self._out.flush()
                self.told.add(message["id"])
                self.begun = ""
                if len(self.told) % 10 == 0:
                    say(f"{len(self.told)} recorded")


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def recorded(logs: Path) -> list[dict[str, Any]]:
    """All that was recorded. Raises `FileNotFoundError`."""
    rows = list(_lines(logs / FILE))
    if not rows:
        raise FileNotFoundError(
            f"`{logs / FILE}` has no sessions: `python -m benchmarks._sessions {logs}` records them"
        )
    return rows


def main() -> int:
    """Record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path, metavar="DIR")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--kernel", default=KERNEL)
    parser.add_argument("--seconds", type=float, default=4 * 3600.0)
    args = parser.parse_args()
    say(f"{record(args.logs, args.data, args.kernel, args.seconds)} sessions are recorded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
