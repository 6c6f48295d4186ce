# SPDX-License-Identifier: Apache-2.0
"""A process that learns from one session and ends: scikit-learn and its threads are no part of the daemon.

The order is one JSON object on standard input, what came of it one on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from agentmon.audit.read import read
from agentmon.errors import AgentmonError
from agentmon.fingerprint import learning
from agentmon.fingerprint.document import Agent
from agentmon.fingerprint.store import Store, shipped_directory
from agentmon.fingerprint.tokens import Token, Tokens
from agentmon.fingerprint.training import Recorded

#: The daemon's last records of a session may still be on their way to the disk.
_TRIES, _PAUSE_S = 50, 0.2


def main() -> int:
    """Learn. 1: it failed, and standard error says why."""
    with contextlib.suppress(OSError):  # the daemon's own priority, and its protection, are for the daemon
        os.setpriority(os.PRIO_PROCESS, 0, 19)
        Path("/proc/self/oom_score_adj").write_text("500")
    order = json.load(sys.stdin)
    agent = Agent(**order["agent"]) if order["agent"] else None
    store, name = Store(Path(order["directory"]), shipped_directory()), order["name"]
    try:
        session = Recorded(order["session"], _tokens(order))
        outcome = learning.learn(store, name, session, agent, order["enough"], lambda _: None, order["tier"])
    except AgentmonError as error:
        print(error, file=sys.stderr)
        return 1
    print(learning.as_json(outcome), flush=True)
    return 0


def _tokens(order: dict[str, object]) -> list[Token]:
    began_ns = int(str(order["started_ns"]))
    for _ in range(_TRIES):
        reader, tokens, ended = Tokens(str(order["workspace"]), str(order["home"])), list[Token](), False
        for record in read(Path(str(order["audit"])), since_ns=began_ns):
            if record.session == order["session"] and record.time_ns >= began_ns:
                ended |= record.kind == "session" and record.operation in ("ended", "released")
                if (token := reader.read(record)) is not None:
                    tokens.append(token)
        if ended:
            break
        time.sleep(_PAUSE_S)
    return tokens


if __name__ == "__main__":
    sys.exit(main())
