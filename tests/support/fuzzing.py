# SPDX-License-Identifier: Apache-2.0
"""What must hold of any bytes that somebody calls a policy."""

from __future__ import annotations

import re
import time

from agentmon.errors import PolicyError
from agentmon.policy.bind import bind_policy
from agentmon.policy.cases import NEUTRAL
from agentmon.policy.compile import compile_policy
from agentmon.policy.load import load_text
from agentmon.policy.rules import Variables
from agentmon.policy.text import decode

VARIABLES = Variables.of(**NEUTRAL)
#: Processor time for texts of some KiB. Compiling is the most of it; its own limits are tested elsewhere.
SECONDS = 5

_LINE = re.compile(r"[^:\n]+\.yaml:[1-9][0-9]*:[1-9][0-9]*: .*; ")


def judge(data: bytes) -> bool:
    """Load it. Returns whether that succeeds; fails if what comes is neither a policy nor clear errors, or late."""
    before = time.process_time()
    try:
        policy = load_text(decode(data, "p.yaml"), "p.yaml")
        loaded = time.process_time() - before
        assert loaded < SECONDS, f"loading took {loaded:.1f} s"
        if len(policy.packs) == 1:  # the shipped packs compile, and take most of the time
            compile_policy(bind_policy(policy, VARIABLES))
    except PolicyError as error:
        lines = str(error).split("\n")
        assert len(lines) <= 21, "too many errors"
        for line in lines:
            assert _LINE.match(line), f"no place, or no remedy: {line!r}"
            assert line.isprintable(), f"cannot be shown: {line!r}"
            assert len(line) < 1_000, f"too long: {line!r}"
        return False
    finally:
        took = time.process_time() - before
        assert took < 2 * SECONDS, f"took {took:.1f} s"
    return True
