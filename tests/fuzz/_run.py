# SPDX-License-Identifier: Apache-2.0
"""What all that is fuzzed has in common: where it starts from, how long it goes on, what it leaves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
#: Longer texts are slower, and say no more.
LONGEST = 4_096


def run(what: str, judge: Callable[[bytes], object], texts: Iterable[bytes], words: Iterable[str]) -> None:
    """Fuzz `judge` from `texts` on until the time is over or something breaks, with `words` put in here and there."""
    parser = argparse.ArgumentParser(prog=f"./dev fuzz {what}")
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: %(default)s)")
    args = parser.parse_args()
    work = ROOT / "build" / "fuzz"
    seeds = work / what
    seeds.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        if len(text) <= LONGEST:
            (seeds / f"seed-{number:04}").write_bytes(text)
    dictionary = work / f"{what}.dict"
    dictionary.write_text("".join('"{}"\n'.format(word.replace('"', '\\"')) for word in words))
    # Of time, `judge` counts what the processor spends; by the clock a busy machine would be to blame.
    options = [
        f"-max_total_time={args.seconds}", f"-max_len={LONGEST}", "-timeout=3000", "-report_slow_units=3000",
        "-rss_limit_mb=1024", f"-dict={dictionary}", f"-artifact_prefix={work}/{what}-", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(seeds)], judge)
    atheris.Fuzz()
