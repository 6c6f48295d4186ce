# SPDX-License-Identifier: Apache-2.0
"""Fuzz what reads messages to the daemon, with atheris: ``./dev fuzz control --seconds 600``.

Starts from a request of each verb. What breaks is left in ``build/fuzz`` (``control-crash-…``): add it to
``tests/unit/control/test_fuzz.py`` as an example.
"""

from __future__ import annotations

import atheris

with atheris.instrument_imports(include=["agentmon.control", "agentmon.daemon.requests"]):
    from tests.support.fuzzing import judge_messages

from agentmon.daemon.requests import VERBS
from tests.fuzz._run import run
from tests.support.fuzzing import REQUESTS

WORDS = (
    *VERBS, *(name for request, _, _ in VERBS.values() for name in request.model_fields), "v", "id", "verb",
    "true", "null", "-1", "1e999", "NaN", "4294967296", "\\\\ud800", "\\x00", "\\x0a", "\\xff", "[[[[", "{}",
)  # fmt: skip

if __name__ == "__main__":
    run("control", judge_messages, REQUESTS, WORDS)
