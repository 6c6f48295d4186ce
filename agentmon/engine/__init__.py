# SPDX-License-Identifier: Apache-2.0
"""The core without clock, socket or kernel: events in, commands out."""

from agentmon.engine.commands import Command, EndSession, Kill, Mismatch, Recount, Report, ResolveScript
from agentmon.engine.core import Engine
from agentmon.engine.sessions import Judge, Judgement, Process, Session, View

__all__ = [
    "Command",
    "EndSession",
    "Engine",
    "Judge",
    "Judgement",
    "Kill",
    "Mismatch",
    "Process",
    "Recount",
    "Report",
    "ResolveScript",
    "Session",
    "View",
]
