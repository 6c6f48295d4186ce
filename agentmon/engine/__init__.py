# SPDX-License-Identifier: Apache-2.0
"""The core without clock, socket or kernel: events in, commands out."""

from agentmon.engine.commands import (
    Command,
    EndSession,
    Kill,
    Mismatch,
    Park,
    Recount,
    Report,
    ResolveScript,
    Settle,
    Tell,
    Unpark,
)
from agentmon.engine.core import Engine
from agentmon.engine.holds import Approval, Limits
from agentmon.engine.questions import Question, Questions
from agentmon.engine.sessions import Denial, Judge, Judgement, Process, Session, View

__all__ = [
    "Approval",
    "Command",
    "Denial",
    "EndSession",
    "Engine",
    "Judge",
    "Judgement",
    "Kill",
    "Limits",
    "Mismatch",
    "Park",
    "Process",
    "Question",
    "Questions",
    "Recount",
    "Report",
    "ResolveScript",
    "Session",
    "Settle",
    "Tell",
    "Unpark",
    "View",
]
