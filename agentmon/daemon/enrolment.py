# SPDX-License-Identifier: Apache-2.0
"""Fencing what already runs: mark in the kernel first, stop, walk the tree, judge what it holds; or undo it all."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentmon.control.protocol import Peer, RefusedError
from agentmon.daemon.opens import is_own
from agentmon.daemon.policies import Prepared, Source
from agentmon.daemon.requests import Enroll
from agentmon.daemon.state import SessionState
from agentmon.engine import Process, Progress, Session, unseen
from agentmon.fingerprint.drift import changed_agent, other_tier
from agentmon.fingerprint.store import check_name
from agentmon.host import process
from agentmon.host.freeze import Freezer
from agentmon.host.holdings import Holding, holdings
from agentmon.host.tree import Orphan, orphans
from agentmon.model.conditions import WHATEVER
from agentmon.model.events import ProcessKey
from agentmon.model.operations import OPERATIONS, Action, Operation, Tier

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon
    from agentmon.kernel.monitor import Monitor
    from agentmon.policy.bind import BoundPolicy, BoundRule


#: Compiling holds up the whole daemon: this much takes a second at the worst.
USER_POLICY_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a process holds already, and would be denied."""

    holding: Holding
    rule: str
    reason: str

    def as_json(self) -> dict[str, object]:
        """As sent to the client."""
        held = self.holding
        object_ = os.fsdecode(held.object) if isinstance(held.object, bytes) else str(held.object or "")
        return {
            "id": held.id, "pid": held.pid, "fd": held.fd, "operation": held.operation.word, "object": object_,
            "what": held.text, "inheritable": held.inheritable, "rule": self.rule, "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A new session, with what its owner should know."""

    session: Session
    processes: list[ProcessKey]
    findings: list[Finding]
    orphans: list[Orphan]
    unstoppable: list[ProcessKey]
    unheld: list[str]  # rules that hold what this tier can only deny
    notes: list[str]


def enrol(daemon: Daemon, peer: Peer, request: Enroll) -> Enrolled:
    """Raises `RefusedError` (nothing changed then), `PolicyError` or `KernelError`."""
    _check_target(daemon, peer, request)
    uid = peer.uid if request.uid is None else request.uid
    if peer.uid and uid != peer.uid:
        raise RefusedError("only root may enrol for another user", "forbidden")
    if peer.uid:
        own = sum(1 for session in daemon.engine.sessions if session.uid == peer.uid)
        if own >= daemon.config.daemon.sessions_per_user:
            raise RefusedError(f"you have {own} live sessions, which is the limit; end some first", "failed")
    home, user = _account(uid)
    source = Source(request.policy.name, request.policy.text)
    plan = Source(request.plan.name, request.plan.text) if request.plan else None
    for each in (source, plan) if plan else (source,):
        check_size(peer, each)
    prepared = daemon.book.prepare(source, workspace=request.workspace, home=home, user=user, plan=plan)
    profile = _profile(daemon, peer, request, prepared.name)
    baseline = daemon.baselines.load(profile, daemon.go_on) if profile else None

    monitor, engine = daemon.monitor, daemon.engine
    policy_slot, generation = daemon.book.acquire(monitor, prepared)
    try:
        slot, serial = monitor.open_session(policy_slot)
    except BaseException:
        daemon.book.release(monitor, policy_slot)
        raise
    session = Session(
        daemon.new_session_id(), slot, prepared.name, uid, time.time_ns(), prepared.view,
        workspace=request.workspace, command=request.command or _command(request.pid),
    )  # fmt: skip
    session.generations[generation] = prepared.view
    session.progress = Progress() if plan else None
    state = SessionState(
        session.id, slot, serial, prepared.name, policy_slot, generation, prepared.digest, source.text, source.file,
        request.workspace, home, user, uid, session.command, session.started_ns, list(prepared.compiled.rules),
        first_generation=generation, by_root=not peer.uid, profile=profile,
        learn=request.learn or "", agent=request.agent.model_dump() if request.agent else None,
        plan_text=plan.text if plan else "", plan_file=plan.file if plan else "",
    )  # fmt: skip
    daemon.states[session.id] = state
    engine.open(session)
    notes = [daemon.learning.note(request.learn)] if request.learn and baseline is None else []
    if baseline is not None:
        daemon.risks.watch(session, baseline, home)
        if request.agent is not None and (changed := changed_agent(baseline, request.agent.sha256)):
            notes.append(changed)
        if other := other_tier(baseline, daemon.tier_word):
            notes.append(other)
    try:
        daemon.holding.expect(prepared.bound, peer.uid)
        daemon.names.open(session.id, prepared.compiled)
        with Freezer() as freezer:
            done = _mark(daemon, peer, request, session, state, prepared, freezer)
            done.notes.extend(notes)
            return done
    except BaseException:
        daemon.undo(session)
        raise
    finally:
        if state.frozen:
            state.frozen = []
            if session.id in daemon.states:
                daemon.directory.save(state)


def _profile(daemon: Daemon, peer: Peer, request: Enroll, policy: str) -> str:
    """The baseline to watch it by; empty if there is none. Raises `RefusedError` or `AgentmonError`."""
    from agentmon.daemon.app import is_group_member

    if request.learn is not None:
        if request.profile is not None:
            raise RefusedError("either it is watched by a `profile`, or it is to `learn` one", "usage")
        group = daemon.config.daemon.group
        if peer.uid and not is_group_member(peer.uid, group):
            # else anybody could teach it what to take for usual
            raise RefusedError(f"only root and members of the group `{group}` may have a baseline learn", "forbidden")
        return request.learn if check_name(request.learn) in daemon.baselines.store.names() else ""
    return request.profile or daemon.config.fingerprint.profiles.get(policy, "")


def _mark(
    daemon: Daemon, peer: Peer, request: Enroll, session: Session, state: SessionState, prepared: Prepared,
    freezer: Freezer,
) -> Enrolled:  # fmt: skip
    monitor = daemon.monitor
    daemon.directory.save(state)  # before the first process is marked: a killed daemon leaves nothing unknown
    keys = monitor.enroll([request.pid], session.slot)
    if not any(key.pid == request.pid for key in keys):
        raise RefusedError(f"process `{request.pid}` ended, or is fenced already; see `agentmon ps`", "failed")
    unstoppable: list[ProcessKey] = []
    if not request.waiting:
        state.frozen = [key for key in keys if key.pid != peer.pid]
        daemon.directory.save(state)
        unstoppable = freezer.freeze(state.frozen)
    _check_rights(peer, keys)
    members = [describe(key) for key in keys]
    if request.waiting:
        # it is still agentmon itself, which is no ancestor of what it becomes
        for key in keys:
            monitor.set_exe_tags(key, 0)
            if request.plan:
                monitor.expect_command(key)
    else:
        for key, tags, parents in _programs(members, prepared):
            # what runs on may run another program meanwhile: the kernel will find out
            monitor.set_exe_tags(key, None if key in unstoppable else tags, parents)
    daemon.engine.enrolled(session.slot, members)
    findings = [
        finding
        for key in keys
        for finding in sweep(key.pid, prepared)
        # a child of `run` gives up its program on exec, and everything that closes on exec
        if not (request.waiting and (finding.holding.fd is None or not finding.holding.inheritable))
    ]
    if not request.waiting:
        refuse_unaccepted(findings, request.accept)
    found = [] if request.waiting else orphans({key.pid for key in keys})
    return Enrolled(session, keys, findings, found, unstoppable, _unheld(prepared.bound, daemon.monitor, peer.uid), [])


def _unheld(bound: BoundPolicy, monitor: Monitor, uid: int) -> list[str]:
    def waits(bound: BoundRule) -> bool:
        told = bound.rule.argv is not None or bound.rule.except_argv is not None
        if monitor.tier is Tier.LSM:
            return bound.operations <= monitor.holds and (monitor.holds_starts or not told)
        # what a rule on `write` says of deletes and the like, nobody says in this tier
        if not monitor.holds.issuperset(bound.rule.operations):
            return False
        if not bound.operations & {Operation.READ, Operation.WRITE}:
            return True
        paths = [glob.exact for glob in bound.includes]
        return bound.waits_by_name and bool(paths) and all(path and (not uid or is_own(path, uid)) for path in paths)

    rules = [r.rule.id for r in bound.rules if r.action is Action.HOLD and not waits(r)]
    able = monitor.holds - {Operation.READ, Operation.WRITE} if monitor.tier is Tier.REACT else monitor.holds
    held = [o for o in OPERATIONS if bound.defaults[o] is Action.HOLD and o not in able]
    return rules + [f"the default of {operation.word}" for operation in held]


def _programs(members: list[Process], prepared: Prepared) -> list[tuple[ProcessKey, int, int]]:
    """The exe tags of each process, and those of its ancestors among them."""
    own = {p.key.pid: prepared.judge.exe_tags(process.executable(p.key.pid) or b"") for p in members}
    above = {p.key.pid: p.parent_pid for p in members}
    found = []
    for member in members:
        parents, pid = 0, above[member.key.pid]
        for _ in members:
            if pid not in own:
                break
            parents |= own[pid]
            pid = above[pid]
        found.append((member.key, own[member.key.pid], parents))
    return found


def sweep(pid: int, prepared: Prepared) -> list[Finding]:
    """Judge everything that a process holds, whatever the conditions of rules may come to."""
    try:
        held = holdings(pid)
    except ProcessLookupError:
        return []
    tags = prepared.judge.exe_tags(process.executable(pid) or b"")
    found: list[Finding] = []
    for holding in held:
        if holding.object is None:
            found.append(Finding(holding, "", holding.text))
            continue
        if isinstance(holding.object, bytes):
            verdict = prepared.judge.path(holding.operation, holding.object, tags, WHATEVER)
        else:
            peer = holding.object
            verdict = prepared.judge.net(holding.operation, peer.packed, peer.port, tags, WHATEVER)
        if verdict.action.blocks:
            rules = prepared.compiled.rules
            info = rules[verdict.rule] if verdict.rule < len(rules) else None
            found.append(Finding(holding, info.id if info else "", info.reason if info else "the policy's default"))
    return found


def refuse_unaccepted(findings: list[Finding], accept: Collection[str]) -> None:
    """Raises `RefusedError` unless every finding was accepted by name, or all were."""
    if "all" in accept:
        return
    unknown = set(accept) - {finding.holding.id for finding in findings}
    if unknown:
        raise RefusedError(f"nothing of the name `{min(unknown)}` was found; names are such as `812:fd5`", "usage")
    left = [finding for finding in findings if finding.holding.id not in accept]
    if left:
        raise RefusedError(
            f"the process already holds {len(left)} thing(s) that its policy would deny; nothing was changed. "
            "Accept them by name (--accept ID, or --accept all), or start it with `agentmon run`",
            "denied",
            {"findings": [finding.as_json() for finding in left]},
        )


def check_size(peer: Peer, source: Source) -> None:
    """Raises `RefusedError`."""
    if peer.uid and len(source.text) > USER_POLICY_BYTES:
        raise RefusedError(
            f"{source.file}:1:1: it is {len(source.text)} bytes long; an ordinary user's may have"
            f" {USER_POLICY_BYTES}: use globs",
            "invalid",
        )


def _check_target(daemon: Daemon, peer: Peer, request: Enroll) -> None:
    pid = request.pid
    try:
        stat = process.stat(pid)
        status = process.status(pid)
    except ProcessLookupError as error:
        raise RefusedError(f"there is no process `{pid}`; see `ps -e`", "failed") from error
    if stat.kernel:
        raise RefusedError(f"process `{pid}` is a kernel thread; it cannot be fenced", "failed")
    if pid == os.getpid() or process.is_descendant(os.getpid(), pid):
        raise RefusedError(f"process `{pid}` is agentmon's own daemon, or above it; enrol something below", "failed")
    if stat.state in "ZX":
        raise RefusedError(f"process `{pid}` has ended already", "failed")
    known = next((s.id for s in daemon.engine.sessions if any(key.pid == pid for key in s.processes)), None)
    if known:
        raise RefusedError(f"process `{pid}` is in session `{known}` already; release it first", "failed")
    if peer.uid:
        _check_owner(peer, pid, status)
        # Before anything is marked: not for a moment may a user's policy hold for somebody else's process.
        for below in process.descendants(pid):
            with contextlib.suppress(ProcessLookupError):
                _check_owner(peer, below, process.status(below))
    if request.waiting and stat.ppid != peer.pid:
        raise RefusedError(f"process `{pid}` is not a child of the sender", "forbidden")


def _check_owner(peer: Peer, pid: int, status: process.Status) -> None:
    if set(status.uids) != {peer.uid}:
        raise RefusedError(f"process `{pid}` is not yours; ask root to enrol it", "forbidden")
    if not status.no_new_privs:
        raise RefusedError(
            f"process `{pid}` could still gain privileges: an ordinary user's fence needs no_new_privs, so that it "
            "cannot break a setuid program half way; start it with `agentmon run` or `setpriv --no-new-privs`",
            "forbidden",
        )


def _check_rights(peer: Peer, keys: list[ProcessKey]) -> None:
    """Again, and for all, now that they are marked: what was looked at first may have been something else."""
    if peer.uid == 0:
        return
    for key in keys:
        try:
            _check_owner(peer, key.pid, process.status(key.pid))
        except ProcessLookupError:
            continue


def _account(uid: int) -> tuple[str, str]:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return "/nonexistent", str(uid)
    home = os.path.realpath(entry.pw_dir or "/nonexistent")
    return home, entry.pw_name


def describe(key: ProcessKey) -> Process:
    """A process as /proc has it now."""
    try:
        stat = process.stat(key.pid)
        return Process(key, stat.ppid, process.status(key.pid).uids[1], stat.comm)
    except ProcessLookupError:
        return unseen(key)


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096).replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def new_id(taken: Collection[str]) -> str:
    """A session id such as `s-7f3a` that is not taken."""
    while True:
        found = f"s-{secrets.token_hex(2)}"
        if found not in taken:
            return found
