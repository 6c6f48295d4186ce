# SPDX-License-Identifier: Apache-2.0
"""``./dev bench decision``: what one decision costs, in the kernel and in the daemon."""

from __future__ import annotations

import sys
from functools import partial

from benchmarks import _cost, _evaluator, _service
from benchmarks._common import Report, arguments, finish, host

PARTS = {
    "kernel": _cost.kernel_cost,
    "open": _cost.open_close,
    "throughput": _cost.throughput,
    "evaluator": _evaluator.evaluator,
    "audit": _service.ring_to_audit,
    "start": _service.start_and_memory,
}


def main() -> int:
    """Run all parts, or those asked for by ``--only``."""
    parser = arguments("what one decision costs, in the kernel and in the daemon; parts: " + ", ".join(PARTS))
    args = parser.parse_args()
    unknown = set(args.only) - set(PARTS)
    if unknown:
        parser.error(f"no part `{unknown.pop()}`: {', '.join(PARTS)}")
    facts = host()
    report = Report("decision")
    for name, part in PARTS.items():
        if not args.only or name in args.only:
            report.attempt(name, partial(part, rounds=args.rounds))
    report.results["LSM tier"] = (
        "not timed: this host has no BPF LSM, and time under emulation says nothing; the figures are the react tier's"
    )
    return finish(report, facts, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
