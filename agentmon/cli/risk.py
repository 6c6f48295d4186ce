# SPDX-License-Identifier: Apache-2.0
"""``agentmon risk``."""

from __future__ import annotations

import argparse
from typing import Any

from agentmon.cli.common import add_json, add_verb, connect, print_json


def register(subparsers: Any) -> None:
    """Add the verb."""
    from agentmon.model.conditions import Risk

    parser = add_verb(
        subparsers,
        "risk",
        "say how risky a session is: rules with `when: {risk: …}` go by it",
        """
        Set the risk of a live session. It counts from its next operation on. Of a session that is watched
        by a baseline it is the least from then on, and what was found until then is settled. Only root and
        members of the group `agentmon` may do this, and never a process inside a session.
        """,
        """
        sudo agentmon risk s-7f3a high
        """,
    )
    parser.add_argument("session", metavar="SESSION", help="its id, from `agentmon ps`")
    parser.add_argument("level", choices=[risk.word for risk in Risk], help="the level")
    add_json(parser)
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Tell the daemon."""
    with connect(args) as client:
        reply = client.call("risk", session=args.session, level=args.level)
    if args.json:
        print_json({"session": reply["session"], "risk": reply["risk"], "was": reply["was"]})
    else:
        print(f"{reply['session']}: risk {reply['risk']}, was {reply['was']}")
    return 0
