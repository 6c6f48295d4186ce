# SPDX-License-Identifier: Apache-2.0
"""The core without clock, socket or kernel: events in, commands out."""

from agentmon.engine.commands import (
    Command,
    EndSession,
    Kill,
    Mismatch,
    Park,
    Pause,
    Recount,
    Report,
    ResolveScript,
    SetRisk,
    Settle,
    Tell,
    Unpark,
    Warn,
)
from agentmon.engine.core import Engine
from agentmon.engine.holds import Approval, Limits
from agentmon.engine.plans import PlanView, Progress
from agentmon.engine.questions import Question, Questions
from agentmon.engine.risks import Risks, Watched
from agentmon.engine.sessions import Denial, Judge, Judgement, Process, Session, View, unseen

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
    "Pause",
    "PlanView",
    "Process",
    "Progress",
    "Question",
    "Questions",
    "Recount",
    "Report",
    "ResolveScript",
    "Risks",
    "Session",
    "SetRisk",
    "Settle",
    "Tell",
    "Unpark",
    "View",
    "Warn",
    "Watched",
    "unseen",
]
