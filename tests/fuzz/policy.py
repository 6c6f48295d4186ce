# SPDX-License-Identifier: Apache-2.0
"""Fuzz the policy loader and compiler with atheris: ``./dev fuzz policy --seconds 600``.

Starts from the shipped packs and the corpus of malformed policies. What breaks is left in ``build/fuzz`` (``crash-…``):
add it to ``tests/corpus/policies`` with a title.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["agentmon.policy", "agentmon.model"]):
    from tests.support.fuzzing import judge

from agentmon.policy.load import packs, shipped_directory
from agentmon.policy.schema import ACTION_WORDS, MODE_WORDS, OPERATION_WORDS, PolicyModel, RuleModel
from tests.support.corpus import corpus

ROOT = Path(__file__).parents[2]
#: Longer texts are slower, and say no more.
LONGEST = 4_096
WORDS = (
    *OPERATION_WORDS, *ACTION_WORDS, *MODE_WORDS, *PolicyModel.model_fields, *RuleModel.model_fields,
    "except", "pack", "without", "base",
    "{workspace}", "{home}", "{tmp}", "{user}", "~", "**", "/**", "[!a-z]", "{a,b}",
    "10.0.0.0/8", "[::1]:80", "fd00::/8", "8000-9000", "*.example.org:443", "- ", ": ", "&a ", "*a", "!!", "<<",
    "|\\x0a", "---\\x0a", "\\xef\\xbb\\xbf", "\\xff",
)  # fmt: skip


def main() -> None:
    """Fuzz until the time is over or something breaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: %(default)s)")
    args = parser.parse_args()
    work = ROOT / "build" / "fuzz"
    seeds = work / "policy"
    seeds.mkdir(parents=True, exist_ok=True)
    texts = [path.read_bytes() for path in packs([shipped_directory()]).values()] + [case.text for case in corpus()]
    for number, text in enumerate(texts):
        if len(text) <= LONGEST:
            (seeds / f"seed-{number:04}").write_bytes(text)
    dictionary = work / "policy.dict"
    dictionary.write_text("".join('"{}"\n'.format(word.replace('"', '\\"')) for word in WORDS))
    # Of time, `judge` counts what the processor spends; by the clock a busy machine would be to blame.
    options = [
        f"-max_total_time={args.seconds}", f"-max_len={LONGEST}", "-timeout=3000", "-report_slow_units=3000",
        "-rss_limit_mb=1024", f"-dict={dictionary}", f"-artifact_prefix={work}/", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(seeds)], judge)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
