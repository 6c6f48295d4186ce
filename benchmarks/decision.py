# SPDX-License-Identifier: Apache-2.0
"""``./dev bench decision``: what one decision costs, in the kernel and in the daemon."""

from __future__ import annotations

import sys
from functools import partial

from benchmarks import _cost, _evaluator, _guest, _service
from benchmarks._common import NOT_TIMED, Report, arguments, finish, host

PARTS = {
    "kernel": _cost.kernel_cost,
    "open": _cost.open_close,
    "throughput": _cost.throughput,
    "evaluator": _evaluator.evaluator,
    "audit": _service.ring_to_audit,
    "start": _service.start_and_memory,
}


def guest(report: Report, kernel: str) -> None:
    """The LSM tier in a guest."""
    report.results[f"LSM tier, Linux {kernel}, emulated"] = _guest.of_kernel(kernel)


def main() -> int:
    """Run all parts, or those asked for by ``--only``."""
    parser = arguments("what one decision costs, in the kernel and in the daemon; parts: " + ", ".join(PARTS))
    parser.add_argument(
        "--vm",
        action="append",
        default=[],
        metavar="KERNEL",
        help="ratios of the LSM tier in an emulated guest: 6.1, 6.12",
    )
    args = parser.parse_args()
    unknown = set(args.only) - set(PARTS)
    if unknown:
        parser.error(f"no part `{unknown.pop()}`: {', '.join(PARTS)}")
    facts = host()
    report = Report("decision")
    for name, part in PARTS.items():
        if not args.only or name in args.only:
            report.attempt(name, partial(part, rounds=args.rounds))
    if facts["tier"] != "lsm":
        report.results["LSM tier"] = NOT_TIMED + "; its ratios and instruction counts: `--vm 6.12`"
    for kernel in args.vm:
        report.attempt(f"LSM tier, Linux {kernel}", partial(guest, kernel=kernel))
    return finish(report, facts, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
