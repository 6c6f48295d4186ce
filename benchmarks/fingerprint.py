# SPDX-License-Identifier: Apache-2.0
"""``./dev bench fingerprint``: whether the fingerprint tells attacks from work, and keeps what it promises."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from benchmarks import _behaviour, _calls
from benchmarks._common import Report, arguments, finish, host
from benchmarks._plots import DIRECTORY

PARTS = {
    "calls": _calls.sequences,
    "sessions": _behaviour.recorded,
    "calibration": _behaviour.calibration,
    "cost": _behaviour.cost,
    "drift": _behaviour.drift,
}


def main() -> int:
    """Run all parts, or those asked for by ``--only``."""
    parser = arguments("detection, calibration, cost and drift of the fingerprint; parts: " + ", ".join(PARTS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="audit logs of sessions for the part `sessions`")
    parser.add_argument("--plots", type=Path, default=DIRECTORY, metavar="DIR", help="default: %(default)s")
    args = parser.parse_args()
    unknown = set(args.only) - set(PARTS)
    if unknown:
        parser.error(f"no part `{unknown.pop()}`: {', '.join(PARTS)}")
    facts = host()
    report = Report("fingerprint")
    for name, part in PARTS.items():
        if not args.only or name in args.only:
            report.attempt(name, partial(part, args=args))
    return finish(report, facts, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
