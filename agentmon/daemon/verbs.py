# SPDX-License-Identifier: Apache-2.0
"""What the daemon answers. `callers` says to whom."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from agentmon import __version__
from agentmon.control.protocol import Peer, RefusedError
from agentmon.control.server import Connection
from agentmon.daemon import enrolment
from agentmon.daemon import reload as reloading
from agentmon.daemon.answering import Held
from agentmon.daemon.callers import Caller, Callers
from agentmon.daemon.requests import (
    Answer,
    Approvals,
    Approve,
    Ask,
    Asked,
    Bookmark,
    Deny,
    Doctor,
    Enroll,
    Ping,
    Ps,
    Release,
    Reload,
    Request,
    Resume,
    SetRisk,
    Step,
    Summary,
    ToolStep,
    Watch,
    Why,
    parse,
)
from agentmon.daemon.told import Told
from agentmon.daemon.toolcalls import ToolCalls
from agentmon.engine import Session
from agentmon.engine.plans import states_of
from agentmon.errors import AgentmonError, ConfigError, PolicyError
from agentmon.host import process
from agentmon.host.freeze import thaw
from agentmon.kernel import canary
from agentmon.model.conditions import Risk
from agentmon.model.events import ProcessKey
from agentmon.model.operations import OPERATIONS, Reason, hold_word
from agentmon.model.plans import StepInfo
from agentmon.model.records import Record

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon

#: A session's processes in one answer; more are only counted.
LISTED_PROCESSES = 1000
#: An ordinary user may send the canaries out this often.
CHECK_EVERY_NS = 10_000_000_000


class Verbs:
    """The answers. One object a daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._callers = Callers(daemon)
        self._told = Told(daemon)
        self._held = Held(daemon)
        self._tool_calls = ToolCalls(daemon, self._mark)
        self.opened = self._callers.opened

    def handle(self, connection: Connection, peer: Peer, verb: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Check, do, answer. Never raises."""
        try:
            request = parse(verb, fields)
            caller = self._callers.check(connection, peer, verb)
            return {"ok": True, **self._answer(connection, caller, request)}
        except RefusedError as error:
            return {"ok": False, "error": str(error), "code": error.code, **error.reply}
        except (PolicyError, ConfigError) as error:
            return {"ok": False, "error": str(error), "code": "invalid"}
        except AgentmonError as error:
            return {"ok": False, "error": str(error), "code": "failed"}
        except Exception as error:  # noqa: BLE001  # no request, however odd, may take the answer away
            return {"ok": False, "error": f"the daemon failed: {type(error).__name__}: {error}", "code": "failed"}

    # -- answers ----------------------------------------------------------------------------------------------

    def _answer(self, connection: Connection, caller: Caller, request: Request) -> dict[str, Any]:
        match request:
            case Ping():
                return self._ping()
            case Ps():
                return self._ps(caller)
            case Enroll():
                return self._enroll(caller.peer, request)
            case Release():
                return self._release(request)
            case Reload():
                return self._reload(caller.peer, request)
            case Resume():
                return self._resume(caller, request)
            case Step():
                return self._step(caller, request)
            case ToolStep():
                return self._tool_calls.step(caller, request)
            case SetRisk():
                return self._risk(caller.peer, request)
            case Summary():
                return self._summary(caller, request)
            case Approve():
                return self._held.approve(caller, request)
            case Deny():
                return self._held.deny(caller, request)
            case Watch():
                return self._watch(connection, caller, request)
            case Why():
                return self._told.why(caller, request, self._known)
            case Bookmark():
                return self._told.bookmark(caller, request)
            case Ask():
                return self._told.ask(caller, request)
            case Asked():
                return self._told.asked(caller, request)
            case Approvals():
                return {**self._told.approvals(caller, request), "approvals": self._held.waiting(caller)}
            case Answer():
                return self._told.answer(caller, request)
            case Doctor():
                return self._doctor(caller.privileged)
        raise RefusedError("unknown request", "usage")

    def _ping(self) -> dict[str, Any]:
        daemon = self._daemon
        return {
            "version": __version__, "pid": os.getpid(), "tier": daemon.tier_word, "embedded": daemon.embedded,
            "enforcing": daemon.health.enforcing,
        }  # fmt: skip

    def _posture(self) -> dict[str, Any]:
        daemon = self._daemon
        notes = canary.NOTES.get(daemon.monitor.tier, {})
        tier, able = daemon.monitor.tier, daemon.monitor.holds
        return {
            op.word: {
                "posture": str(daemon.health.posture(op)),
                "hold": hold_word(tier, able, op),
                "note": notes.get(op, ""),
            }
            for op in OPERATIONS
        }

    def _ps(self, caller: Caller) -> dict[str, Any]:
        daemon = self._daemon
        daemon.drain()
        own = [s for s in daemon.engine.sessions if caller.may_see(s)]
        answer = {
            **self._ping(),
            "posture": self._posture(),
            "sessions": [{**_session(s), **self._plan(s)} for s in own],
        }
        if not caller.inside:  # else an agent could steer by it
            for session, listed in zip(own, answer["sessions"], strict=True):
                listed["fingerprint"] = self._fingerprint(session)
        if caller.privileged:
            for session, listed in zip(own, answer["sessions"], strict=True):
                listed["policy_file"] = daemon.states[session.id].file
            answer |= {
                "uptime_s": round(time.monotonic() - daemon.started, 1),
                "counters": self._counters(),
                "kernel_memory_bytes": daemon.monitor.memory_bytes(),
            }
        return answer

    def _fingerprint(self, session: Session) -> dict[str, Any] | None:
        daemon = self._daemon
        watched, state = daemon.risks.of(session.id), daemon.states[session.id]
        if watched is not None:
            return {**watched.as_json(), "learns": bool(state.learn)}
        if state.profile:
            return {"profile": state.profile, "error": daemon.unwatched.get(session.id, "it ends")}
        if state.learn:
            sessions, windows = daemon.learning.to_go(state.learn)
            return {"profile": state.learn, "learns": True, "to_go": {"sessions": sessions, "windows": windows}}
        return None

    def _plan(self, session: Session) -> dict[str, Any]:
        plan = session.view.plan
        if plan is None:
            return {}
        steps = plan.compiled.steps
        states = self._daemon.monitor.steps(session.slot, len(steps))
        return {
            "plan": plan.compiled.name, "steps": states_of(plan.compiled, states), "paused": session.paused or None,
        }  # fmt: skip

    def _counters(self) -> dict[str, int]:
        daemon = self._daemon
        return {
            **daemon.monitor.counters(),
            "malformed": daemon.monitor.malformed,
            "mismatches": daemon.engine.mismatches,
            "unattributed": daemon.engine.unattributed,
            "audit_written": daemon.audit.written,
            "audit_lost": daemon.audit.lost,
            "watch_dropped": daemon.server.dropped,
            "unjudged": daemon.risks.unjudged,
            "alerts_withheld": daemon.risks.withheld,
            "notify_dropped": daemon.notifications.dropped,
            "notify_failed": daemon.notifications.failed,
            **{f"names_{what}": number for what, number in sorted(daemon.names.counts().items())},
        }

    def _enroll(self, peer: Peer, request: Enroll) -> dict[str, Any]:
        daemon = self._daemon
        done = enrolment.enrol(daemon, peer, request)
        session = done.session
        state = daemon.states[session.id]
        daemon.report(
            Record(
                session.started_ns, "session", session.id, request.pid, uid=session.uid, comm=session.command[:64],
                operation="enrolled", object=session.workspace,
                detail=f"policy {session.policy}, {len(done.processes)} processes, "
                f"{f'profile {state.profile}, ' if state.profile else ''}"
                f"{f'learning {state.learn}, ' if state.learn else ''}by uid {peer.uid}, "
                f"user {state.user}, home {state.home}",  # read again by policy/recorded.py
            )
        )  # fmt: skip
        for finding in done.findings if not request.waiting else ():
            held = finding.holding
            object_ = held.object.decode("utf-8", "surrogateescape") if isinstance(held.object, bytes) else held.object
            daemon.report(
                Record(
                    session.started_ns, "session", session.id, held.pid, uid=session.uid, operation="accepted",
                    object=str(object_ or ""), rule=finding.rule, detail=f"{held.id}: {held.text}",
                )
            )  # fmt: skip
        daemon.settle()
        return {
            "session": session.id, "policy": session.policy, "tier": daemon.tier_word,
            "enforcing": daemon.health.enforcing,
            "processes": [key.pid for key in done.processes],
            "findings": [finding.as_json() for finding in done.findings],
            "orphans": [{"pid": o.pid, "comm": o.comm, "why": o.why} for o in done.orphans],
            "unheld": done.unheld,
            "profile": state.profile or None, "learn": state.learn or None,
            "notes": done.notes,
            "unstoppable": [key.pid for key in done.unstoppable],
        }  # fmt: skip

    def _live(self, session_id: str) -> Session:
        session = self._daemon.engine.find(session_id)
        if session is None:
            raise RefusedError(f"there is no live session `{session_id}`; see `agentmon ps`", "failed")
        return session

    def _reload(self, peer: Peer, request: Reload) -> dict[str, Any]:
        session = self._live(request.session)
        state = self._daemon.states[session.id]
        prepared = reloading.prepare(self._daemon, peer, request, state)
        if request.dry_run:
            return {"session": session.id, **reloading.dry_run(self._daemon, state, prepared)}
        self._daemon.holding.expect(prepared.bound, peer.uid)
        state.by_root = not peer.uid  # kept with the policy by `reload`
        done = reloading.reload(self._daemon, peer, request, session, prepared)
        return {
            "session": session.id, "changed": done.changed, "policy": done.new.policy, "was": done.old.policy,
            "digest": done.new.digest, "was_digest": done.old.digest, "generation": done.new.generation,
            "was_generation": done.old.generation, "processes": len(session.processes),
        }  # fmt: skip

    def _release(self, request: Release) -> dict[str, Any]:
        session = self._live(request.session)
        processes = len(session.processes)
        self._daemon.release(session, "released")
        return {"session": session.id, "processes": processes}

    def _step(self, caller: Caller, request: Step) -> dict[str, Any]:
        """The kernel decides, as for a program; here is only found who asks."""
        session = caller.own
        if session is None:
            raise RefusedError("only a process inside a session marks a step of its plan", "forbidden")
        plan = session.view.plan
        if plan is None or session.progress is None:
            raise RefusedError(f"session `{session.id}` has no plan; start it with `agentmon run --plan FILE`", "usage")
        names = [step.id for step in plan.compiled.steps]
        if request.name not in names:
            raise RefusedError(f"the plan has no step `{request.name}`; it has {', '.join(names)}", "usage")
        key = self._marked(session, caller.peer.pid, parent=request.parent)
        self._mark(session, key, names.index(request.name), ends=request.ends, status=request.status)
        return {"session": session.id, "step": request.name, "ends": request.ends}

    def _mark(self, session: Session, key: ProcessKey, number: int, *, ends: bool, status: int = 0) -> None:
        """Have the kernel begin a step of a process, or end it. Raises `RefusedError`: it may not, and why."""
        daemon = self._daemon
        plan = session.view.plan
        if plan is None or session.progress is None:
            raise RefusedError(f"session `{session.id}` has no plan", "usage")
        name = plan.name(number)
        daemon.drain()  # what is done by now may be what it needs
        why = daemon.monitor.mark_step(key, number, ends=ends, status=status)
        daemon.drain()
        if why is None:
            return
        said = session.progress.why(plan, number, why) if why.of_plan else "the process could not be tracked"
        if why is Reason.PLAN_MARK:
            said = _no_mark(plan.compiled.steps[number], name, ends=ends)
        known = session.processes.get(key)
        record = Record(
            time.time_ns(), "step", session.id, key.pid, key.start_ns, session.uid, known.comm if known else "",
            "refused", name, "deny", detail=said,
        )  # fmt: skip
        daemon.report(record)
        session.count_blocked(record._replace(reason=said))
        daemon.settle()
        raise RefusedError(said, "denied")

    def _resume(self, caller: Caller, request: Resume) -> dict[str, Any]:
        daemon = self._daemon
        session = self._live(self._known(request.session, caller).id)
        if not session.paused:  # others may have stopped some of it
            raise RefusedError(f"session `{session.id}` is not paused; see `agentmon ps`", "failed")
        keys = daemon.members(session)
        thaw(keys)
        daemon.set_paused(session, "")
        daemon.report(
            Record(
                time.time_ns(), "session", session.id, uid=session.uid, operation="resumed",
                detail=f"by uid {caller.peer.uid}",
            )
        )  # fmt: skip
        daemon.settle()
        return {"session": session.id, "processes": len(keys)}

    def _marked(self, session: Session, pid: int, *, parent: bool) -> ProcessKey:
        """Who is marked: the sender, or who runs it."""
        monitor = self._daemon.monitor
        with contextlib.suppress(ProcessLookupError):
            pid = process.stat(pid).ppid if parent else pid
            for key in monitor.listed():
                state = monitor.process(key) if key.pid == pid else None
                if state is not None and state.session == session.slot:
                    return key
        raise RefusedError("who runs this command is not in the session, or has ended", "failed")

    def _risk(self, peer: Peer, request: SetRisk) -> dict[str, Any]:
        daemon = self._daemon
        session = self._live(request.session)
        levels = {risk.word: risk for risk in Risk}
        if request.level not in levels:
            raise RefusedError(f"unknown risk `{request.level}`; known: {', '.join(levels)}", "usage")
        was, level = session.risk, daemon.risks.floor(session, levels[request.level])
        daemon.set_risk(session, level)
        state = daemon.states[session.id]
        state.floor = session.floor
        daemon.directory.save(state)
        daemon.report(
            Record(
                time.time_ns(), "session", session.id, uid=session.uid, operation="risk",
                detail=f"{session.risk}, was {was}, by uid {peer.uid}",
            )
        )  # fmt: skip
        daemon.settle()
        return {"session": session.id, "risk": session.risk, "was": was}

    def _summary(self, caller: Caller, request: Summary) -> dict[str, Any]:
        daemon = self._daemon
        daemon.drain()
        session = self._known(request.session, caller)
        last = session.last_blocked_exec
        if daemon.risks.of(session.id):
            daemon.judge()
        rose = session.rose if not caller.inside else None  # else an agent could steer by it
        return {
            "rose": {"detail": rose.detail, "reason": rose.reason} if rose else None,
            **_session(session),
            "live": session.ended_ns == 0,
            "blocked_kinds": [
                {"operation": op, "object": obj, "rule": rule, "reason": reason, "count": count}
                for (op, obj, rule, reason), count in session.blocked_kinds.items()
            ],
            "last_blocked_exec": (
                {"pid": last[0], "rule": last[1], "reason": last[2], "first": last[3]} if last else None
            ),
        }

    def _known(self, session_id: str, caller: Caller) -> Session:
        """The session, live or ended; one that the caller may not see is as if it were not there."""
        session = self._daemon.engine.find(session_id) or self._daemon.ended.get(session_id)
        if session is None or not caller.may_see(session):
            raise RefusedError(f"there is no session `{session_id}`; see `agentmon ps`", "failed")
        return session

    def _watch(self, connection: Connection, caller: Caller, request: Watch) -> dict[str, Any]:
        engine, ended = self._daemon.engine, self._daemon.ended
        if request.session is not None:
            self._known(request.session, caller)

        def wanted(record: Record) -> bool:
            if request.session is not None and record.session != request.session:
                return False
            if not request.all and not _is_news(record):
                return False
            if caller.privileged:
                return True
            session = engine.find(record.session) or ended.get(record.session)
            return session is not None and caller.may_see(session)

        connection.watching = wanted
        return self._ping()

    def _doctor(self, privileged: bool) -> dict[str, Any]:
        daemon = self._daemon
        if privileged or time.time_ns() - daemon.health.time_ns > CHECK_EVERY_NS:
            daemon.check()
        health = daemon.health
        return {
            **self._ping(),
            "posture": self._posture(),
            "why_react": daemon.monitor.why_react,
            "programs": daemon.monitor.programs(),
            "canaries": [
                {"operation": f.operation.word, "attempt": f.attempt, "posture": str(f.posture), "note": f.note}
                for f in health.findings
            ],
            "canary_error": health.error,
            "canary_ms": round(health.duration_s * 1000, 1),
            "skipped": health.skipped,
            "counters": self._counters(),
            "audit": {"path": str(daemon.audit.path), "error": daemon.audit.error, "notice": daemon.audit.notice},
        }


def _no_mark(step: StepInfo, name: str, *, ends: bool) -> str:
    if ends:
        return f"step {name} is ended by the process that began it with a mark, and this one is not in it"
    if not step.mark:
        return f"step {name} starts with a program, not with a mark"
    return f"the process is in a step already, which has to end before {name} begins"


def _is_news(record: Record) -> bool:
    if record.kind == "decision":
        return (record.blocked or bool(record.would)) and "quiet" not in record.flags
    if record.flags == "quiet":
        return False
    return record.kind in ("session", "step", "name", "mismatch", "daemon", "approval")


def _session(session: Session) -> dict[str, Any]:
    processes = sorted(session.processes.values(), key=lambda p: p.key.start_ns)
    return {
        "session": session.id, "policy": session.policy, "uid": session.uid, "workspace": session.workspace,
        "command": session.command, "started_ns": session.started_ns, "decisions": session.decisions,
        "blocked": session.blocked, "observed": session.observed, "risk": session.risk, "process_count": len(processes),
        "processes": [
            {"pid": p.key.pid, "ppid": p.parent_pid, "uid": p.uid, "comm": p.comm, "blocked": p.blocked}
            for p in processes[:LISTED_PROCESSES]
        ],
    }  # fmt: skip
