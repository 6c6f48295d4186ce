# SPDX-License-Identifier: Apache-2.0
"""What the engine asks the daemon to do."""

from __future__ import annotations

from dataclasses import dataclass

from agentmon.engine.holds import Approval, Waiter
from agentmon.engine.sessions import Session
from agentmon.model.conditions import Risk
from agentmon.model.events import Decision, ProcessKey
from agentmon.model.operations import Action
from agentmon.model.records import Record


@dataclass(slots=True)  # not frozen: one is made per event, and freezing costs a microsecond
class Report:
    """Append the record to the audit log and show it to watchers."""

    record: Record


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The kernel's verdict is not the reference's: a bug of agentmon; report it loudly."""

    record: Record
    message: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End this process now: it did what the kernel could not judge."""

    process: ProcessKey
    session: str
    why: str


@dataclass(frozen=True, slots=True)
class ResolveScript:
    """Find the true path of a script named by a process, then call `Engine.script`."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Recount:
    """A session has no process left as far as the records tell: ask the kernel, then call `Engine.reconcile`."""


@dataclass(frozen=True, slots=True)
class EndSession:
    """The last process of the session has ended: free its slot."""

    session: Session


@dataclass(frozen=True, slots=True)
class Park:
    """A thread restarts its call until there is an answer: freeze its process."""

    waiter: Waiter


@dataclass(frozen=True, slots=True)
class Settle:
    """Tell the kernel what was decided of these waiters; processes that wait for nothing else go on.

    ``remember``: somebody said so; who tries again is not to ask again at once.
    """

    waiters: tuple[Waiter, ...]
    action: Action
    remember: bool = True


@dataclass(frozen=True, slots=True)
class Unpark:
    """A process that was held has ended."""

    process: ProcessKey


@dataclass(frozen=True, slots=True)
class Tell:
    """People should hear of this now: it is ``asked``, asked again because it ``changed``, or ``expired``."""

    event: str
    approval: Approval


@dataclass(frozen=True, slots=True)
class SetRisk:
    """The risk of a session is another: tell the kernel."""

    session: Session
    level: Risk


@dataclass(frozen=True, slots=True)
class Warn:
    """People should hear of this now: the risk of a session rose, as its record says."""

    session: Session
    record: Record


@dataclass(frozen=True, slots=True)
class Pause:
    """Something was against the plan, and the step says so: stop the session until somebody lets it go on."""

    session: Session
    why: str


Command = (
    Pause
    | SetRisk
    | Warn
    | Tell
    | Park
    | Settle
    | Unpark
    | Report
    | Mismatch
    | Kill
    | ResolveScript
    | Recount
    | EndSession
)
